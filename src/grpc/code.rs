//! The status codes' names: as people and dashboards write them, and as the protocol does.

use tonic::Code;

/// Every code's name, in the order of their numbers, as Go's libraries, grpcurl and most dashboards write it.
pub(super) const NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The same as the protocol's own documents, and OpenTelemetry, write it.
const SPELT: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a code.
pub(super) const fn name(code: Code) -> &'static str {
    NAMES[code as usize]
}

/// A code as the protocol spells it.
pub(super) const fn spelt(code: Code) -> &'static str {
    SPELT[code as usize]
}

/// Whether a code says that the server failed (OpenTelemetry's conventions for RPC servers).
pub(super) const fn is_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_the_order_of_numbers() {
        for number in 0..17 {
            let code = Code::from_i32(number);
            let letters = |text: &str| text.replace('_', "").to_ascii_lowercase();
            assert_eq!(
                letters(name(code)).replace("canceled", "cancelled"),
                format!("{code:?}").to_ascii_lowercase()
            );
            assert_eq!(
                letters(spelt(code)),
                format!("{code:?}").to_ascii_lowercase()
            );
        }
    }
}
