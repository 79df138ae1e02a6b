//! The syntax of each field of an update, and the names of what can be wrong with it. The limits are part of the
//! contract, so they are no settings.

use jiff::civil::Date;

use super::Field;

/// What can be wrong with a value, or with the request as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing to change.
    NothingSet,
    /// Set, but to an empty text; or a required field that is not set.
    Empty,
    /// More bytes than this.
    TooLong(usize),
    /// A control character (Unicode category Cc).
    ControlCharacter,
    /// A `/` in an identifier.
    Slash,
    /// No `@` with something on both sides.
    Email,
    /// Not `+` and 7 to 15 digits of which the first is not 0 (E.164).
    Phone,
    /// Not a day that exists in the form `YYYY-MM-DD` (ISO 8601).
    Date,
    /// Not two upper-case letters (ISO 3166-1 alpha-2).
    Country,
    /// An enum's zero.
    Unspecified,
    /// A number that the enum does not have.
    UnknownNumber,
}

impl Flaw {
    /// The `reason` of the `FieldViolation`: a name that callers rely on.
    pub const fn reason(self) -> &'static str {
        match self {
            Flaw::NothingSet => "NOTHING_SET",
            Flaw::Empty => "EMPTY",
            Flaw::TooLong(_) => "TOO_LONG",
            Flaw::ControlCharacter => "CONTROL_CHARACTER",
            Flaw::Slash => "SLASH",
            Flaw::Email => "MALFORMED_EMAIL",
            Flaw::Phone => "MALFORMED_PHONE",
            Flaw::Date => "MALFORMED_DATE",
            Flaw::Country => "MALFORMED_COUNTRY",
            Flaw::Unspecified => "UNSPECIFIED",
            Flaw::UnknownNumber => "UNKNOWN_NUMBER",
        }
    }

    /// What a developer should know: a sentence without a value.
    pub fn description(self) -> String {
        match self {
            Flaw::NothingSet => "Set at least one field besides customer_id.".into(),
            Flaw::Empty => "Must not be empty.".into(),
            Flaw::TooLong(limit) => format!("Must be at most {limit} bytes long."),
            Flaw::ControlCharacter => "Must not hold control characters.".into(),
            Flaw::Slash => "Must not hold \"/\".".into(),
            Flaw::Email => "Must hold an \"@\" with something on both sides.".into(),
            Flaw::Phone => "Must be \"+\" and 7 to 15 digits, the first not 0.".into(),
            Flaw::Date => "Must be a day that exists, as YYYY-MM-DD.".into(),
            Flaw::Country => "Must be two upper-case letters (ISO 3166-1 alpha-2).".into(),
            Flaw::Unspecified => {
                "Must not be the enum's zero; leave the field unset instead.".into()
            }
            Flaw::UnknownNumber => "Must be a number of the enum.".into(),
        }
    }
}

/// Checks a value against the syntax of its field.
pub(super) fn check(field: Field, text: &str) -> Result<(), Flaw> {
    let limit = match field {
        Field::CustomerId => 128,
        Field::Address => 1024,
        _ => 256,
    };
    demand(!text.is_empty(), Flaw::Empty)?;
    demand(text.len() <= limit, Flaw::TooLong(limit))?;
    demand(!text.chars().any(char::is_control), Flaw::ControlCharacter)?;
    match field {
        Field::CustomerId => demand(!text.contains('/'), Flaw::Slash),
        Field::Email => demand(is_email(text), Flaw::Email),
        Field::Phone => demand(is_phone(text), Flaw::Phone),
        Field::Dob | Field::IcExpiryDate => demand(is_date(text), Flaw::Date),
        Field::IcCountry | Field::CountryOfResidence | Field::Nationality => {
            demand(is_country(text), Flaw::Country)
        }
        _ => Ok(()),
    }
}

fn demand(holds: bool, flaw: Flaw) -> Result<(), Flaw> {
    if holds { Ok(()) } else { Err(flaw) }
}

fn is_email(text: &str) -> bool {
    let inner = text.as_bytes().get(1..text.len() - 1);
    inner.is_some_and(|inner| inner.contains(&b'@'))
}

/// E.164 has at most 15 digits; the shortest numbers in use, country code included, have 7.
fn is_phone(text: &str) -> bool {
    text.strip_prefix('+').is_some_and(|digits| {
        (7..=15).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !digits.starts_with('0')
    })
}

fn is_date(text: &str) -> bool {
    let shape = text.bytes().enumerate().all(|(i, b)| {
        if i == 4 || i == 7 {
            b == b'-'
        } else {
            b.is_ascii_digit()
        }
    });
    text.len() == 10 && shape && text.parse::<Date>().is_ok()
}

fn is_country(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rule at its edges: what just passes, and what just does not.
    #[test]
    fn edges() {
        let long = |n| "x".repeat(n);
        let cases = [
            (Field::CustomerId, long(128), Ok(())),
            (Field::CustomerId, long(129), Err(Flaw::TooLong(128))),
            (Field::CustomerId, String::new(), Err(Flaw::Empty)),
            (Field::CustomerId, "a/b".into(), Err(Flaw::Slash)),
            (
                Field::CustomerId,
                "a\u{7f}b".into(),
                Err(Flaw::ControlCharacter),
            ),
            (Field::CustomerId, "%2f?&#=+ ü".into(), Ok(())),
            (Field::Gender, long(256), Ok(())),
            (Field::Gender, "ü".repeat(129), Err(Flaw::TooLong(256))),
            (Field::Address, long(1024), Ok(())),
            (Field::Address, long(1025), Err(Flaw::TooLong(1024))),
            (
                Field::Address,
                "two\nlines".into(),
                Err(Flaw::ControlCharacter),
            ),
            (
                Field::Address,
                "c1 \u{85}".into(),
                Err(Flaw::ControlCharacter),
            ),
            (Field::Email, "a@b".into(), Ok(())),
            (Field::Email, "\"a@b\"@c".into(), Ok(())),
            (Field::Email, "@b".into(), Err(Flaw::Email)),
            (Field::Email, "a@".into(), Err(Flaw::Email)),
            (Field::Email, "@".into(), Err(Flaw::Email)),
            (Field::Email, "x".into(), Err(Flaw::Email)),
            (Field::Email, "a@@".into(), Ok(())),
            (Field::Email, "ab".into(), Err(Flaw::Email)),
            (Field::Phone, "+1234567".into(), Ok(())),
            (Field::Phone, "+123456".into(), Err(Flaw::Phone)),
            (Field::Phone, "+123456789012345".into(), Ok(())),
            (Field::Phone, "+1234567890123456".into(), Err(Flaw::Phone)),
            (Field::Phone, "+0234567".into(), Err(Flaw::Phone)),
            (Field::Phone, "1234567".into(), Err(Flaw::Phone)),
            (Field::Phone, "+12 34567".into(), Err(Flaw::Phone)),
            (Field::Dob, "2024-02-29".into(), Ok(())),
            (Field::Dob, "2023-02-29".into(), Err(Flaw::Date)),
            (Field::Dob, "2023-2-28".into(), Err(Flaw::Date)),
            (Field::Dob, "2023-02-28T00:00".into(), Err(Flaw::Date)),
            (Field::Dob, "20230228".into(), Err(Flaw::Date)),
            (Field::Dob, "+023-02-28".into(), Err(Flaw::Date)),
            (Field::IcExpiryDate, "2099-01-01".into(), Ok(())),
            (Field::IcExpiryDate, "2099-00-01".into(), Err(Flaw::Date)),
            (Field::IcCountry, "ID".into(), Ok(())),
            (Field::Nationality, "id".into(), Err(Flaw::Country)),
            (Field::CountryOfResidence, "IDN".into(), Err(Flaw::Country)),
        ];
        for (field, text, expected) in cases {
            assert_eq!(check(field, &text), expected, "{field:?} {text:?}");
        }
    }
}
