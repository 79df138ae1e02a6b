//! How callers come in: what TLS shows them, how they are known, and who may call.

use super::{
    cli::ServeArgs,
    path,
    read::{Faults, identity_header, networks, patterns, switch},
};
use crate::{
    identity::{Evidence, Policy},
    reload::Loaded,
    tls,
};

const NEEDS_KEY: &str = "needed with --tls-cert";
const NEEDS_CERTIFICATE: &str = "needs --tls-cert";
const NEEDS_CLIENT_CA: &str = "needs --client-ca";
const NEEDS_TRUSTED_NETWORK: &str =
    "needs --trust-network: whoever reaches the port past the proxy can forge it";
const ONE_EVIDENCE: &str = "cannot be given with --client-ca: callers are known by one of them";
const NEEDS_EVIDENCE: &str =
    "needs --client-ca or --identity-header, or nobody is asked who they are";

impl ServeArgs {
    pub(super) fn tls(&self, anonymous: bool, faults: &mut Faults) -> Option<Loaded<tls::Set>> {
        let (certificate, key) = (path(&self.tls_cert), path(&self.tls_key));
        let (client_ca, client_crl) = (path(&self.client_ca), path(&self.client_crl));
        faults.demand("tls-key", key.is_some() || certificate.is_none(), NEEDS_KEY);
        for (flag, given, needed, what) in [
            ("tls-key", &key, &certificate, NEEDS_CERTIFICATE),
            ("client-ca", &client_ca, &certificate, NEEDS_CERTIFICATE),
            ("client-crl", &client_crl, &client_ca, NEEDS_CLIENT_CA),
        ] {
            faults.demand(flag, given.is_none() || needed.is_some(), what);
        }
        let files = tls::Files {
            certificate: certificate?,
            key: key?,
            client_ca,
            client_crl,
        };
        faults.take(files.open(anonymous))
    }

    pub(super) fn callers(&self, trusted: bool, faults: &mut Faults) -> Policy {
        let header = self.identity_header.as_deref().unwrap_or_default();
        let header = faults.read("identity-header", header, identity_header, false);
        let from = networks(&self.identity_header_from);
        let from = from.map_err(|what| faults.add("identity-header-from", what));
        let allowed = patterns(&self.allow_caller);
        let allowed = allowed.map_err(|what| faults.add("allow-caller", what));
        let allowed = allowed.unwrap_or_default();
        let certificates = path(&self.client_ca).is_some();

        faults.demand("identity-header", !header || trusted, NEEDS_TRUSTED_NETWORK);
        faults.demand("identity-header", !(header && certificates), ONE_EVIDENCE);
        let asked = header || certificates;
        faults.demand("allow-caller", asked || allowed.is_empty(), NEEDS_EVIDENCE);
        Policy {
            evidence: match (certificates, header) {
                (true, _) => Evidence::Certificate,
                (false, true) => Evidence::Header(from.unwrap_or_default()),
                (false, false) => Evidence::None,
            },
            allowed,
            open_health: faults.read("open-health", &self.open_health, switch, false),
        }
    }
}
