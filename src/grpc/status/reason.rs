//! Our own reasons: names that callers rely on, each with its one sentence. And what makes Sqril's code a reason.

macro_rules! reasons {
    ($($variant:ident = $name:literal: $sentence:literal,)*) => {
        /// A reason in the domain `sqril-grpc`. One may be added, none renamed or removed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $(#[doc = $sentence] $variant,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The `reason` of `ErrorInfo` (AIP-193: at most 63 characters of UPPER_SNAKE_CASE).
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$variant => $name,)*
                }
            }

            /// The status message: a fixed sentence.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Reason::$variant => $sentence,)*
                }
            }
        }
    };
}

reasons! {
    InvalidCustomerId = "INVALID_CUSTOMER_ID": "The customer_id cannot be an identifier of Sqril.",
    EmptyUpdate = "EMPTY_UPDATE": "The request sets no field, so there is nothing to update.",
    InvalidFields = "INVALID_FIELDS": "Some fields are malformed; the details name each.",
    CallerNotAuthenticated = "CALLER_NOT_AUTHENTICATED": "Callers must show who they are; nothing was sent.",
    CallerNotAllowed = "CALLER_NOT_ALLOWED": "This caller is not among those who may call; nothing was sent.",
    DeadlineTooShort = "DEADLINE_TOO_SHORT": "Too little time is left for an update; nothing was sent.",
    Overloaded = "OVERLOADED": "This service has too many calls under way; nothing was sent.",
    Draining = "DRAINING": "This process is about to leave; nothing was sent.",
    CircuitOpen = "CIRCUIT_OPEN": "Sqril has been failing, so nothing is sent for a while.",
    UpstreamUnreachable = "UPSTREAM_UNREACHABLE": "Sqril cannot be reached; nothing was sent.",
    UpstreamTlsFailed = "UPSTREAM_TLS_FAILED": "No secure connection to Sqril can be made; nothing was sent.",
    UpstreamConnectionLost = "UPSTREAM_CONNECTION_LOST": "The connection broke before Sqril answered; the update may have been applied.",
    UpstreamTimeout = "UPSTREAM_TIMEOUT": "Sqril did not answer in time; upstream_outcome says what is known of the update.",
    UpstreamResponseUnreadable = "UPSTREAM_RESPONSE_UNREADABLE": "The update was applied, but Sqril's answer cannot be read.",
    UpstreamResponseForeign = "UPSTREAM_RESPONSE_FOREIGN": "The answer did not come from Sqril; upstream_outcome says what is known of the update.",
    UpstreamIdentityMismatch = "UPSTREAM_IDENTITY_MISMATCH": "Sqril answered for another customer; the update may have been applied.",
    UpstreamUnexpectedStatus = "UPSTREAM_UNEXPECTED_STATUS": "Sqril answered with a status that this call does not have.",
    UpstreamRedirected = "UPSTREAM_REDIRECTED": "The upstream redirects; redirects are never followed.",
    UpstreamRefused = "UPSTREAM_REFUSED": "Sqril refused the update.",
    UpstreamCredentialsRejected = "UPSTREAM_CREDENTIALS_REJECTED": "Sqril does not accept the credentials of this service; its operator must act.",
    UpstreamForbidden = "UPSTREAM_FORBIDDEN": "The update is forbidden.",
    UpstreamEndpointNotFound = "UPSTREAM_ENDPOINT_NOT_FOUND": "The upstream does not have this call; the operator of this service must act.",
    UpstreamContractMismatch = "UPSTREAM_CONTRACT_MISMATCH": "The upstream does not take such requests; this service must be changed.",
    EgressProxyRejected = "EGRESS_PROXY_REJECTED": "The way out refuses this service; its operator must act.",
    UpstreamUnavailable = "UPSTREAM_UNAVAILABLE": "Sqril is not available now; the update was not applied.",
    UpstreamConflict = "UPSTREAM_CONFLICT": "The update conflicts with another change of the customer.",
    CustomerGone = "CUSTOMER_GONE": "The customer no longer exists at Sqril.",
    UpstreamPreconditionFailed = "UPSTREAM_PRECONDITION_FAILED": "The customer or the account is not in a state that allows the update.",
    RequestTooLarge = "REQUEST_TOO_LARGE": "The update is larger than Sqril takes.",
    UpstreamUnprocessable = "UPSTREAM_UNPROCESSABLE": "Sqril cannot process the update's values.",
    UpstreamRateLimited = "UPSTREAM_RATE_LIMITED": "Sqril's rate limit is used up; the update was not applied.",
    UpstreamError = "UPSTREAM_ERROR": "Sqril failed in handling the update; it may have been applied.",
    UpstreamBadGateway = "UPSTREAM_BAD_GATEWAY": "A gateway before Sqril got no proper answer; the update may have been applied.",
    InternalError = "INTERNAL_ERROR": "This service failed by a fault of its own.",
}

/// Sqril's own codes that are known: those that its answers are known to have.
pub(in crate::grpc) const ANNOUNCED: [&str; 11] = [
    "AUTHENTICATION_REQUIRED",
    "CUSTOMER_NOT_ELIGIBLE",
    "IMMUTABLE_FIELDS",
    "INTERNAL_SERVER_ERROR",
    "INVALID_CREDENTIALS",
    "INVALID_REQUEST",
    "KYC_REQUIRED",
    "MISSING_REQUIRED_FIELD",
    "PROVIDER_ERROR",
    "RATE_LIMIT_EXCEEDED",
    "RESOURCE_NOT_FOUND",
];
/// What stands for every other one: a code is Sqril's own text.
pub(in crate::grpc) const OTHER: &str = "OTHER";

/// A reason of Sqril's, as one of a fixed list.
pub(super) fn announced(reason: &str) -> &'static str {
    let known = ANNOUNCED.into_iter().find(|known| *known == reason);
    known.unwrap_or(OTHER)
}

/// Sqril's code as a reason: upper-case, with `-`, `.` and blanks as `_`. `None` if that is not of AIP-193's form.
pub(super) fn normalized(code: &str) -> Option<String> {
    let code: String = code
        .chars()
        .map(|c| match c {
            '-' | '.' | ' ' => '_',
            c => c.to_ascii_uppercase(),
        })
        .collect();
    let inner = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    let bytes = code.as_bytes();
    let fits = (2..=63).contains(&bytes.len())
        && bytes[0].is_ascii_uppercase()
        && bytes.iter().all(|b| inner(*b))
        && bytes[bytes.len() - 1] != b'_';
    fits.then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Others build on these names. A name may be added here; a diff that removes or renames one is a broken promise.
    #[test]
    fn the_list_is_frozen() {
        let names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(
            names,
            [
                "INVALID_CUSTOMER_ID",
                "EMPTY_UPDATE",
                "INVALID_FIELDS",
                "CALLER_NOT_AUTHENTICATED",
                "CALLER_NOT_ALLOWED",
                "DEADLINE_TOO_SHORT",
                "OVERLOADED",
                "DRAINING",
                "CIRCUIT_OPEN",
                "UPSTREAM_UNREACHABLE",
                "UPSTREAM_TLS_FAILED",
                "UPSTREAM_CONNECTION_LOST",
                "UPSTREAM_TIMEOUT",
                "UPSTREAM_RESPONSE_UNREADABLE",
                "UPSTREAM_RESPONSE_FOREIGN",
                "UPSTREAM_IDENTITY_MISMATCH",
                "UPSTREAM_UNEXPECTED_STATUS",
                "UPSTREAM_REDIRECTED",
                "UPSTREAM_REFUSED",
                "UPSTREAM_CREDENTIALS_REJECTED",
                "UPSTREAM_FORBIDDEN",
                "UPSTREAM_ENDPOINT_NOT_FOUND",
                "UPSTREAM_CONTRACT_MISMATCH",
                "EGRESS_PROXY_REJECTED",
                "UPSTREAM_UNAVAILABLE",
                "UPSTREAM_CONFLICT",
                "CUSTOMER_GONE",
                "UPSTREAM_PRECONDITION_FAILED",
                "REQUEST_TOO_LARGE",
                "UPSTREAM_UNPROCESSABLE",
                "UPSTREAM_RATE_LIMITED",
                "UPSTREAM_ERROR",
                "UPSTREAM_BAD_GATEWAY",
                "INTERNAL_ERROR",
            ]
        );
    }

    #[test]
    fn codes_that_become_reasons() {
        let cases = [
            ("INVALID_REQUEST", Some("INVALID_REQUEST")),
            ("invalid-request", Some("INVALID_REQUEST")),
            ("kyc.required now", Some("KYC_REQUIRED_NOW")),
            ("AB", Some("AB")),
            ("A", None),
            ("1ST", None),
            ("_A", None),
            ("A_", None),
            ("A:B", None),
            ("É_CODE", None),
            ("", None),
        ];
        for (code, reason) in cases {
            assert_eq!(normalized(code).as_deref(), reason, "{code:?}");
        }
        assert_eq!(normalized(&"a".repeat(63)), Some("A".repeat(63)));
        assert_eq!(normalized(&"a".repeat(64)), None);
    }
}
