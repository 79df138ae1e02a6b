//! The one credential that may change any customer of the account.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::body::Bytes;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::customer::undisguised;

/// The façade's own client id and secret at Sqril. A caller's credentials are never sent there. The secret is
/// zeroed when dropped.
#[derive(Clone)]
pub struct Credentials {
    /// The client id: without `:`, which ends it on the wire.
    pub id: String,
    /// The client secret.
    pub secret: SecretString,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials([hidden])")
    }
}

/// Credentials in the form in which they are sent.
pub(super) struct Authorization {
    /// The value of `Authorization`, marked as sensitive, so that no library shows it. Its bytes are zeroed with the
    /// last request that holds them.
    pub(super) header: HeaderValue,
    secret: SecretString,
    encoded: SecretString,
}

impl Authorization {
    /// Basic authentication in UTF-8 (RFC 7617).
    pub(super) fn new(credentials: &Credentials) -> Self {
        let secret = credentials.secret.clone();
        // Each copy is made in room enough, for a text that grew would leave parts of itself behind.
        let pair = Zeroizing::new([&credentials.id, ":", secret.expose_secret()].concat());
        let encoded = SecretString::from(BASE64_STANDARD.encode(pair.as_bytes()));
        let value = Zeroizing::new(["Basic ", encoded.expose_secret()].concat().into_bytes());
        let mut header = HeaderValue::from_maybe_shared(Bytes::from_owner(value))
            .expect("base64 is always a legal header value");
        header.set_sensitive(true);
        Authorization {
            header,
            secret,
            encoded,
        }
    }

    /// Whether a text of the upstream's repeats the secret, plainly or as it was sent, or either in a URL or in JSON.
    pub(super) fn is_repeated_in(&self, text: &str) -> bool {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let repeats = |text: &str| {
            let secrets = [&self.secret, &self.encoded];
            secrets
                .iter()
                .any(|secret| text.contains(secret.expose_secret()))
        };
        repeats(&text) || undisguised(&text).any(|text| repeats(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_rfc_7617() {
        let cases = [
            (
                "Aladdin",
                "open sesame",
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            ),
            // The RFC's own example for UTF-8.
            ("test", "123£", "Basic dGVzdDoxMjPCow=="),
            ("id", "a:b:c", "Basic aWQ6YTpiOmM="),
        ];
        for (id, secret, expected) in cases {
            let credentials = Credentials {
                id: id.to_owned(),
                secret: SecretString::from(secret),
            };
            let authorization = Authorization::new(&credentials);
            assert_eq!(authorization.header, expected);
            assert!(authorization.header.is_sensitive());
            assert!(authorization.is_repeated_in(&format!("is {secret} wrong?")));
            assert!(authorization.is_repeated_in(&format!("you sent {expected}.")));
            assert!(authorization.is_repeated_in(&secret.replace(':', ":\u{0}")));
            let in_json = serde_json::to_string(&format!("\"{secret}")).unwrap();
            let in_url = percent_encoding::utf8_percent_encode(secret, crate::rest::QUERY_VALUE);
            assert!(authorization.is_repeated_in(&in_json));
            assert!(authorization.is_repeated_in(&format!("/x?y={in_url}")));
            assert!(!authorization.is_repeated_in("no"));
            assert_eq!(format!("{credentials:?}"), "Credentials([hidden])");
        }
    }
}
