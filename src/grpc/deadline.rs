//! How long a call may take: what its caller allows, within what we allow.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use super::Deadlines;

/// How long before the caller's deadline our answer leaves, so that it arrives in time.
const MARGIN: Duration = Duration::from_millis(20);

/// When the caller of a call that has just arrived must be answered. `None` if too little time is left to send
/// anything.
pub(super) fn deadline(metadata: &MetadataMap, limits: Deadlines) -> Option<Instant> {
    let asked = metadata
        .get("grpc-timeout")
        .and_then(|value| parse_grpc_timeout(value.to_str().ok()?));
    let left = asked.unwrap_or(limits.max).min(limits.max);
    (left >= limits.floor).then(|| Instant::now() + left.saturating_sub(MARGIN))
}

/// At most 8 digits and a unit (gRPC over HTTP/2, "Timeout"). Anything else is as if it was not there.
pub(super) fn parse_grpc_timeout(text: &str) -> Option<Duration> {
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
            (None, Some(29_980)),
            (Some("1S"), Some(980)),
            (Some("60S"), Some(29_980)),
            (Some("50m"), Some(30)),
            (Some("49m"), None),
            (Some("0n"), None),
            (Some("nonsense"), Some(29_980)),
        ];
        for (asked, wait) in cases {
            let mut metadata = MetadataMap::new();
            if let Some(asked) = asked {
                metadata.insert("grpc-timeout", asked.parse().unwrap());
            }
            let wait = wait.map(|wait| Instant::now() + Duration::from_millis(wait));
            assert_eq!(deadline(&metadata, limits), wait, "{asked:?}");
        }
    }
}
