//! When an update is sent a second time: only where it was certainly not applied, where the upstream's own wishes and
//! the caller's deadline allow it, and within a budget.

use std::time::{Duration, SystemTime};

use super::{Answer, Error};

/// The most PUTs for one call.
pub(super) const MAX_ATTEMPTS: u32 = 2;
/// A wait that nobody asked for, with full jitter.
const JITTER: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(2);
/// The longest wait that is waited; a longer one is the caller's to wait.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Reads `Retry-After` in both its forms, seconds and a date (RFC 9110, section 10.2.3), as the time from `now`,
/// an hour at most. A date that has passed is zero; anything else is no answer.
pub(super) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text)
            .ok()?
            .duration_since(now)
            .unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// How long to wait before the second attempt, or `None` if there must be none: `left` is the time to the caller's
/// deadline, `usual` what an attempt usually takes, `dice` a number from 0 up to 1.
pub(super) fn wait(
    error: &Error,
    attempts: u32,
    left: Duration,
    usual: Duration,
    dice: f64,
) -> Option<Duration> {
    let jittered = JITTER.start + (JITTER.end - JITTER.start).mul_f64(dice);
    let wait = match error {
        Error::Unreachable(_) | Error::NotTaken(_) => jittered,
        Error::Answered(Answer {
            status: 408 | 425,
            retry_after,
            ..
        }) => retry_after.unwrap_or(jittered),
        Error::Answered(Answer {
            status: 429,
            retry_after,
            ..
        }) => retry_after.unwrap_or_else(|| unasked(dice)),
        Error::Answered(Answer {
            status: 503,
            retry_after,
            ..
        }) => (*retry_after)?,
        Error::Answered(Answer {
            status: 401,
            credentials_changed: true,
            ..
        }) => Duration::ZERO,
        Error::Answered(_)
        | Error::CircuitOpen(_)
        | Error::QuotaUsed(_)
        | Error::Abandoned
        | Error::Tls(_)
        | Error::ProxyRefused(_)
        | Error::Lost(_)
        | Error::TimedOut { .. }
        | Error::Unreadable { .. }
        | Error::Foreign { .. }
        | Error::OtherCustomer { .. } => return None,
    };
    (attempts < MAX_ATTEMPTS && wait <= MAX_WAIT && wait + usual < left).then_some(wait)
}

/// Every reason of a second attempt.
pub(super) const REASONS: [&str; 7] = [
    "unreachable",
    "not_taken",
    "401",
    "408",
    "425",
    "429",
    "503",
];

/// Why a second attempt follows this.
pub(super) fn reason(first: &Error) -> &'static str {
    match first.status() {
        Some(401) => "401",
        Some(408) => "408",
        Some(425) => "425",
        Some(429) => "429",
        Some(503) => "503",
        Some(_) | None => first.name(),
    }
}

/// What a caller should wait where the upstream does not say: 1 to 1.5 seconds, so that callers do not come back as one.
pub fn unasked(dice: f64) -> Duration {
    Duration::from_secs_f64(1.0 + dice / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        let cases = [
            ("3", Some(3)),
            (" 0 ", Some(0)),
            ("3600", Some(3600)),
            ("3601", Some(3600)),
            ("99999999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun Nov  6 08:49:47 1994", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("Mon, 06 Nov 2034 08:49:37 GMT", Some(3600)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(
                parse_retry_after(text, now),
                seconds.map(Duration::from_secs),
                "{text:?}"
            );
        }
    }

    fn answered(status: u16, retry_after: Option<u64>) -> Error {
        Error::Answered(Answer {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            refusal: None,
            credentials_changed: false,
        })
    }

    /// A real failure to connect: reqwest's errors cannot be made by hand.
    async fn unreachable() -> Error {
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        let error = client.get("http://127.0.0.1:1").send().await.unwrap_err();
        Error::of(error, false)
    }

    #[tokio::test]
    async fn what_is_sent_again() {
        let ms = Duration::from_millis;
        let cases = [
            (unreachable().await, Some(ms(1050)), "row 9"),
            (answered(408, None), Some(ms(1050)), "row 32, jittered"),
            (answered(408, Some(1)), Some(ms(1000)), "row 32, as asked"),
            (answered(425, Some(3)), None, "row 32, too long to wait for"),
            (
                answered(429, None),
                Some(ms(1250)),
                "row 38, as callers are told",
            ),
            (answered(429, Some(0)), Some(ms(0)), "row 38"),
            (answered(429, Some(2)), Some(ms(2000)), "row 38, just"),
            (answered(429, Some(3)), None, "row 38, too long"),
            (answered(503, None), None, "row 43, nothing asked"),
            (answered(503, Some(2)), Some(ms(2000)), "row 43"),
            (answered(503, Some(3)), None, "row 43, too long"),
            (answered(400, Some(0)), None, "refused for good"),
            (answered(401, None), None, "row 27"),
            (
                Error::Answered(Answer {
                    status: 401,
                    retry_after: None,
                    refusal: None,
                    credentials_changed: true,
                }),
                Some(ms(0)),
                "row 27, with the new secret",
            ),
            (answered(409, Some(0)), None, "row 33"),
            (answered(500, Some(0)), None, "may have been applied"),
            (answered(502, Some(0)), None, "may have been applied"),
            (answered(504, Some(0)), None, "may have been applied"),
            (
                Error::TimedOut { begun: None },
                None,
                "may have been applied",
            ),
            (Error::Unreadable { status: 200 }, None, "was applied"),
            (
                Error::Foreign { status: 200 },
                None,
                "may have been applied",
            ),
            (
                Error::OtherCustomer { status: 200 },
                None,
                "may have been applied",
            ),
            (Error::CircuitOpen(ms(1)), None, "not before the next probe"),
            (
                Error::QuotaUsed(ms(1)),
                None,
                "not before the time that was asked for",
            ),
            (Error::Abandoned, None, "nobody waits"),
        ];
        for (error, expected, why) in cases {
            assert_eq!(
                wait(&error, 1, Duration::MAX, ms(0), 0.5),
                expected,
                "{why}"
            );
            assert_eq!(
                wait(&error, 2, Duration::MAX, ms(0), 0.5),
                None,
                "two attempts at most"
            );
        }
    }

    #[test]
    fn only_where_the_deadline_leaves_time_for_it() {
        let ms = Duration::from_millis;
        let error = answered(503, Some(1));
        assert_eq!(wait(&error, 1, ms(1501), ms(500), 0.0), Some(ms(1000)));
        assert_eq!(wait(&error, 1, ms(1500), ms(500), 0.0), None);
        assert_eq!(wait(&error, 1, ms(0), ms(0), 0.0), None);
    }

    #[test]
    fn the_jitter_is_full() {
        let error = answered(408, None);
        assert_eq!(
            wait(&error, 1, Duration::MAX, Duration::ZERO, 0.0),
            Some(JITTER.start)
        );
        assert_eq!(
            wait(&error, 1, Duration::MAX, Duration::ZERO, 1.0),
            Some(JITTER.end)
        );
    }
}
