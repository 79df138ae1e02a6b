//! What can become of an update that was not plainly applied, named after what is known of its fate.

use std::{error::Error as StdError, fmt, io, time::Duration};

use super::breaker::Sign;
use crate::customer::{Field, Private};

/// Why the client cannot be built: the system's certificates cannot be loaded, or the proxy's URL is of no use.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BuildError(#[from] reqwest::Error);

/// Why there is no profile to show. `Display` and the sources are for the log: they hold no URL, no body, no value.
#[derive(thiserror::Error)]
pub enum Error {
    /// Most of what was sent lately failed, so nothing is sent until the next probe, in so long.
    #[error("the circuit breaker is open")]
    CircuitOpen(Duration),
    /// The upstream asked for a pause that has so long to go.
    #[error("the upstream's rate limit is used up")]
    QuotaUsed(Duration),
    /// The caller has left, or its deadline has passed, before anything was sent.
    #[error("nobody waits for the update any more")]
    Abandoned,
    /// No connection could be opened: name, route, refusal, time. Nothing was sent.
    #[error("no connection to the upstream")]
    Unreachable(#[source] reqwest::Error),
    /// The connection was opened, but no TLS session on it. Nothing was sent.
    #[error("no TLS session with the upstream")]
    Tls(#[source] reqwest::Error),
    /// The egress proxy wants credentials before it opens a tunnel. Nothing was sent.
    #[error("the egress proxy refused the tunnel")]
    ProxyRefused(#[source] reqwest::Error),
    /// The upstream, or the closed connection itself, shows that the request was never processed.
    #[error("the upstream did not take the request")]
    NotTaken(#[source] reqwest::Error),
    /// The connection broke between the request and the status: nobody knows.
    #[error("connection lost before an answer")]
    Lost(#[source] reqwest::Error),
    /// Time ran out before the whole answer was there.
    #[error("no whole answer in time")]
    TimedOut {
        /// The status of a labelled answer that had begun: the update was applied.
        begun: Option<u16>,
    },
    /// Applied, but the answer is cut short, too long, or no JSON object.
    #[error("the answer to an applied update cannot be read")]
    Unreadable {
        /// 200 or 201.
        status: u16,
    },
    /// A success that does not come from Sqril.
    #[error("the answer is not Sqril's")]
    Foreign {
        /// 200 or 201.
        status: u16,
    },
    /// A success that speaks of somebody else.
    #[error("the answer is another customer's")]
    OtherCustomer {
        /// 200 or 201.
        status: u16,
    },
    /// Any other answer.
    #[error("the upstream answered {}", .0.status)]
    Answered(Answer),
}

/// Shows what [`Error::chain`] does: libraries' errors hold texts of the upstream in theirs.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.chain())
    }
}

impl Error {
    /// Tells apart what was certainly not sent from what may have been. `sent`: whether any of the update was.
    pub(super) fn of(error: reqwest::Error, sent: bool) -> Self {
        let error = error.without_url();
        let causes = || std::iter::successors(error.source(), |cause| source_of(*cause));
        if error.is_connect() {
            // The tunnel's error type is not public; its text is all there is.
            let proxy = "proxy authorization required";
            if causes().any(|cause| cause.to_string().ends_with(proxy)) {
                Error::ProxyRefused(error)
            } else if causes().any(is_tls) {
                Error::Tls(error)
            } else {
                Error::Unreachable(error)
            }
        } else if !sent || causes().any(was_not_taken) {
            Error::NotTaken(error)
        } else {
            Error::Lost(error)
        }
    }

    /// What came of a PUT, in a word for metrics and traces.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Error::CircuitOpen(_) | Error::QuotaUsed(_) | Error::Abandoned => "abandoned",
            Error::Unreachable(_) => "unreachable",
            Error::Tls(_) => "tls_failed",
            Error::ProxyRefused(_) => "proxy_refused",
            Error::NotTaken(_) => "not_taken",
            Error::Lost(_) => "lost",
            Error::TimedOut { .. } => "timed_out",
            Error::Unreadable { .. } => "unreadable",
            Error::Foreign { .. } => "foreign",
            Error::OtherCustomer { .. } => "other_customer",
            Error::Answered(_) => "refused",
        }
    }

    /// The status of the upstream's answer, if one came.
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::CircuitOpen(_)
            | Error::QuotaUsed(_)
            | Error::Abandoned
            | Error::Unreachable(_)
            | Error::Tls(_)
            | Error::ProxyRefused(_)
            | Error::NotTaken(_)
            | Error::Lost(_) => None,
            Error::TimedOut { begun } => *begun,
            Error::Unreadable { status }
            | Error::Foreign { status }
            | Error::OtherCustomer { status } => Some(*status),
            Error::Answered(answer) => Some(answer.status),
        }
    }

    /// The error and its causes, for the log: no URL, no body, no value, and nothing that the upstream wrote.
    pub fn chain(&self) -> String {
        let this: &(dyn StdError + 'static) = self;
        let causes = std::iter::successors(Some(this), |cause| source_of(*cause));
        // What an upstream adds to its GOAWAY is its own text.
        let told = causes.map(|cause| match cause.downcast_ref::<h2::Error>() {
            Some(error) => format!("HTTP/2: {:?}", error.reason()),
            None => cause.to_string(),
        });
        told.collect::<Vec<_>>().join(": ")
    }

    /// What this says of the upstream's health: a refusal says that it answers.
    pub(super) fn sign(&self) -> Sign {
        match self {
            Error::Unreachable(_) | Error::Tls(_) | Error::Lost(_) | Error::TimedOut { .. } => {
                Sign::Failing
            }
            Error::Answered(answer) => match answer.status {
                501 | 505 | 511 => Sign::Alive,
                500..=599 => Sign::Failing,
                _ => Sign::Alive,
            },
            Error::Unreadable { .. } | Error::Foreign { .. } | Error::OtherCustomer { .. } => {
                Sign::Alive
            }
            Error::CircuitOpen(_)
            | Error::QuotaUsed(_)
            | Error::Abandoned
            | Error::ProxyRefused(_)
            | Error::NotTaken(_) => Sign::None,
        }
    }
}

/// An answer that is neither 200 nor 201.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// How long the upstream asks to wait, an hour at most.
    pub retry_after: Option<Duration>,
    /// What Sqril said, if it was Sqril who answered.
    pub refusal: Option<Refusal>,
    /// Whether the credentials were exchanged after the request was built.
    pub credentials_changed: bool,
}

impl Refusal {
    /// Without the texts that must not be told. If the code is one of them, this is not Sqril speaking.
    pub(super) fn without(mut self, is_secret: impl Fn(&str) -> bool) -> Option<Self> {
        self.message = self.message.filter(|text| !is_secret(text.expose()));
        self.immutable.retain(|text| !is_secret(text.expose()));
        (!is_secret(self.code.expose())).then_some(self)
    }
}

/// Sqril speaking: a JSON object with a string `error_code`. All texts are as Sqril sent them and may repeat values.
#[derive(Debug)]
pub struct Refusal {
    /// `error_code`.
    pub code: Private,
    /// `error_message`.
    pub message: Option<Private>,
    /// The strings in `details.immutable_fields`.
    pub immutable: Vec<Private>,
    /// The fields of the contract that `details` names in any other way.
    pub named: Vec<Field>,
}

/// The next cause. An `io::Error` that wraps another error skips it in its own `source`.
fn source_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// Before a request, TLS is the only source of these: tokio-rustls wraps rustls' errors as `InvalidData`, and calls
/// a peer that hangs up in the handshake `UnexpectedEof`.
fn is_tls(cause: &(dyn StdError + 'static)) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
        )
    })
}

/// REFUSED_STREAM and a GOAWAY below the stream mean that the request was not processed (RFC 9113, section 8.7);
/// hyper calls a request canceled only if no byte of it was written.
fn was_not_taken(cause: &(dyn StdError + 'static)) -> bool {
    if let Some(error) = cause.downcast_ref::<h2::Error>() {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    } else {
        cause
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_canceled)
    }
}
