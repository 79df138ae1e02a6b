//! The fields at fault: those that we found, and those that Sqril names.

use tonic_types::FieldViolation;

use super::redact::Redactor;
use crate::{
    customer::{Field, Violation},
    rest::Refusal,
};

/// The most fields of a refusal that are passed on: more than the contract has.
const MAX_NAMED: usize = 24;
/// The most characters of a field's name that the contract does not know.
const MAX_NAME: usize = 40;

/// What was found before anything was sent; a field without a name is the request as a whole.
pub(super) fn found(violations: &[Violation]) -> Vec<FieldViolation> {
    let named = violations.iter().map(|violation| {
        let field = violation.field.map_or("", Field::name);
        new(
            field,
            violation.flaw.reason(),
            &violation.flaw.description(),
        )
    });
    named.collect()
}

/// Row 24: the fields that Sqril calls immutable, each once, under the contract's name or else Sqril's.
pub(super) fn immutable(refusal: &Refusal, redactor: &Redactor) -> Vec<FieldViolation> {
    let mut violations: Vec<FieldViolation> = Vec::new();
    for name in &refusal.immutable {
        let name = match Field::from_name(name.expose()) {
            Some(field) => field.name().to_owned(),
            None => redactor.redact(name.expose(), MAX_NAME).unwrap_or_default(),
        };
        if violations.len() < MAX_NAMED && !names(&violations, &name) {
            violations.push(new(
                &name,
                "IMMUTABLE_FIELD",
                "Sqril does not let this field change.",
            ));
        }
    }
    violations
}

/// Row 37: the immutable fields, and each other field of the contract that the details name.
pub(super) fn unprocessable(refusal: &Refusal, redactor: &Redactor) -> Vec<FieldViolation> {
    let mut violations = immutable(refusal, redactor);
    for field in &refusal.named {
        if !names(&violations, field.name()) {
            violations.push(new(
                field.name(),
                "REFUSED_FIELD",
                "Sqril does not accept this field's value.",
            ));
        }
    }
    violations
}

fn names(violations: &[FieldViolation], field: &str) -> bool {
    violations.iter().any(|violation| violation.field == field)
}

fn new(field: &str, reason: &str, description: &str) -> FieldViolation {
    FieldViolation {
        reason: reason.to_owned(),
        ..FieldViolation::new(field, description)
    }
}
