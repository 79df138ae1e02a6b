//! Who calls, and who may.
//!
//! A caller is known by the names in its certificate, read once a connection, or by what a trusted proxy says in
//! `x-forwarded-client-cert`. Once callers are asked who they are, only those whom `--allow-caller` names may call.

mod xfcc;

use std::{net::IpAddr, sync::Arc};

use hyper::header::HeaderMap;
use ipnet::IpNet;
use spiffe::SpiffeId;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

/// The header in which a proxy tells of the certificate that it was shown.
pub const FORWARDED_CERTIFICATE: &str = "x-forwarded-client-cert";

/// What a caller's certificate calls it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Its SPIFFE id. A certificate with a second URI has none (X509-SVID, section 2).
    pub spiffe: Option<SpiffeId>,
    /// Its DNS names, in lower case. The common name counts for nothing (RFC 9525, section 2).
    pub dns: Vec<String>,
}

impl Names {
    /// The names in a certificate that was verified.
    pub fn of(certificate: &X509Certificate<'_>) -> Self {
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let names = alternatives.map_or_else(Vec::new, |names| names.value.general_names.clone());
        let uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let dns = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        });
        Names::new(uris, dns)
    }

    fn new<'a>(
        mut uris: impl Iterator<Item = &'a str>,
        dns: impl Iterator<Item = &'a str>,
    ) -> Self {
        let only = uris.next().filter(|_| uris.next().is_none());
        Names {
            spiffe: only.and_then(|uri| SpiffeId::new(uri).ok()),
            dns: dns.filter_map(dns_name).collect(),
        }
    }

    /// The one name by which logs know the caller.
    pub fn caller(&self) -> Option<Caller> {
        let spiffe = self.spiffe.as_ref().map(SpiffeId::to_string);
        let name = spiffe.or_else(|| self.dns.first().cloned())?;
        Some(Caller {
            name: name.into(),
            allowed_by: None,
        })
    }
}

/// A DNS name in lower case, if it is one: no wildcard, no other character than those of host names (RFC 1123).
fn dns_name(text: &str) -> Option<String> {
    let label = |label: &str| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(legal)
    };
    let is_name = text.len() <= 253 && text.split('.').all(label);
    is_name.then(|| text.to_ascii_lowercase())
}

/// Whoever makes a call: the name, for the log, and the pattern by which it may, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    name: Arc<str>,
    allowed_by: Option<Arc<str>>,
}

impl Caller {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The pattern by which it may call, if it may. These are as many as the configuration names.
    pub fn allowed_by(&self) -> Option<&str> {
        self.allowed_by.as_deref()
    }
}

/// Who may call: one name, or all below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Exactly this SPIFFE id.
    Spiffe(SpiffeId),
    /// Every SPIFFE id of this trust domain whose path goes on from this one.
    Below(SpiffeId),
    /// Whoever has this DNS name.
    Dns(String),
}

impl Pattern {
    /// Reads `spiffe://domain/path`, `spiffe://domain/path/*`, or a DNS name.
    ///
    /// # Errors
    /// A sentence for the log.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str =
            "must be spiffe://domain/path, spiffe://domain/path/* or a DNS name without *";
        let pattern = if !text.starts_with("spiffe://") {
            dns_name(text).map(Pattern::Dns)
        } else if let Some(above) = text.strip_suffix("/*") {
            SpiffeId::new(above).ok().map(Pattern::Below)
        } else {
            SpiffeId::new(text).ok().map(Pattern::Spiffe)
        };
        pattern.ok_or(FORM)
    }

    /// The text that it is read from.
    fn text(&self) -> String {
        match self {
            Pattern::Spiffe(id) => id.to_string(),
            Pattern::Below(above) => format!("{above}/*"),
            Pattern::Dns(name) => name.clone(),
        }
    }

    fn matches(&self, names: &Names) -> bool {
        match self {
            Pattern::Spiffe(id) => names.spiffe.as_ref() == Some(id),
            Pattern::Below(above) => names.spiffe.as_ref().is_some_and(|id| {
                let below = id.path().strip_prefix(above.path());
                id.trust_domain() == above.trust_domain()
                    && below.is_some_and(|below| below.starts_with('/'))
            }),
            Pattern::Dns(name) => names.dns.contains(name),
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// What its certificate calls it, if it has shown one that was verified.
    pub names: Option<Names>,
}

/// How callers are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// They are not asked: whoever reaches the port may call.
    None,
    /// By their certificates.
    Certificate,
    /// By what a proxy in one of these networks says of theirs.
    Header(Vec<IpNet>),
}

/// Who may call.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How callers are known.
    pub evidence: Evidence,
    /// Whom it takes to call; nobody, if callers are asked and this is empty.
    pub allowed: Vec<Pattern>,
    /// Whether health checks are answered to everybody.
    pub open_health: bool,
}

/// Why somebody may not call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody knows who it is.
    NotAuthenticated,
    /// It is known, and is not among those who may. The name is missing if its certificate has none that counts.
    NotAllowed(Option<Caller>),
}

impl Policy {
    /// Decides on one call: who makes it (`None` if nobody is asked), or why it is not taken.
    pub fn admit(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<Caller>, Refusal> {
        let forwarded;
        let names = match &self.evidence {
            Evidence::None => return Ok(None),
            Evidence::Certificate => peer.names.as_ref(),
            Evidence::Header(trusted) => {
                let address = peer.address.to_canonical();
                let is_trusted = trusted.iter().any(|network| network.contains(&address));
                forwarded = is_trusted.then(|| xfcc::nearest(headers)).flatten();
                forwarded.as_ref()
            }
        };
        let names = names.ok_or(Refusal::NotAuthenticated)?;
        let caller = names.caller();
        let pattern = self.allowed.iter().find(|pattern| pattern.matches(names));
        match (pattern, caller) {
            (Some(pattern), Some(caller)) => Ok(Some(Caller {
                allowed_by: Some(pattern.text().into()),
                ..caller
            })),
            (_, caller) => Err(Refusal::NotAllowed(caller)),
        }
    }
}

/// Doors for the fuzzers, which see nothing else of this room.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::*;

    /// What the nearest proxy says, if this is a legal header.
    pub fn forwarded(header: &str) -> Option<Names> {
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED_CERTIFICATE, header.parse().ok()?);
        xfcc::nearest(&headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(uris: &[&str], dns: &[&str]) -> Names {
        Names::new(uris.iter().copied(), dns.iter().copied())
    }

    #[test]
    fn who_matches_whom() {
        let cases = [
            ("spiffe://td/ns/shop", "spiffe://td/ns/shop", true),
            ("spiffe://td/ns/shop", "spiffe://TD/ns/shop", true),
            ("spiffe://td/ns/shop", "spiffe://td/ns/Shop", false),
            ("spiffe://td/ns/shop", "spiffe://td/ns/shop/a", false),
            ("spiffe://td/ns/shop", "spiffe://other/ns/shop", false),
            ("spiffe://td/ns/shop/*", "spiffe://td/ns/shop/sa/x", true),
            ("spiffe://td/ns/shop/*", "spiffe://td/ns/shop", false),
            ("spiffe://td/ns/shop/*", "spiffe://td/ns/shopping/x", false),
            ("spiffe://td/ns/shop/*", "spiffe://td/ns/shop/../x", false),
            ("spiffe://td/ns/shop/*", "spiffe://td.evil/ns/shop/x", false),
            ("spiffe://td/*", "spiffe://td/x", true),
            ("spiffe://td/*", "spiffe://td", false),
            ("spiffe://td/*", "spiffe://tdx/x", false),
            ("spiffe://td/*", "https://td/x", false),
        ];
        for (pattern, uri, expected) in cases {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.text(), pattern);
            let pattern = parsed;
            assert_eq!(
                pattern.matches(&names(&[uri], &[])),
                expected,
                "{pattern:?} {uri}"
            );
        }
        let dns = Pattern::parse("Api.Shop.example").unwrap();
        assert!(dns.matches(&names(&[], &["other.example", "api.shop.EXAMPLE"])));
        assert!(!dns.matches(&names(
            &["spiffe://api.shop.example"],
            &["x.api.shop.example"]
        )));
        assert!(!dns.matches(&names(&[], &["*.shop.example", "api.shop.example."])));
    }

    /// X509-SVID, section 2: more than one URI is no SPIFFE id at all.
    #[test]
    fn a_second_uri_spoils_the_first() {
        let both = names(&["spiffe://td/a", "spiffe://td/b"], &[]);
        assert_eq!(both, Names::default());
        assert!(!Pattern::parse("spiffe://td/*").unwrap().matches(&both));
    }

    #[test]
    fn patterns_that_are_none() {
        for text in [
            "",
            "*",
            "*.example.com",
            "spiffe://",
            "spiffe://*",
            "spiffe://*/x",
            "spiffe://td/*/x",
            "spiffe://td/x*",
            "spiffe://td/x/",
            "spiffe://td//*",
            "spiffe://td/../*",
            "https://td/x",
            "a b",
            "host:443",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_header_counts_only_from_whom_it_may() {
        let policy = Policy {
            evidence: Evidence::Header(vec!["127.0.0.0/8".parse().unwrap()]),
            allowed: vec![Pattern::parse("spiffe://td/a").unwrap()],
            open_health: false,
        };
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED_CERTIFICATE, "URI=spiffe://td/a".parse().unwrap());
        let from = |address: &str, headers| {
            let peer = Peer {
                address: address.parse().unwrap(),
                names: names(&["spiffe://td/a"], &[]).into(),
            };
            policy.admit(&peer, headers)
        };
        assert_eq!(
            from("127.0.0.1", &headers).unwrap().unwrap().as_str(),
            "spiffe://td/a"
        );
        assert!(from("::ffff:127.0.0.1", &headers).is_ok());
        for other in ["10.0.0.1", "::1"] {
            assert_eq!(from(other, &headers), Err(Refusal::NotAuthenticated));
        }
        assert_eq!(
            from("127.0.0.1", &HeaderMap::new()),
            Err(Refusal::NotAuthenticated)
        );
    }
}
