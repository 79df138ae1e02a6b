//! The one credential that may change any customer of the account.

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

/// The façade's own client id and secret at Sqril. A caller's credentials are never sent there.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The client id: without `:`, which ends it on the wire.
    pub id: String,
    /// The client secret.
    pub secret: SecretString,
}

impl Credentials {
    /// The value of `Authorization`, in UTF-8 (RFC 7617). Marked as sensitive, so that no library shows it.
    pub(super) fn authorization(&self) -> HeaderValue {
        let pair = SecretString::from(format!("{}:{}", self.id, self.secret.expose_secret()));
        let mut value = HeaderValue::try_from(format!(
            "Basic {}",
            BASE64_STANDARD.encode(pair.expose_secret())
        ))
        .expect("base64 is always a legal header value");
        value.set_sensitive(true);
        value
    }
}
