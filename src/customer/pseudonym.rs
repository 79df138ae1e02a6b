//! How logs know a customer: by a keyed hash, which whoever has the key can find again and nobody else can undo.

use std::fmt;

use aws_lc_rs::hmac;

use super::CustomerId;

/// The fewest bytes of a key (RFC 2104, section 3: no fewer than the hash has).
pub const MIN_KEY_BYTES: usize = 32;

/// The key of the hash: the process's own, or one that replicas share so that their logs agree.
pub struct HashKey(hmac::Key);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey([hidden])")
    }
}

impl HashKey {
    /// A new key.
    pub fn random() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &aws_lc_rs::rand::SystemRandom::new());
        HashKey(key.expect("the system gives random numbers"))
    }

    /// This key; `None` if it is too short.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= MIN_KEY_BYTES).then(|| HashKey(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// The customer's pseudonym: the first 64 bits of HMAC-SHA256 of the identifier, in hexadecimal digits.
    pub fn pseudonym(&self, id: &CustomerId) -> String {
        let tag = hmac::sign(&self.0, id.expose().as_bytes());
        let mut bits = [0; 8];
        bits.copy_from_slice(&tag.as_ref()[..8]);
        format!("{:016x}", u64::from_be_bytes(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_key_same_pseudonym() {
        let id = CustomerId::parse("cus_1".to_owned()).unwrap();
        let key = HashKey::of(&[b'k'; 32]).unwrap();
        // printf cus_1 | openssl dgst -sha256 -hmac kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
        assert_eq!(key.pseudonym(&id), "cb7d7cb1e80a9512");
        assert_ne!(HashKey::random().pseudonym(&id), key.pseudonym(&id));
        assert!(HashKey::of(&[b'k'; 31]).is_none());
    }
}
