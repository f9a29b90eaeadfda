//! Durations as people write them: `90s`, `30m`, `12h`, `7d`, `4w`, and `0` for none.

/// Longest duration that can be asked for: ten years, in seconds.
pub const MAX_DURATION_S: u64 = 10 * 366 * 86_400;

/// The units, from the largest: its letter, and its seconds.
const UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
/// Bytes of a text that a message shows.
const MAX_SHOWN: usize = 40;

/// Reads a duration, in seconds: a number with its unit, or `0`.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let shown: String = text.chars().take(MAX_SHOWN).collect();
    let bad = || {
        format!(
            "\"{shown}\" is no duration: give a number with its unit, such as 90s, 30m, 12h, 7d or \
             4w, or 0 for none"
        )
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match UNITS.iter().find(|(letter, _)| *letter == unit) {
        Some((_, seconds)) => *seconds,
        None if unit.is_empty() && !number.is_empty() && number.bytes().all(|b| b == b'0') => 0,
        None => return Err(bad()),
    };
    if number.is_empty() {
        return Err(bad());
    }
    // A number with more digits than fit is too large, too.
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let too_long = || format!("\"{shown}\" is too long: ten years are the most");
    seconds.filter(|seconds| *seconds <= MAX_DURATION_S).ok_or_else(too_long)
}

/// Writes a number of seconds so that [`parse_duration`] reads it: in the largest unit that
/// measures it, but for a single day or week, which is 24h or 7d.
pub fn format_duration(seconds: u64) -> String {
    if seconds == 0 {
        return "0".to_owned();
    }
    let measures = |(letter, unit): &(&str, u64)| {
        let single = seconds == *unit && ["d", "w"].contains(letter);
        seconds.is_multiple_of(*unit) && !single
    };
    let unit = UNITS.iter().find(|unit| measures(unit));
    unit.map_or_else(String::new, |(letter, unit)| format!("{}{letter}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_as_people_write_it() {
        for (text, seconds) in [
            ("0", 0),
            ("0s", 0),
            ("0w", 0),
            ("1s", 1),
            ("90s", 90),
            ("30m", 1_800),
            ("12h", 43_200),
            ("007d", 604_800),
            ("4w", 2_419_200),
            ("3660d", MAX_DURATION_S),
        ] {
            assert_eq!(parse_duration(text), Ok(seconds), "{text}");
        }
        for bad in [
            "", "1", "s", "h1", "-1h", "+1h", " 1h", "1 h", "1h ", "1H", "1.5h", "1h30m", "1y",
            "1ms", "١h", "0x1h", "never",
        ] {
            let error = parse_duration(bad).unwrap_err();
            assert!(
                error.contains("is no duration: give a number with its unit"),
                "{bad}: {error}"
            );
        }
        for long in ["3661d", "523w", "99999999999999999999999s", "18446744073709551615w"] {
            let error = parse_duration(long).unwrap_err();
            assert!(error.contains("ten years are the most"), "{long}: {error}");
        }
        assert!(parse_duration(&"ä".repeat(1_000)).unwrap_err().len() < 200);
    }

    #[test]
    fn a_duration_is_written_as_it_is_read() {
        for text in
            ["0", "1s", "90s", "1m", "61m", "30m", "1h", "12h", "24h", "2d", "7d", "8d", "4w"]
        {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(format_duration(60), "1m");
        for seconds in (0..10_000).chain([86_399, 86_401, 604_799, MAX_DURATION_S]) {
            assert_eq!(parse_duration(&format_duration(seconds)), Ok(seconds), "{seconds}");
        }
    }
}
