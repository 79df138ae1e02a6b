//! Authorities, certificates and the files they are kept in, made up for a test.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use sqril_grpc::pb::customer_service_client::CustomerServiceClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};

use crate::support::Facade;

/// rcgen's own type of times, which has no name here.
macro_rules! date {
    ($at:expr) => {
        date_time_ymd(1970, 1, 1) + $at.duration_since(UNIX_EPOCH).unwrap()
    };
}

const HOUR: Duration = Duration::from_secs(3600);

/// The caller that tests allow.
pub const SHOP: &str = "spiffe://test.example/ns/shop/sa/api";

/// Somebody who vouches for certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
    serial: SerialNumber,
}

/// What is to be said of somebody.
pub struct Subject<'a> {
    pub names: &'a [&'a str],
    pub from: SystemTime,
    pub to: SystemTime,
    pub usage: ExtendedKeyUsagePurpose,
}

impl Subject<'_> {
    /// A caller of this name: a DNS name, or a URI.
    pub fn caller<'a>(names: &'a [&'a str]) -> Subject<'a> {
        Subject {
            names,
            from: SystemTime::now() - HOUR,
            to: SystemTime::now() + HOUR,
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, format!("authority {}", unique()));
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub fn issue(&self, subject: &Subject<'_>) -> Issued {
        let key = KeyPair::generate().unwrap();
        let serial = SerialNumber::from(u64::from(unique()) + 1);
        let mut params = CertificateParams::default();
        let names = subject.names.iter().map(|name| match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if name.contains("://") => SanType::URI((*name).try_into().unwrap()),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        });
        params.subject_alt_names = names.collect();
        params.not_before = date!(subject.from);
        params.not_after = date!(subject.to);
        params.serial_number = Some(serial.clone());
        params.extended_key_usages = vec![subject.usage.clone()];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued {
            certificate,
            key: key.serialize_pem(),
            serial,
        }
    }

    /// A certificate for the façade itself.
    pub fn server(&self) -> Issued {
        self.issue(&Subject {
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            ..Subject::caller(&["localhost", "127.0.0.1"])
        })
    }

    pub fn caller(&self, name: &str) -> Issued {
        self.issue(&Subject::caller(&[name]))
    }

    /// A list of these as revoked.
    pub fn revoke(&self, revoked: &[&Issued]) -> String {
        let revoked = revoked.iter().map(|issued| RevokedCertParams {
            serial_number: issued.serial.clone(),
            revocation_time: date!(SystemTime::now() - HOUR),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date!(SystemTime::now() - HOUR),
            next_update: date!(SystemTime::now() + HOUR),
            crl_number: SerialNumber::from(u64::from(unique())),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A folder of a test's own.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let name = format!("folder-{}-{}", std::process::id(), unique());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Replaces a file at once.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let (new, path) = (self.path("new"), self.path(name));
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// The files of a façade that asks callers for certificates.
pub struct Tls {
    pub folder: Folder,
    /// Vouches for the façade.
    pub ours: Authority,
    /// Vouches for callers.
    pub theirs: Authority,
}

impl Tls {
    pub fn new() -> Tls {
        let tls = Tls {
            folder: Folder::new(),
            ours: Authority::new(),
            theirs: Authority::new(),
        };
        tls.show(&tls.ours.server());
        tls.folder.write("ca.pem", &tls.theirs.pem);
        tls.folder.write("crl.pem", tls.theirs.revoke(&[]));
        tls
    }

    /// Replaces certificate and key.
    pub fn show(&self, issued: &Issued) {
        self.folder.write("cert.pem", &issued.certificate);
        self.folder.write("key.pem", &issued.key);
    }

    /// The flags of a façade that lets the shop in.
    pub fn flags(&self) -> Vec<String> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.folder.path(name));
        vec![
            file("tls-cert", "cert.pem"),
            file("tls-key", "key.pem"),
            file("client-ca", "ca.pem"),
            file("client-crl", "crl.pem"),
            format!("--allow-caller={SHOP}"),
        ]
    }

    /// A façade with these files before this upstream.
    pub async fn facade(&self, upstream: &str, more: &[&str]) -> Facade {
        let flags = self.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Facade::with(upstream, &[&flags, more].concat()).await
    }

    /// A new connection, as whoever has this certificate.
    pub async fn connect(
        &self,
        facade: &Facade,
        caller: Option<&Issued>,
    ) -> Result<Channel, Error> {
        let mut tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(&self.ours.pem));
        if let Some(caller) = caller {
            tls = tls.identity(Identity::from_pem(&caller.certificate, &caller.key));
        }
        Endpoint::from_shared(format!("https://{}", facade.grpc))?
            .tls_config(tls)?
            .connect()
            .await
    }

    /// A client on a new connection. Whether it is let in shows at its first call.
    pub async fn client(
        &self,
        facade: &Facade,
        caller: Option<&Issued>,
    ) -> CustomerServiceClient<Channel> {
        CustomerServiceClient::new(self.connect(facade, caller).await.unwrap())
    }
}
