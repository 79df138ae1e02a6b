//! The name of a call that its caller, our log and Sqril's have in common.

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// 1 to 64 letters, digits, `-`, `_` and `.`: harmless in every header, log and shell, and never an e-mail address.
#[derive(Clone, Debug)]
pub struct RequestId(String);

impl RequestId {
    /// The caller's own id if it is sane and repeats none of these values, else a new one.
    pub fn of<'a>(metadata: &MetadataMap, mut values: impl Iterator<Item = &'a str>) -> Self {
        let given = metadata
            .get(super::REQUEST_ID)
            .and_then(|value| value.to_str().ok());
        let id = given
            .filter(|id| is_sane(id) && !values.any(|value| repeats(id, value)))
            .map_or_else(|| format!("{:032x}", fastrand::u128(..)), str::to_owned);
        RequestId(id)
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn to_metadata(&self) -> MetadataValue<Ascii> {
        self.0.parse().expect("a sane id is a legal header value")
    }
}

fn is_sane(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Whether an id tells a value. One so short that it occurs in any id must be the whole of it.
fn repeats(id: &str, value: &str) -> bool {
    let (id, value) = (id.to_ascii_lowercase(), value.to_ascii_lowercase());
    id == value || value.len() >= 4 && id.contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sane_ids_are_taken() {
        let of = |id: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(super::super::REQUEST_ID, id.parse().unwrap());
            RequestId::of(&metadata, ["cus_42", "M"].into_iter()).0
        };
        for sane in [
            "a",
            "0af7651916cd43dd8448eb211c80319c",
            "svc.A_1-2",
            "m1",
            &"x".repeat(64),
        ] {
            assert_eq!(of(sane), sane);
        }
        for other in [
            "",
            "john@example.com",
            "a b",
            "a\"b",
            &"x".repeat(65),
            "for-CUS_42",
            "m",
        ] {
            assert_ne!(of(other), other);
        }
        assert_eq!(
            RequestId::of(&MetadataMap::new(), std::iter::empty())
                .0
                .len(),
            32
        );
    }
}
