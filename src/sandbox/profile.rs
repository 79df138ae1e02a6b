//! The sandbox's customers: an invented person, and what may be changed of her.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::customer::Field;

/// The customer that exists at the start.
pub(super) const CUSTOMER_ID: &str = "cus_sandbox";

/// What may be changed.
pub(super) const UPDATABLE: [&str; 12] = [
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
