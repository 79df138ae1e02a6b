//! The sandbox's customers: an invented person, and what may be changed of her.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use crate::customer::Field;

/// The customer that exists at the start.
pub(super) const CUSTOMER_ID: &str = "cus_sandbox";

const NAMES: [&str; 2] = ["name_first", "name_last"];
const UPDATABLE: [&str; 12] = [
    "email",
    "phone",
    "occupation",
    "address",
    "gender",
    "ic_type",
    "ic_number",
    "ic_country",
    "ic_expiry_date",
    "country_of_residence",
    "nationality",
    "dob",
];

/// Whether Sqril has a field of that name.
pub(super) fn is_known(name: &str) -> bool {
    Field::from_name(name).is_some()
}

/// Refuses what Sqril refuses: names, an empty update, values of a wrong type, unknown codes.
pub(super) fn check(asked: &Map<String, Value>) -> Result<(), Answer> {
    let names: Vec<_> = NAMES
        .into_iter()
        .filter(|name| asked.contains_key(*name))
        .collect();
    if !names.is_empty() {
        return Err(Answer::immutable(names));
    }
    if !asked.keys().any(|name| UPDATABLE.contains(&name.as_str())) {
        return Err(Answer::error(
            400,
            "MISSING_REQUIRED_FIELD",
            "Provide at least one field to update.",
        ));
    }
    for (name, value) in asked
        .iter()
        .filter(|(name, _)| UPDATABLE.contains(&name.as_str()))
    {
        let legal = match (name.as_str(), value.as_str()) {
            (_, None) => false,
            ("occupation", Some(code)) => {
                let number = code
                    .strip_prefix("OCC")
                    .and_then(|number| number.parse::<u8>().ok());
                number.is_some_and(|number| {
                    (1..=11).contains(&number) && format!("OCC{number}") == code
                })
            }
            ("ic_type", Some(code)) => matches!(code, "NIC" | "PP" | "WEP"),
            (_, Some(_)) => true,
        };
        if !legal {
            return Err(Answer::error(
                400,
                "INVALID_REQUEST",
                &format!("The value of {name} is not supported."),
            ));
        }
    }
    Ok(())
}

/// A customer's profile.
pub(super) struct Profile(Map<String, Value>);

impl Default for Profile {
    fn default() -> Self {
        Profile::of(CUSTOMER_ID)
    }
}

impl Profile {
    /// The invented person, under this identifier.
    pub(super) fn of(id: &str) -> Self {
        let members = [
            ("customer_id", json!(id)),
            ("name_first", json!("Siti")),
            ("name_last", json!("Contoh")),
            ("gender", json!("F")),
            ("ic_number", json!("X0000001")),
            ("ic_type", json!("PP")),
            ("ic_country", json!("ID")),
            ("occupation", json!("OCC1")),
            ("country_of_residence", json!("ID")),
            ("phone", json!("+620000000001")),
            ("email", json!("siti.contoh@example.com")),
            ("nationality", json!("ID")),
            ("dob", json!("1990-01-31")),
            ("address", json!("Jl. Contoh No. 1, Jakarta")),
            ("ic_expiry_date", json!("2099-01-01")),
            ("created_at", json!("2025-01-02T03:04:05.000Z")),
            ("updated_at", json!("2025-01-02T03:04:05.000Z")),
            ("allowed", json!({"ID": true, "PE": false})),
        ];
        Profile(
            members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Takes over every field that may be changed.
    pub(super) fn apply(&mut self, asked: &Map<String, Value>) {
        for (name, value) in asked
            .iter()
            .filter(|(name, _)| UPDATABLE.contains(&name.as_str()))
        {
            self.set(name, value.clone());
        }
        self.set("updated_at", json!(format!("{:.3}", Timestamp::now())));
    }

    pub(super) fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }
}
