//! The domain: what may be asked of a customer's profile, and what came of it. Knows neither gRPC nor HTTP.
//!
//! A [`CustomerUpdate`] exists only if it may be sent: [`CustomerUpdate::parse`] is the one way to it and reports
//! every [`Violation`] at once. Only syntax is checked here; business rules are Sqril's.

mod disguise;
mod pseudonym;
mod syntax;

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;

pub use self::{
    disguise::undisguised,
    pseudonym::{HashKey, MIN_KEY_BYTES},
    syntax::Flaw,
};

/// A text about a person, or one that may repeat such a text. Shows nothing of itself in `Debug`, has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Private(String);

impl Private {
    /// The text itself: for the wire, never for a log or a message.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Gives the text away: for the wire, never for a log or a message.
    pub fn into_exposed(self) -> String {
        self.0
    }
}

impl From<String> for Private {
    fn from(text: String) -> Self {
        Private(text)
    }
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[private]")
    }
}

macro_rules! fields {
    ($($variant:ident = $name:literal,)*) => {
        /// A field of a customer's profile, in the order of the contract. Sqril and the contract use the same names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Field {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Field {
            /// Every field, in the order of the contract.
            pub const ALL: &[Field] = &[$(Field::$variant,)*];

            /// The field's name, as Sqril and the contract spell it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Field::$variant => $name,)*
                }
            }

            /// The field of that name, if there is one.
            pub fn from_name(name: &str) -> Option<Field> {
                match name {
                    $($name => Some(Field::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

fields! {
    CustomerId = "customer_id",
    NameFirst = "name_first",
    NameLast = "name_last",
    Gender = "gender",
    IcNumber = "ic_number",
    IcType = "ic_type",
    IcCountry = "ic_country",
    Occupation = "occupation",
    CountryOfResidence = "country_of_residence",
    Phone = "phone",
    Email = "email",
    Nationality = "nationality",
    Dob = "dob",
    Address = "address",
    IcExpiryDate = "ic_expiry_date",
    CreatedAt = "created_at",
    UpdatedAt = "updated_at",
    Allowed = "allowed",
}

/// Why a request cannot be sent: a flaw and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field; `None` for the request as a whole.
    pub field: Option<Field>,
    /// What is wrong with it.
    pub flaw: Flaw,
}

/// The identifier that Sqril gave a customer: 1 to 128 bytes, without `/` and control characters.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerId(Private);

impl CustomerId {
    /// Takes an identifier, or says what is wrong with it.
    pub fn parse(text: String) -> Result<Self, Flaw> {
        syntax::check(Field::CustomerId, &text)?;
        Ok(CustomerId(Private(text)))
    }

    /// The identifier itself: for the wire, never for a log or a message.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// An update that may be sent: a customer, and at least one field with the value it shall have.
pub struct CustomerUpdate {
    customer_id: CustomerId,
    changes: Vec<(Field, Private)>,
}

impl CustomerUpdate {
    /// Takes the fields that are set, each with its value (or with the flaw that was found in reading it), in the
    /// order in which they are sent. Reports every violation at once.
    pub fn parse(
        customer_id: String,
        set: impl IntoIterator<Item = (Field, Result<String, Flaw>)>,
    ) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let mut violate = |field, flaw| violations.push(Violation { field, flaw });

        let customer_id = CustomerId::parse(customer_id);
        if let Err(flaw) = &customer_id {
            violate(Some(Field::CustomerId), *flaw);
        }
        let mut changes = Vec::new();
        let mut empty = true;
        for (field, value) in set {
            empty = false;
            match value.and_then(|text| syntax::check(field, &text).map(|()| text)) {
                Ok(text) => changes.push((field, Private(text))),
                Err(flaw) => violate(Some(field), flaw),
            }
        }
        if empty {
            violate(None, Flaw::NothingSet);
        }
        match customer_id {
            Ok(customer_id) if violations.is_empty() => Ok(CustomerUpdate {
                customer_id,
                changes,
            }),
            _ => Err(violations),
        }
    }

    /// Whom to change.
    pub fn customer_id(&self) -> &CustomerId {
        &self.customer_id
    }

    /// What to change: every field that is set with its value, and nothing else.
    pub fn changes(&self) -> impl ExactSizeIterator<Item = (Field, &str)> {
        self.changes
            .iter()
            .map(|(field, value)| (*field, value.expose()))
    }

    /// Every value that the caller sent, the customer's identifier among them: what no message may repeat.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.customer_id.expose()).chain(self.changes().map(|(_, value)| value))
    }
}

/// What is the matter with a part of Sqril's answer to an update that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remark {
    /// The field is not there, or is null.
    Missing,
    /// The field is there in a form that cannot be read.
    Unreadable,
    /// The field has a code that the contract does not know.
    Unrecognized,
    /// The field has another value than was sent.
    Normalized,
}

/// A customer's profile after an update, as far as Sqril's answer could be read.
pub struct UpdatedCustomer {
    /// The texts that were there.
    pub texts: BTreeMap<Field, Private>,
    /// When the customer was registered.
    pub created_at: Option<Timestamp>,
    /// When the profile was last changed.
    pub updated_at: Option<Timestamp>,
    /// Whether a corridor is open to the customer, by its country.
    pub allowed: BTreeMap<String, bool>,
    /// What was missing, odd or other than sent.
    pub remarks: Vec<(Field, Remark)>,
}

impl UpdatedCustomer {
    /// Whether this remark was made on this field.
    pub fn remarked(&self, field: Field, remark: Remark) -> bool {
        self.remarks.contains(&(field, remark))
    }

    /// Remarks on every field whose value is there and is not the one that was sent.
    pub fn compare(&mut self, update: &CustomerUpdate) {
        for (field, sent) in update.changes() {
            if self
                .texts
                .get(&field)
                .is_some_and(|stored| stored.expose() != sent)
            {
                self.remarks.push((field, Remark::Normalized));
            }
        }
    }
}
