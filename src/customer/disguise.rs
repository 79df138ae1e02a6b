//! The forms in which a text travels: what must not be told must not be told in these either.

use percent_encoding::percent_decode_str;

/// A text as it was before it went into a URL, and into quotes of JSON, if it may have.
pub fn undisguised(text: &str) -> impl Iterator<Item = String> + use<> {
    let in_url = text.contains('%');
    let in_url = in_url.then(|| percent_decode_str(text).decode_utf8_lossy().into_owned());
    let in_json = text.contains('\\').then(|| unescaped(text));
    in_url.into_iter().chain(in_json)
}

/// JSON's escapes of single characters (RFC 8259, section 7) undone.
fn unescaped(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let mut units: Vec<u16> = Vec::with_capacity(text.len());
    let mut rest = text.as_slice();
    while let [first, after @ ..] = rest {
        let unit = match (first, after) {
            ('\\', ['u', digits @ ..]) => digits
                .get(..4)
                .and_then(|digits| u16::from_str_radix(&String::from_iter(digits), 16).ok()),
            _ => None,
        };
        let (unit, character, left) = match (first, after, unit) {
            ('\\', _, Some(unit)) => (Some(unit), None, &after[5..]),
            ('\\', [escaped, after @ ..], None) => (None, Some(escaped), after),
            _ => (None, Some(first), after),
        };
        units.extend(unit);
        units.extend(
            character
                .iter()
                .flat_map(|c| c.encode_utf16(&mut [0; 2]).to_vec()),
        );
        rest = left;
    }
    char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}
