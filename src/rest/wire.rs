//! JSON as Sqril takes and gives it: written exactly, read leniently.
//!
//! An update that was applied must not fail on a part of its answer that is new or odd. So a profile is read member
//! by member: what is unknown is ignored, what is missing or unreadable is remarked on.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::{Value, value::RawValue};

use super::Refusal;
use crate::customer::{CustomerUpdate, Field, Remark, UpdatedCustomer};

/// The first second that a `google.protobuf.Timestamp` can say: 0001-01-01T00:00:00Z.
const FIRST_SECOND: i64 = -62_135_596_800;

/// Why an answer to an update is no profile of the customer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Not one JSON object from the first byte to the last.
    NotAnObject,
    /// It names another customer.
    OtherCustomer,
}

/// The body of the PUT: an object of exactly the fields that are set.
pub(super) fn body(update: &CustomerUpdate) -> Vec<u8> {
    struct Changes<'a>(&'a CustomerUpdate);

    impl Serialize for Changes<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.changes().map(|(field, value)| (field.name(), value)))
        }
    }

    serde_json::to_vec(&Changes(update)).expect("texts under texts always serialize")
}

/// Reads a profile, compares it with what was sent, and remarks on the differences.
pub(super) fn profile(body: &[u8], update: &CustomerUpdate) -> Result<UpdatedCustomer, Unusable> {
    let body = String::from_utf8_lossy(body);
    let members: BTreeMap<String, &RawValue> =
        serde_json::from_str(&body).map_err(|_| Unusable::NotAnObject)?;
    let mut customer = UpdatedCustomer {
        texts: BTreeMap::new(),
        created_at: None,
        updated_at: None,
        allowed: BTreeMap::new(),
        remarks: Vec::new(),
    };
    for &field in Field::ALL {
        let raw = members
            .get(field.name())
            .map(|raw| raw.get())
            .filter(|raw| *raw != "null");
        let read = match (field, raw) {
            (Field::Allowed, None) => Ok(()),
            (_, None) => Err(Remark::Missing),
            (Field::CustomerId, Some(raw)) => identity(raw, update)?,
            (Field::CreatedAt, Some(raw)) => {
                timestamp(raw).map(|at| customer.created_at = Some(at))
            }
            (Field::UpdatedAt, Some(raw)) => {
                timestamp(raw).map(|at| customer.updated_at = Some(at))
            }
            (Field::Allowed, Some(raw)) => corridors(raw, &mut customer.allowed),
            (_, Some(raw)) => text(raw).map(|text| drop(customer.texts.insert(field, text.into()))),
        };
        if let Err(remark) = read {
            customer.remarks.push((field, remark));
        }
    }
    customer.texts.insert(
        Field::CustomerId,
        update.customer_id().expose().to_owned().into(),
    );
    customer.compare(update);
    customer.remarks.sort_unstable();
    Ok(customer)
}

/// Reads what Sqril says in an error; `None` if it is not Sqril who speaks.
pub(super) fn refusal(body: &[u8]) -> Option<Refusal> {
    let mut object: BTreeMap<String, Value> = serde_json::from_slice(body).ok()?;
    let Some(Value::String(code)) = object.remove("error_code") else {
        return None;
    };
    let message = match object.remove("error_message") {
        Some(Value::String(message)) => Some(message.into()),
        _ => None,
    };
    let details = object.remove("details").unwrap_or_default();
    let immutable = details["immutable_fields"].as_array().into_iter().flatten();
    let immutable = immutable
        .filter_map(Value::as_str)
        .map(|name| name.to_owned().into())
        .collect();
    let mut named = Vec::new();
    fields_in(&details, &mut named);
    Some(Refusal {
        code: code.into(),
        message,
        immutable,
        named,
    })
}

/// Checks whose profile it is. A number counts by its digits; what can be nobody's identifier says nothing.
fn identity(raw: &str, update: &CustomerUpdate) -> Result<Result<(), Remark>, Unusable> {
    let asked = update.customer_id().expose();
    match serde_json::from_str(raw) {
        Ok(Value::String(id)) if id == asked => Ok(Ok(())),
        Ok(Value::String(id)) if id.is_empty() => Ok(Err(Remark::Missing)),
        Ok(Value::String(_)) => Err(Unusable::OtherCustomer),
        Ok(Value::Number(_)) if raw != asked => Err(Unusable::OtherCustomer),
        _ => Ok(Err(Remark::Unreadable)),
    }
}

/// A text, verbatim. U+FFFD is what a byte that is no UTF-8 has become, so it makes a text unreadable.
fn text(raw: &str) -> Result<String, Remark> {
    let text: String = serde_json::from_str(raw).map_err(|_| Remark::Unreadable)?;
    if text.contains(char::REPLACEMENT_CHARACTER) {
        Err(Remark::Unreadable)
    } else {
        Ok(text)
    }
}

/// A time with its offset (RFC 3339), in the range of `google.protobuf.Timestamp`.
fn timestamp(raw: &str) -> Result<Timestamp, Remark> {
    let at: Timestamp = text(raw)?.parse().map_err(|_| Remark::Unreadable)?;
    if at.as_second() < FIRST_SECOND {
        Err(Remark::Unreadable)
    } else {
        Ok(at)
    }
}

/// Whether each corridor is open; keeps what can be read.
fn corridors(raw: &str, allowed: &mut BTreeMap<String, bool>) -> Result<(), Remark> {
    let entries: BTreeMap<String, Value> =
        serde_json::from_str(raw).map_err(|_| Remark::Unreadable)?;
    let count = entries.len();
    allowed.extend(
        entries
            .into_iter()
            .filter_map(|(country, open)| Some((country, open.as_bool()?))),
    );
    if allowed.len() == count {
        Ok(())
    } else {
        Err(Remark::Unreadable)
    }
}

/// Collects the contract's fields that a value names, as text or as member, each once. Sqril has no fixed form for
/// this, so any is taken.
fn fields_in(value: &Value, found: &mut Vec<Field>) {
    let mut take = |name: &str| {
        if let Some(field) = Field::from_name(name).filter(|field| !found.contains(field)) {
            found.push(field);
        }
    };
    match value {
        Value::String(name) => take(name),
        Value::Array(items) => items.iter().for_each(|item| fields_in(item, found)),
        Value::Object(members) => {
            members.keys().for_each(|name| take(name));
            members.values().for_each(|member| fields_in(member, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
