//! Whether the number of a process still means the same one.

use std::fs;

/// When a process started, in clock ticks since boot: together with its number it names a process
/// for good.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

/// The second field is the program's name in parentheses, which may itself hold spaces and
/// parentheses.
fn parse_start_time(stat: &str) -> Option<u64> {
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace();
    // Zombies hold nothing any more.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_read_past_a_nasty_name() {
        let fields: Vec<_> = (4..=30).map(|n| n.to_string()).collect();
        let stat = format!("12 (a) b (c) S {}", fields.join(" "));
        assert_eq!(parse_start_time(&stat), Some(22));
        assert_eq!(parse_start_time(&stat.replace(" S ", " Z ")), None);
        assert_eq!(parse_start_time("12 (a"), None);
    }

    #[test]
    fn our_own_start_time_is_stable() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some());
        assert_eq!(start_time(own), start_time(own));
    }
}
