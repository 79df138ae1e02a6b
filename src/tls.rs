//! TLS for callers: what is shown to them, whom it believes, and its exchange while it runs.
//!
//! Certificate, key, client authorities and revocations are one set, exchanged as a whole. Connections live on with the
//! set they began with, unless the new one no longer trusts their client's certificate: those are cut.

use std::{
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{
            CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject,
        },
        server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
        version::{TLS12, TLS13},
    },
    server::TlsStream,
};
use x509_parser::{
    certificate::X509Certificate, prelude::FromDer, revocation_list::CertificateRevocationList,
    time::ASN1Time,
};

use crate::{
    identity::Names,
    metrics::Metrics,
    reload::{Contents, Fault, Loaded, Source},
};

const CERTIFICATE: &str = "tls-cert";
const KEY: &str = "tls-key";
const CLIENT_CA: &str = "client-ca";
const CLIENT_CRL: &str = "client-crl";

/// Where the set is, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate that is shown, with those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of callers' certificates; without them nobody is asked for one.
    pub client_ca: Option<PathBuf>,
    /// Certificates that these have revoked: a list by each authority that has issued any.
    pub client_crl: Option<PathBuf>,
}

/// A whole set, checked.
pub struct Set {
    acceptor: TlsAcceptor,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    expiries: Vec<(&'static str, SystemTime)>,
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Set")
            .field("expiries", &self.expiries)
            .finish_non_exhaustive()
    }
}

impl Files {
    /// Reads the set. `anonymous`: whether callers without a certificate may connect at all.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn open(self, anonymous: bool) -> Result<Loaded<Set>, Vec<Fault>> {
        let mut files = vec![(CERTIFICATE, self.certificate), (KEY, self.key)];
        files.extend(self.client_ca.map(|path| (CLIENT_CA, path)));
        files.extend(self.client_crl.map(|path| (CLIENT_CRL, path)));
        Source::open("tls", files, move |contents| {
            Set::parse(contents, anonymous)
        })
    }
}

impl Set {
    fn parse(contents: &Contents, anonymous: bool) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let chain = pem::<CertificateDer>(contents, CERTIFICATE, &mut faults);
        let key = pem::<PrivateKeyDer>(contents, KEY, &mut faults);
        let authorities = pem::<CertificateDer>(contents, CLIENT_CA, &mut faults);
        let revoked = pem::<CertificateRevocationListDer>(contents, CLIENT_CRL, &mut faults);

        let mut expiries = Vec::new();
        let ends = chain.first().and_then(|leaf| end(leaf));
        if ends.is_some_and(|end| end <= SystemTime::now()) {
            faults.push(Fault::new(CERTIFICATE, "has expired"));
        }
        expiries.extend(ends.map(|end| (CERTIFICATE, end)));
        let first = authorities
            .iter()
            .filter_map(|authority| end(authority))
            .min();
        expiries.extend(first.map(|end| (CLIENT_CA, end)));
        let first = revoked.iter().filter_map(|list| next_update(list)).min();
        expiries.extend(first.map(|end| (CLIENT_CRL, end)));

        let verifier = match contents.get(CLIENT_CA) {
            Some(_) if faults.is_empty() => verifier(authorities, revoked, anonymous)
                .map_err(|fault| faults.push(fault))
                .ok(),
            Some(_) | None => None,
        };
        let (true, Some(key)) = (faults.is_empty(), key.into_iter().next()) else {
            return Err(faults);
        };
        let config = config(chain, key, verifier.clone())
            .map_err(|error| vec![Fault::new(CERTIFICATE, format!("with --{KEY}: {error}"))])?;
        Ok(Set {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            verifier,
            expiries,
        })
    }

    /// Whether a certificate that was trusted once still is.
    fn trusts(&self, certificate: &Certificate) -> bool {
        let (Some(verifier), Some((leaf, between))) =
            (&self.verifier, certificate.chain.split_first())
        else {
            return false;
        };
        verifier
            .verify_client_cert(leaf, between, UnixTime::now())
            .is_ok()
    }
}

/// Every item of its kind in a file of the set; a file without any is a fault.
fn pem<T: PemObject>(contents: &Contents, flag: &'static str, faults: &mut Vec<Fault>) -> Vec<T> {
    let Some(bytes) = contents.get(flag) else {
        return Vec::new();
    };
    match T::pem_slice_iter(bytes).collect::<Result<Vec<T>, _>>() {
        Ok(items) if !items.is_empty() => return items,
        Ok(_) => faults.push(Fault::new(flag, "holds nothing of its kind in PEM")),
        // The error may quote the file.
        Err(_) => faults.push(Fault::new(flag, "is no valid PEM")),
    }
    Vec::new()
}

fn verifier(
    authorities: Vec<CertificateDer<'static>>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    anonymous: bool,
) -> Result<Arc<dyn ClientCertVerifier>, Fault> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        let added = roots.add(authority);
        added.map_err(|error| Fault::new(CLIENT_CA, error.to_string()))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = builder.with_crls(revoked);
    let builder = if anonymous {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder
        .build()
        .map_err(|error| Fault::new(CLIENT_CRL, error.to_string()))
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, tokio_rustls::rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13, &TLS12])?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A session that is taken up again is not verified again. Connections live long, so there is little to gain.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn end(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(system_time(certificate.validity().not_after))
}

fn next_update(list: &CertificateRevocationListDer<'_>) -> Option<SystemTime> {
    let (_, list) = CertificateRevocationList::from_der(list.as_ref()).ok()?;
    list.next_update().map(system_time)
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The certificate that a caller has shown, verified.
pub struct Certificate {
    /// What it calls its owner.
    pub names: Names,
    /// When it ends.
    pub expires: SystemTime,
    chain: Vec<CertificateDer<'static>>,
}

/// The set in use, for as long as the process lives.
pub struct Server(watch::Sender<Arc<Set>>);

/// A connection after its handshake.
pub struct Accepted {
    /// What is read and written inside of TLS.
    pub stream: TlsStream<TcpStream>,
    /// The caller's certificate and the sets to come, if it has shown one.
    pub certificate: Option<(Certificate, Sets)>,
}

/// The sets that come after the one a connection began with.
pub struct Sets(watch::Receiver<Arc<Set>>);

impl Server {
    /// Begins with this set.
    pub fn new(set: Set, metrics: &Metrics) -> Self {
        tell(&set, metrics);
        Server(watch::Sender::new(Arc::new(set)))
    }

    /// Uses another set from now on.
    pub fn exchange(&self, set: Set, metrics: &Metrics) {
        tell(&set, metrics);
        self.0.send_replace(Arc::new(set));
    }

    /// Shakes hands. Takes as long as the other side likes.
    ///
    /// # Errors
    /// When the two cannot agree, or the other side's certificate is missing or not trusted.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Accepted> {
        let mut sets = self.0.subscribe();
        let set = Arc::clone(&sets.borrow_and_update());
        let stream = set.acceptor.accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = match chain.first() {
            Some(leaf) => {
                let (_, parsed) = X509Certificate::from_der(leaf)
                    .map_err(|_| io::Error::other("the caller's certificate cannot be read"))?;
                let certificate = Certificate {
                    names: Names::of(&parsed),
                    expires: system_time(parsed.validity().not_after),
                    chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
                };
                Some((certificate, Sets(sets)))
            }
            None => None,
        };
        Ok(Accepted {
            stream,
            certificate,
        })
    }
}

impl Sets {
    /// Waits until a set comes that does not trust this certificate.
    pub async fn distrust(&mut self, certificate: &Certificate) {
        while self.0.changed().await.is_ok() {
            if !self.0.borrow_and_update().trusts(certificate) {
                return;
            }
        }
        // There will be no further set.
        std::future::pending().await
    }
}

fn tell(set: &Set, metrics: &Metrics) {
    for (file, end) in &set.expiries {
        metrics.certificate_expires(file, *end);
    }
}
