//! The one table from what went wrong to what the caller is told: code, reason, outcome and details.
//!
//! Three rules carry it. Blame follows whoever can fix it. UNAVAILABLE means that the update was certainly not
//! applied, for meshes and clients repeat it by themselves; CANCELLED is never answered, for the same reason. Only a
//! JSON object with a string `error_code` is Sqril speaking.
//!
//! No text of the upstream leaves here with a value in it that the caller sent, and no status is longer than
//! [`MAX_ENCODED`].
#![deny(clippy::wildcard_enum_match_arm)]

mod reason;
mod redact;
mod violations;

use std::{collections::HashMap, time::Duration};

use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

pub use self::reason::Reason;
pub(super) use self::reason::{ANNOUNCED, OTHER};
use self::{reason::Reason as Why, redact::Redactor};
use super::RequestId;
use crate::{
    admission,
    customer::{CustomerUpdate, Field, Violation},
    identity,
    rest::{Answer, Error, Fate, Refusal, unasked},
};

/// The most bytes of a status on the wire: its message, and its details in base64. Clients give all metadata of a
/// call 8 KiB or more.
pub(super) const MAX_ENCODED: usize = 4096;

/// Clients in Go, Java and C++ take this, in a trailer, as "do not repeat this call" (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
const OURS: &str = "sqril-grpc";
const SQRIL: &str = "api.sqril.com";
/// The most characters of `upstream_error_code`, and of Sqril's message.
const MAX_CODE: usize = 64;
const MAX_MESSAGE: usize = 256;

/// Everything that can end a call other than well.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request cannot be sent.
    Invalid(Vec<Violation>),
    /// The caller may not call.
    NotAdmitted(identity::Refusal),
    /// Too little time is left to send anything.
    DeadlineTooShort,
    /// The call was not taken.
    NotTaken(admission::Refusal),
    /// The caller's deadline is about to pass.
    DeadlinePassed,
    /// The upstream did not answer with a profile.
    Upstream(Error),
    /// A bug of ours.
    Panicked,
}

/// The answer to "did my update happen?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// No byte of the update reached Sqril.
    NotSent,
    /// Sqril, or what stands before it, refused it.
    Rejected,
    /// It was sent and no trustworthy answer came.
    Unknown,
    /// It was applied.
    Applied,
}

impl Outcome {
    /// Every outcome.
    pub(super) const ALL: [Outcome; 4] = [
        Outcome::NotSent,
        Outcome::Rejected,
        Outcome::Unknown,
        Outcome::Applied,
    ];

    /// The value of `upstream_outcome`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Outcome::NotSent => "not_sent",
            Outcome::Rejected => "rejected",
            Outcome::Unknown => "unknown",
            Outcome::Applied => "applied",
        }
    }
}

impl From<Fate> for Outcome {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::NotSent => Outcome::NotSent,
            Fate::Rejected => Outcome::Rejected,
            Fate::Unknown => Outcome::Unknown,
            Fate::Applied(_) => Outcome::Applied,
        }
    }
}

/// What is known of a call beside its failure.
pub(super) struct Context<'a> {
    /// The call's name in logs and upstream.
    pub(super) request_id: &'a RequestId,
    /// The update, if the request was one: its values must not be repeated.
    pub(super) update: Option<&'a CustomerUpdate>,
    /// How many PUTs were begun.
    pub(super) attempts: u32,
    /// What is known of the update.
    pub(super) fate: Fate,
    /// A number from 0 up to 1, for the jitter of a wait that the upstream did not name.
    pub(super) dice: f64,
}

/// What the caller is told, before it is encoded.
pub(super) struct Verdict {
    /// The gRPC code.
    pub(super) code: Code,
    /// The reason of `ErrorInfo`.
    pub(super) reason: String,
    /// The reason as one of a fixed list, for metrics.
    pub(super) label: &'static str,
    /// What became of the update.
    pub(super) outcome: Outcome,
    /// The HTTP status of the upstream's answer.
    pub(super) upstream_status: Option<u16>,
    message: &'static str,
    domain: &'static str,
    upstream_error_code: Option<String>,
    violations: Vec<FieldViolation>,
    retry_in: Option<Duration>,
    resource: Option<String>,
    out_of_quota: bool,
    sqril_says: Option<String>,
}

impl Verdict {
    /// Looks a failure up in the table.
    pub(super) fn new(failure: &Failure, context: &Context<'_>) -> Self {
        use Code::{DataLoss, DeadlineExceeded, Internal, PermissionDenied, ResourceExhausted};
        use Code::{Unauthenticated, Unavailable};
        use Failure::Upstream;
        use Outcome::{Applied, NotSent, Unknown};

        let known = Outcome::from(context.fate);
        let mut verdict = match failure {
            Failure::Invalid(violations) => invalid(violations),
            Failure::NotAdmitted(identity::Refusal::NotAuthenticated) => {
                ours(Unauthenticated, Why::CallerNotAuthenticated, NotSent)
            }
            Failure::NotAdmitted(identity::Refusal::NotAllowed(_)) => {
                ours(PermissionDenied, Why::CallerNotAllowed, NotSent)
            }
            Failure::DeadlineTooShort => ours(DeadlineExceeded, Why::DeadlineTooShort, NotSent),
            Failure::NotTaken(admission::Refusal::Overloaded) => {
                ours(ResourceExhausted, Why::Overloaded, NotSent).retry_in(unasked(context.dice))
            }
            Failure::NotTaken(admission::Refusal::Draining) => {
                ours(Unavailable, Why::Draining, NotSent).retry_in(unasked(context.dice))
            }
            Failure::DeadlinePassed => ours(DeadlineExceeded, Why::UpstreamTimeout, known),
            Failure::Panicked => ours(Internal, Why::InternalError, known),
            Upstream(Error::CircuitOpen(left)) => {
                ours(Unavailable, Why::CircuitOpen, NotSent).retry_in(*left)
            }
            Upstream(Error::QuotaUsed(left)) => Verdict {
                out_of_quota: true,
                ..ours(ResourceExhausted, Why::UpstreamRateLimited, NotSent).retry_in(*left)
            },
            Upstream(Error::Abandoned) => ours(DeadlineExceeded, Why::UpstreamTimeout, NotSent),
            Upstream(Error::Unreachable(_)) => {
                ours(Unavailable, Why::UpstreamUnreachable, NotSent).retry_in(unasked(context.dice))
            }
            Upstream(Error::Tls(_)) => ours(Unavailable, Why::UpstreamTlsFailed, NotSent),
            Upstream(Error::ProxyRefused(_)) => ours(Internal, Why::EgressProxyRejected, NotSent),
            Upstream(Error::NotTaken(_)) => ours(Unavailable, Why::UpstreamUnreachable, NotSent),
            Upstream(Error::Lost(_)) => ours(Code::Unknown, Why::UpstreamConnectionLost, Unknown),
            Upstream(Error::TimedOut { .. }) => ours(DeadlineExceeded, Why::UpstreamTimeout, known),
            Upstream(Error::Unreadable { .. }) => {
                ours(DataLoss, Why::UpstreamResponseUnreadable, Applied)
            }
            Upstream(Error::Foreign { .. }) => {
                ours(Code::Unknown, Why::UpstreamResponseForeign, Unknown)
            }
            Upstream(Error::OtherCustomer { .. }) => {
                ours(Internal, Why::UpstreamIdentityMismatch, Unknown)
            }
            Upstream(Error::Answered(answer)) => answered(answer, context),
        };
        verdict.upstream_status = match (failure, context.fate) {
            (Upstream(error), _) => error.status(),
            (Failure::DeadlinePassed, Fate::Applied(status)) => Some(status),
            (_, _) => None,
        };
        verdict
    }

    /// Encodes what the caller is told, leaving out what is missed least while it is too long.
    pub(super) fn into_status(mut self, context: &Context<'_>) -> Status {
        loop {
            let status = self.encode(context);
            if encoded_len(&status) <= MAX_ENCODED {
                return status;
            }
            if self.violations.len() > 1 {
                self.violations.pop();
            } else if self.sqril_says.take().is_none() {
                return status;
            }
        }
    }

    fn encode(&self, context: &Context<'_>) -> Status {
        let request_id = context.request_id.as_str();
        let mut metadata = HashMap::new();
        let mut put = |key: &str, value: String| metadata.insert(key.to_owned(), value);
        put("upstream_outcome", self.outcome.name().to_owned());
        put("request_id", request_id.to_owned());
        if context.attempts > 0 {
            put("attempts", context.attempts.to_string());
        }
        if let Some(status) = self.upstream_status {
            put("upstream_status", status.to_string());
        }
        if let Some(code) = &self.upstream_error_code {
            put("upstream_error_code", code.clone());
        }

        let mut details = ErrorDetails::with_error_info(&self.reason, self.domain, metadata);
        details.set_request_info(request_id, "");
        if !self.violations.is_empty() {
            details.set_bad_request(self.violations.clone());
        }
        if self.retry_in.is_some() {
            details.set_retry_info(self.retry_in);
        }
        if let Some(id) = &self.resource {
            details.set_resource_info("customer", id, "", "");
        }
        if self.out_of_quota {
            details.add_quota_failure_violation(
                SQRIL,
                "Sqril's rate limit for the account is used up.",
            );
        }
        if let Some(message) = &self.sqril_says {
            details.set_localized_message("en-US", message);
        }

        let mut headers = MetadataMap::new();
        headers.insert(super::REQUEST_ID, context.request_id.to_metadata());
        if matches!(self.outcome, Outcome::Unknown | Outcome::Applied) {
            headers.insert(PUSHBACK, MetadataValue::from_static("-1"));
        }
        Status::with_error_details_and_metadata(self.code, self.message, details, headers)
    }

    fn retry_in(self, wait: Duration) -> Self {
        Verdict {
            retry_in: Some(wait),
            ..self
        }
    }

    fn resource(self, update: Option<&CustomerUpdate>) -> Self {
        Verdict {
            resource: update.map(|update| update.customer_id().expose().to_owned()),
            ..self
        }
    }

    fn violations(self, violations: Vec<FieldViolation>) -> Self {
        Verdict { violations, ..self }
    }

    /// Adds what Sqril said: its code as the reason if it is fit for one, its message without the caller's values.
    fn in_words_of(mut self, refusal: &Refusal, redactor: &Redactor) -> Self {
        let printable = refusal
            .code
            .expose()
            .chars()
            .filter(|c| matches!(c, ' '..='~'));
        let code: String = printable.take(MAX_CODE).collect();
        let reason = reason::normalized(refusal.code.expose());
        let repeats = [Some(&code), reason.as_ref()]
            .into_iter()
            .flatten()
            .any(|text| redactor.occurs_in_code(text));
        if !repeats {
            self.upstream_error_code = Some(code);
            if let Some(reason) = reason {
                self.label = reason::announced(&reason);
                self.reason = reason;
                self.domain = SQRIL;
            }
        }
        let message = refusal
            .message
            .as_ref()
            .and_then(|message| redactor.redact(message.expose(), MAX_MESSAGE));
        self.sqril_says = message.filter(|message| !message.trim().is_empty());
        self
    }
}

/// The bytes of a status on the wire: an upper bound, for percent-encoding does not touch our own sentences.
fn encoded_len(status: &Status) -> usize {
    status.message().len() + status.details().len().div_ceil(3) * 4
}

/// A verdict in our own words.
fn ours(code: Code, reason: Why, outcome: Outcome) -> Verdict {
    Verdict {
        code,
        reason: reason.name().to_owned(),
        label: reason.name(),
        outcome,
        message: reason.sentence(),
        domain: OURS,
        upstream_status: None,
        upstream_error_code: None,
        violations: Vec::new(),
        retry_in: None,
        resource: None,
        out_of_quota: false,
        sqril_says: None,
    }
}

/// Rows 1 to 3: the first row that applies gives the reason, the details have all violations.
fn invalid(found: &[Violation]) -> Verdict {
    let about = |field: Option<Field>| found.iter().any(|violation| violation.field == field);
    let why = if about(Some(Field::CustomerId)) {
        Why::InvalidCustomerId
    } else if about(None) {
        Why::EmptyUpdate
    } else {
        Why::InvalidFields
    };
    ours(Code::InvalidArgument, why, Outcome::NotSent).violations(violations::found(found))
}

/// Rows 21 to 45: by the HTTP status first, by whether Sqril speaks second, by what it says last.
fn answered(answer: &Answer, context: &Context<'_>) -> Verdict {
    use Code::{Aborted, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument};
    use Code::{NotFound, PermissionDenied, ResourceExhausted, Unavailable};
    use Outcome::{NotSent, Rejected, Unknown};

    let redactor = Redactor::new(context.update.into_iter().flat_map(CustomerUpdate::values));
    let refusal = answer.refusal.as_ref();
    // Sqril's code as the reason where it speaks and its code is fit for one, our own reason elsewhere.
    let sqrils = |code, why, outcome| match refusal {
        Some(refusal) => ours(code, why, outcome).in_words_of(refusal, &redactor),
        None => ours(code, why, outcome),
    };
    // Our own reason whoever speaks, with Sqril's words beside it.
    let always = |code, why: Why, outcome| {
        let (reason, label) = (why.name().to_owned(), why.name());
        Verdict {
            reason,
            label,
            domain: OURS,
            ..sqrils(code, why, outcome)
        }
    };
    let wait = answer.retry_after.unwrap_or_else(|| unasked(context.dice));

    match answer.status {
        0..=299 | 600.. => always(Code::Unknown, Why::UpstreamUnexpectedStatus, Unknown),
        303 => always(Code::Unknown, Why::UpstreamRedirected, Unknown),
        300..=302 | 304..=399 => always(Internal, Why::UpstreamRedirected, Rejected),
        400 => match refusal {
            None => ours(Internal, Why::UpstreamResponseForeign, Rejected),
            Some(refusal) => sqrils(bad_request(refusal), Why::UpstreamRefused, Rejected)
                .violations(violations::immutable(refusal, &redactor)),
        },
        401 => always(Internal, Why::UpstreamCredentialsRejected, Rejected),
        403 if refusal.is_some() => sqrils(PermissionDenied, Why::UpstreamForbidden, Rejected),
        403 => ours(Internal, Why::UpstreamForbidden, Rejected),
        404 if refusal.is_some() => {
            sqrils(NotFound, Why::UpstreamRefused, Rejected).resource(context.update)
        }
        404 => ours(Internal, Why::UpstreamEndpointNotFound, Rejected),
        405 | 406 | 415 | 431 | 501 | 505 => {
            always(Internal, Why::UpstreamContractMismatch, Rejected)
        }
        407 | 511 => always(Internal, Why::EgressProxyRejected, NotSent),
        408 | 425 => always(Unavailable, Why::UpstreamUnavailable, Rejected).retry_in(wait),
        409 => sqrils(Aborted, Why::UpstreamConflict, Rejected),
        410 => sqrils(NotFound, Why::CustomerGone, Rejected).resource(context.update),
        402 | 412 | 423 | 428 => sqrils(
            FailedPrecondition,
            Why::UpstreamPreconditionFailed,
            Rejected,
        ),
        413 | 414 => always(InvalidArgument, Why::RequestTooLarge, Rejected),
        422 => sqrils(InvalidArgument, Why::UpstreamUnprocessable, Rejected).violations(
            refusal.map_or_else(Vec::new, |refusal| {
                violations::unprocessable(refusal, &redactor)
            }),
        ),
        429 => {
            let verdict = sqrils(ResourceExhausted, Why::UpstreamRateLimited, Rejected);
            Verdict {
                out_of_quota: true,
                ..verdict.retry_in(wait)
            }
        }
        451 => sqrils(PermissionDenied, Why::UpstreamForbidden, Rejected),
        411 | 416..=421 | 424 | 426 | 427 | 430 | 432..=450 | 452..=499 => {
            let code = if refusal.is_some() {
                FailedPrecondition
            } else {
                Internal
            };
            sqrils(code, Why::UpstreamUnexpectedStatus, Rejected)
        }
        502 => always(Code::Unknown, Why::UpstreamBadGateway, Unknown),
        503 => {
            let verdict = always(Unavailable, Why::UpstreamUnavailable, Rejected);
            Verdict {
                retry_in: answer.retry_after,
                ..verdict
            }
        }
        504 => always(DeadlineExceeded, Why::UpstreamTimeout, Unknown),
        500 | 506..=510 | 512..=599 => sqrils(Code::Unknown, Why::UpstreamError, Unknown),
    }
}

/// Rows 24 and 25: what Sqril says with a 400. Immutable fields outweigh the code.
fn bad_request(refusal: &Refusal) -> Code {
    match reason::normalized(refusal.code.expose()).as_deref() {
        _ if !refusal.immutable.is_empty() => Code::InvalidArgument,
        Some("KYC_REQUIRED" | "CUSTOMER_NOT_ELIGIBLE") => Code::FailedPrecondition,
        Some("RESOURCE_NOT_FOUND") => Code::NotFound,
        Some(_) | None => Code::InvalidArgument,
    }
}
