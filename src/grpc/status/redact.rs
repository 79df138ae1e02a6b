//! Takes the caller's values out of texts that Sqril wrote.

use crate::customer::undisguised;

/// Values shorter than this (a gender, a country) occur in innocent words, so they count only as words of their own.
const SHORT: usize = 4;
/// Stands where a value was.
const GAP: char = '…';

/// Knows the values that no text may repeat, whatever their case.
pub(super) struct Redactor {
    /// Folded, longest first: a value may hold another.
    values: Vec<Vec<char>>,
}

impl Redactor {
    pub(super) fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut values: Vec<Vec<char>> = values.map(fold).collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Redactor { values }
    }

    /// The text without control characters and without values, cut to so many characters. `None` if a value would
    /// still show, as it is or in the forms in which it travels.
    pub(super) fn redact(&self, text: &str, characters: usize) -> Option<String> {
        let mut text: Vec<char> = text.chars().filter(|c| !c.is_control()).collect();
        for value in &self.values {
            let mut kept = Vec::with_capacity(text.len());
            let mut at = 0;
            while at < text.len() {
                if occurs_at(&text, at, value, char::is_alphanumeric) {
                    kept.push(GAP);
                    at += value.len();
                } else {
                    kept.push(text[at]);
                    at += 1;
                }
            }
            text = kept;
        }
        text.truncate(characters);
        let clean = !self.occur_in(&text, char::is_alphanumeric)
            && !decoded(&text).any(|text| self.occur_in(&text, char::is_alphanumeric));
        clean.then(|| text.into_iter().collect())
    }

    /// Whether an error code holds a value. A code is one word as far as `_` joins it, so `INVALID_ID` does not hold
    /// the country `ID`.
    pub(super) fn occurs_in_code(&self, code: &str) -> bool {
        let code: Vec<char> = code.chars().collect();
        let joins = |c: char| c.is_alphanumeric() || c == '_';
        self.occur_in(&code, joins) || decoded(&code).any(|code| self.occur_in(&code, joins))
    }

    fn occur_in(&self, text: &[char], joins: fn(char) -> bool) -> bool {
        self.values
            .iter()
            .any(|value| (0..text.len()).any(|at| occurs_at(text, at, value, joins)))
    }
}

/// What a text says if it was encoded on its way here.
fn decoded(text: &[char]) -> impl Iterator<Item = Vec<char>> {
    let readings = undisguised(&String::from_iter(text));
    readings.map(|text| text.chars().filter(|c| !c.is_control()).collect())
}

/// Lower case, one character for each character, so that places in both texts agree.
fn fold(text: &str) -> Vec<char> {
    text.chars().map(folded).collect()
}

fn folded(c: char) -> char {
    if c.is_ascii() {
        c.to_ascii_lowercase()
    } else {
        c.to_lowercase().next().unwrap_or(c)
    }
}

/// Whether a value stands here: anywhere if it is long, and between characters that do not join words if it is short.
fn occurs_at(text: &[char], at: usize, value: &[char], joins: fn(char) -> bool) -> bool {
    let Some(part) = text.get(at..at + value.len()) else {
        return false;
    };
    let joined = |neighbour: Option<&char>| neighbour.is_some_and(|c| joins(*c));
    part.iter().zip(value).all(|(a, b)| folded(*a) == *b)
        && (value.len() >= SHORT
            || !joined(at.checked_sub(1).and_then(|before| text.get(before)))
                && !joined(text.get(at + value.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_out() {
        let cases: [(&[&str], &str, Option<&str>); 16] = [
            (
                &["john@example.com"],
                "john@example.com is taken",
                Some("… is taken"),
            ),
            (&["john"], "JOHN and Johnny", Some("… and …ny")),
            (
                &["Jl. Thamrin", "Jl. Thamrin No. 88"],
                "at Jl. Thamrin No. 88!",
                Some("at …!"),
            ),
            (
                &["ID"],
                "INVALID for ID, (id) and ID2",
                Some("INVALID for …, (…) and ID2"),
            ),
            (&["M"], "M", Some("…")),
            (&["ÉCLAIR"], "un éclair", Some("un …")),
            (&["a…bcdef", "wxyz"], "awxyzbcdef", None),
            (&["john"], "jo\u{0}hn", Some("…")),
            (&["john"], "nothing here", Some("nothing here")),
            (&["cus é&1"], "no /x?id=cus%20%c3%A9%261 here", None),
            (&["a-b-c"], "a%2db%2Dc", None),
            (&[r#"Jl. "A""#], r#"{"a":"jl. \"a\""}"#, None),
            (&["año \u{1F600}"], r"a\u00f1o \ud83d\uDE00", None),
            (
                &["nothing"],
                r"50% of \u12 and \",
                Some(r"50% of \u12 and \"),
            ),
            // Cutting makes a word of what was none.
            (
                &["QX"],
                "0123456789 0123456789 0123456789 01 abcQXQX",
                Some("0123456789 0123456789 0123456789 01 abcQ"),
            ),
            (&["QX"], "0123456789 0123456789 0123456789 01   QXQX", None),
        ];
        for (values, text, expected) in cases {
            let redactor = Redactor::new(values.iter().copied());
            assert_eq!(
                redactor.redact(text, 40).as_deref(),
                expected,
                "{values:?} {text:?}"
            );
        }
    }

    #[test]
    fn codes_that_hold_values() {
        let redactor = Redactor::new(["ID", "John_Doe"].into_iter());
        assert!(!redactor.occurs_in_code("INVALID_ID"));
        assert!(redactor.occurs_in_code("id"));
        assert!(redactor.occurs_in_code("INVALID ID"));
        assert!(redactor.occurs_in_code("JOHN_DOE_EXISTS"));
    }
}
