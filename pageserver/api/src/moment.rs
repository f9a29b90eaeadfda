//! Moments of a branch's past, as bodies of the API have them and as people write them.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A moment in a branch's history. Exactly one form is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// A point in time, RFC 3339.
    #[schema(value_type = String, format = DateTime)]
    Time(Timestamp),
    /// A write-ahead log location as Postgres prints it, such as `0/16B3748`.
    Lsn(String),
    /// A position of the page store.
    Position(u64),
}

/// Reads a moment as people write it: RFC 3339, an LSN, a position, or how long ago, such as `10m`
/// or `1h30m`.
impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Moment::Lsn(text.to_owned()));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(position) = text.parse()
        {
            return Ok(Moment::Position(position));
        }
        if let Ok(time) = text.parse() {
            return Ok(Moment::Time(time));
        }
        let ago = text.parse::<SignedDuration>().ok().filter(|ago| ago.is_positive());
        let then = ago.and_then(|ago| {
            let then = Timestamp::now().checked_sub(ago).ok()?;
            if ago.as_secs() < 60 {
                return Some(then);
            }
            // Rounded, so that all who ask about the same time mean the same moment.
            Timestamp::from_second(then.as_second().div_euclid(10) * 10).ok()
        });
        then.map(Moment::Time).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            format!(
                "\"{shown}\" is no moment: give a time with its zone such as 2026-11-20T10:00:00Z, \
                 how long ago such as 10m, an LSN such as 0/16B3748, or a position"
            )
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Moment::Time(time) => write!(f, "{time}"),
            Moment::Lsn(lsn) => write!(f, "LSN {}", lsn.chars().take(40).collect::<String>()),
            Moment::Position(position) => write!(f, "position {position}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_as_people_write_it() {
        let time = Moment::Time("2026-11-20T10:00:00Z".parse().unwrap());
        for text in ["2026-11-20T10:00:00Z", "2026-11-20T12:00:00+02:00", "2026-11-20 10:00:00.0Z"]
        {
            assert_eq!(text.parse(), Ok(time.clone()), "{text}");
        }
        assert_eq!("0/16B3748".parse(), Ok(Moment::Lsn("0/16B3748".to_owned())));
        assert_eq!("1099511628000".parse(), Ok(Moment::Position(1_099_511_628_000)));
        let Ok(Moment::Time(ago)) = "1h30m".parse() else { panic!("1h30m is a time") };
        let seconds = Timestamp::now().as_second() - ago.as_second();
        assert!((5_400..5_480).contains(&seconds) && ago.as_second() % 10 == 0, "{seconds}");
        for bad in [
            "",
            "yesterday",
            "2026-11-20",
            "2026-11-20T10:00:00",
            "-10m",
            "99999999999999999999999",
        ] {
            assert!(bad.parse::<Moment>().unwrap_err().contains("is no moment"), "{bad}");
        }
    }
}
