//! How long a call may take: what its caller allows, within what we allow.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use super::Deadlines;

/// How long before the caller's deadline our answer leaves, so that it arrives in time.
const MARGIN: Duration = Duration::from_millis(20);

/// The end of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
    too_short: bool,
}

impl Deadline {
    /// The end of a call that has just arrived with this metadata.
    pub(super) fn of(metadata: &MetadataMap, limits: Deadlines) -> Self {
        let asked = metadata
            .get("grpc-timeout")
            .and_then(|value| parse_grpc_timeout(value.to_str().ok()?));
        let left = asked.unwrap_or(limits.max).min(limits.max);
        let too_short = left < limits.floor;
        // Where nothing will be sent there is nothing to wait for.
        let wait = if too_short {
            limits.max
        } else {
            left.saturating_sub(MARGIN)
        };
        Deadline {
            at: Instant::now() + wait,
            too_short,
        }
    }

    /// When the caller must be answered.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Whether there is too little time to send anything.
    pub(super) fn is_too_short(&self) -> bool {
        self.too_short
    }
}

/// At most 8 digits and a unit (gRPC over HTTP/2, "Timeout"). Anything else is as if it was not there.
fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_the_protocol_writes_them() {
        let cases = [
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999H", Some(Duration::from_secs(359_999_996_400))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("00000004m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("", None),
            ("S", None),
            ("1", None),
            ("100000000S", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            ("1s", None),
            ("1 S", None),
            ("1é", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_grpc_timeout(text), expected, "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_smaller_deadline_holds_less_the_margin() {
        let limits = Deadlines {
            max: Duration::from_secs(30),
            floor: Duration::from_millis(50),
        };
        let cases = [
            (None, Duration::from_millis(29_980), false),
            (Some("1S"), Duration::from_millis(980), false),
            (Some("60S"), Duration::from_millis(29_980), false),
            (Some("50m"), Duration::from_millis(30), false),
            (Some("49m"), Duration::from_secs(30), true),
            (Some("0n"), Duration::from_secs(30), true),
            (Some("nonsense"), Duration::from_millis(29_980), false),
        ];
        for (asked, wait, too_short) in cases {
            let mut metadata = MetadataMap::new();
            if let Some(asked) = asked {
                metadata.insert("grpc-timeout", asked.parse().unwrap());
            }
            let deadline = Deadline::of(&metadata, limits);
            assert_eq!(deadline.at() - Instant::now(), wait, "{asked:?}");
            assert_eq!(deadline.is_too_short(), too_short, "{asked:?}");
        }
    }
}
