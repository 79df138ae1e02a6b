//! The configuration: flags and environment, read and checked before a socket opens. Every fault is reported at once,
//! with its flag and its variable.
//!
//! Each flag is also an environment variable: `SQRIL_GRPC_` and the flag in capitals. Only the client secret has no
//! flag, for command lines are visible to everybody on a machine.

mod callers;
mod cli;
mod credentials;
mod read;
mod traces;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use self::read::{
    MOMENT, NOWHERE, address, base_url, bytes, count, count_or_none, is_loopback, log_format,
    proxy, share, stand_in_url, switch, time, time_or_none,
};
pub use self::{
    cli::{Cli, Command, HealthArgs, SandboxArgs, ServeArgs},
    read::Faults,
};
use crate::{
    admission,
    customer::{HashKey, MIN_KEY_BYTES},
    grpc::{Deadlines, health::Target},
    identity::Policy,
    incoming,
    reload::{Fault, Loaded, Source},
    rest,
    telemetry::{self, LogFormat},
    tls,
};

const SECRET_VARIABLE: &str = "SQRIL_GRPC_CLIENT_SECRET";

/// What `serve` is to do.
#[derive(Debug)]
pub struct Serve {
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// Where the admin port listens.
    pub admin_listen: SocketAddr,
    /// What is shown to callers, and whom it believes; `None` for plaintext.
    pub tls: Option<Loaded<tls::Set>>,
    /// Who may call.
    pub callers: Policy,
    /// How Sqril is reached.
    pub upstream: rest::Settings,
    /// Where the upstream's authorities come from, if they are not the system's.
    pub upstream_ca: Option<Source<rest::Authorities>>,
    /// The façade's own credentials; `None` to call the embedded Sqril instead of `upstream`.
    pub credentials: Option<Loaded<rest::Credentials>>,
    /// How often files are read again; `None` for only when the process is told to.
    pub reload_interval: Option<Duration>,
    /// The key of the hash by which logs name customers.
    pub hash_key: HashKey,
    /// How much time a call has.
    pub deadlines: Deadlines,
    /// How many calls are taken.
    pub admission: admission::Limits,
    /// How connections are taken.
    pub incoming: incoming::Limits,
    /// How the process leaves.
    pub drain: Drain,
    /// Whether reflection is served.
    pub reflection: bool,
    /// The form of the log.
    pub log_format: LogFormat,
    /// The most lines that wait to be written.
    pub log_buffer: usize,
    /// How spans of traces are sent; `None` for not at all.
    pub traces: Option<telemetry::Export>,
    /// Whether Sqril is told which trace a PUT belongs to.
    pub propagate_trace: bool,
    /// Where this is only to be shown: every flag's value, a line each, secrets hidden.
    pub show: Option<String>,
}

/// How the process leaves.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long calls are still welcome after health checks say NOT_SERVING.
    pub delay: Duration,
    /// How long running calls may then take to finish.
    pub timeout: Duration,
}

/// What `sandbox` is to do.
#[derive(Debug)]
pub struct Sandbox {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The form of the log.
    pub log_format: LogFormat,
}

/// What `health` is to do.
#[derive(Debug)]
pub struct Health {
    /// Whom to ask.
    pub target: Target,
    /// What to ask for.
    pub service: String,
    /// How long to wait.
    pub timeout: Duration,
}

impl ServeArgs {
    /// Reads the credentials' files and checks everything.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(self) -> Result<Serve, Faults> {
        let mut faults = Faults::default();
        let sandbox = faults.read("sandbox", &self.sandbox, switch, false);
        let check_config = faults.read("check-config", &self.check_config, switch, false);
        let deadlines = Deadlines {
            max: faults.read("max-deadline", &self.max_deadline, time, Duration::MAX),
            floor: faults.read("deadline-floor", &self.deadline_floor, time, MOMENT),
        };
        let mut upstream = self.upstream(&mut faults);
        let upstream_ca = self.upstream_ca(&mut faults).and_then(|loaded| {
            upstream.authorities = Some(loaded.value);
            loaded.source
        });
        let trusted = faults.read("trust-network", &self.trust_network, switch, false);
        let callers = self.callers(trusted, &mut faults);
        let reload_interval = faults.read(
            "reload-interval",
            &self.reload_interval,
            time_or_none,
            MOMENT,
        );
        let config = Serve {
            listen: faults.read("listen", &self.listen, address, NOWHERE),
            admin_listen: faults.read("admin-listen", &self.admin_listen, address, NOWHERE),
            tls: self.tls(callers.open_health, &mut faults),
            callers,
            upstream,
            upstream_ca,
            reload_interval: Some(reload_interval).filter(|interval| !interval.is_zero()),
            hash_key: self.hash_key(&mut faults),
            credentials: if sandbox {
                None
            } else {
                self.credentials(&mut faults)
            },
            deadlines,
            admission: admission::Limits {
                in_flight: faults.read("max-in-flight", &self.max_in_flight, count, 1),
                queued: faults.read("max-queued", &self.max_queued, count_or_none, 0),
            },
            incoming: self.incoming(deadlines.max, &mut faults),
            drain: Drain {
                delay: match &self.drain_delay {
                    None if sandbox => Duration::ZERO,
                    given => {
                        let given = given.as_deref().unwrap_or("5s");
                        faults.read("drain-delay", given, time_or_none, MOMENT)
                    }
                },
                timeout: faults.read("drain-timeout", &self.drain_timeout, time, MOMENT),
            },
            reflection: faults.read("reflection", &self.reflection, switch, false),
            log_format: faults.read("log-format", &self.log_format, log_format, LogFormat::Json),
            log_buffer: faults.read("log-buffer", &self.log_buffer, count, 1),
            traces: traces::traces(&mut faults),
            propagate_trace: faults.read("propagate-trace", &self.propagate_trace, switch, false),
            show: check_config.then(|| self.effective()),
        };
        self.check_together(&config, sandbox, trusted, &mut faults);
        faults.or(config)
    }

    fn incoming(&self, grace: Duration, faults: &mut Faults) -> incoming::Limits {
        incoming::Limits {
            connections: faults.read("max-connections", &self.max_connections, count, 1),
            handshake: faults.read("handshake-timeout", &self.handshake_timeout, time, MOMENT),
            handshakes: faults.read("max-handshakes", &self.max_handshakes, count, 1),
            preface: faults.read("preface-timeout", &self.preface_timeout, time, MOMENT),
            age: faults.read("max-connection-age", &self.max_connection_age, time, MOMENT),
            grace,
        }
    }

    fn upstream_ca(&self, faults: &mut Faults) -> Option<Loaded<rest::Authorities>> {
        const FLAG: &str = "upstream-ca";
        let files = vec![(FLAG, path(&self.upstream_ca)?)];
        faults.take(Source::open(FLAG, files, |contents| {
            let authorities = rest::Authorities::parse(contents.get(FLAG).unwrap_or_default());
            authorities.map_err(|what| vec![Fault::new(FLAG, what)])
        }))
    }

    fn hash_key(&self, faults: &mut Faults) -> HashKey {
        const FLAG: &str = "hash-key-file";
        let Some(file) = path(&self.hash_key_file) else {
            return HashKey::random();
        };
        let key = Source::open(FLAG, vec![(FLAG, file)], |contents| {
            let bytes = contents.get(FLAG).unwrap_or_default();
            let key = HashKey::of(bytes.trim_ascii_end());
            let too_short = || format!("must hold at least {MIN_KEY_BYTES} bytes");
            key.ok_or_else(|| vec![Fault::new(FLAG, too_short())])
        });
        faults
            .take(key)
            .map_or_else(HashKey::random, |key| key.value)
    }

    fn upstream(&self, faults: &mut Faults) -> rest::Settings {
        rest::Settings {
            base_url: faults.read("upstream-url", &self.upstream_url, base_url, stand_in_url()),
            proxy: faults.read(
                "upstream-proxy",
                &self.upstream_proxy,
                proxy,
                rest::Proxy::Off,
            ),
            authorities: None,
            connect_timeout: faults.read("connect-timeout", &self.connect_timeout, time, MOMENT),
            attempt_timeout: faults.read(
                "attempt-timeout",
                &self.attempt_timeout,
                time,
                Duration::MAX,
            ),
            pool_idle_timeout: faults.read(
                "pool-idle-timeout",
                &self.pool_idle_timeout,
                time,
                MOMENT,
            ),
            max_answer_bytes: faults.read("max-answer-bytes", &self.max_answer_bytes, bytes, 1),
            max_connections: faults.read(
                "upstream-connections",
                &self.upstream_connections,
                count,
                1,
            ),
            retry_budget: faults.read("retry-budget", &self.retry_budget, share, 0.0),
            breaker: faults.read("breaker", &self.breaker, switch, false),
            max_error_bytes: faults.read("max-error-bytes", &self.max_error_bytes, bytes, 1),
        }
    }

    /// The rules that more than one flag is needed to break.
    fn check_together(&self, config: &Serve, sandbox: bool, trusted: bool, faults: &mut Faults) {
        let encrypted = path(&self.tls_cert).is_some();
        for (flag, address, guarded, what) in [
            ("listen", config.listen, encrypted, NEEDS_TRUST_OR_TLS),
            ("admin-listen", config.admin_listen, false, NEEDS_TRUST),
        ] {
            let guarded = guarded || trusted || address.ip().is_loopback();
            faults.demand(flag, guarded, what);
        }
        let plaintext = faults.read(
            "allow-plaintext-upstream",
            &self.allow_plaintext_upstream,
            switch,
            false,
        );
        let (url, upstream) = (&config.upstream.base_url, &config.upstream);
        let guarded = plaintext || url.scheme() == "https" || is_loopback(url);
        faults.demand("upstream-url", guarded, NEEDS_TLS);
        faults.demand(
            "connect-timeout",
            upstream.connect_timeout < upstream.attempt_timeout,
            NEEDS_LESS,
        );
        faults.demand(
            "deadline-floor",
            config.deadlines.floor < config.deadlines.max,
            NEEDS_TIME,
        );
        for flag in [
            "upstream-url",
            "upstream-ca",
            "client-id",
            "client-id-file",
            "client-secret-file",
        ] {
            faults.demand(flag, !(sandbox && self.is_given(flag)), NOT_WITH_SANDBOX);
        }
    }
}

const NEEDS_TRUST: &str =
    "plaintext off loopback needs --trust-network: whoever reaches the port may use it";
const NEEDS_TRUST_OR_TLS: &str = "plaintext off loopback needs --trust-network, or --tls-cert and --client-ca: whoever reaches the port may use it";
const NEEDS_TLS: &str = "must be https off loopback, or --allow-plaintext-upstream must be given";
const NEEDS_LESS: &str =
    "must be less than --attempt-timeout, or a failed connect looks like a lost update";
const NEEDS_TIME: &str = "must be less than --max-deadline, or no call has time enough";
const NOT_WITH_SANDBOX: &str = "cannot be given with --sandbox, which brings its own";

/// The file that is named, if one is.
fn path(file: &Option<String>) -> Option<PathBuf> {
    let file = file.as_deref().filter(|file| !file.is_empty());
    file.map(PathBuf::from)
}

impl SandboxArgs {
    /// Checks everything.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(self) -> Result<Sandbox, Faults> {
        let mut faults = Faults::default();
        let config = Sandbox {
            listen: faults.read("listen", &self.listen, address, NOWHERE),
            log_format: faults.read("log-format", &self.log_format, log_format, LogFormat::Json),
        };
        faults.or(config)
    }
}

impl HealthArgs {
    /// Checks everything.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(self) -> Result<Health, Faults> {
        let mut faults = Faults::default();
        let ca = pem("ca", &self.ca, &mut faults);
        let cert = pem("cert", &self.cert, &mut faults);
        let key = pem("key", &self.key, &mut faults);
        let server_name = self.server_name.filter(|name| !name.is_empty());
        let together = cert.is_some() == key.is_some();
        faults.demand("key", together, "goes with --cert");
        for (flag, given) in [
            ("cert", cert.is_some()),
            ("server-name", server_name.is_some()),
        ] {
            faults.demand(flag, ca.is_some() || !given, "needs --ca");
        }
        let config = Health {
            target: Target {
                address: faults.read("addr", &self.addr, address, NOWHERE),
                authorities: ca,
                server_name,
                identity: cert.zip(key),
            },
            timeout: faults.read("timeout", &self.timeout, time, MOMENT),
            service: self.service,
        };
        faults.or(config)
    }
}

/// What is in a file, if one is named.
fn pem(flag: &'static str, file: &Option<String>, faults: &mut Faults) -> Option<Vec<u8>> {
    let files = vec![(flag, path(file)?)];
    let read = Source::open(flag, files, move |contents| {
        Ok(contents.get(flag).unwrap_or_default().to_vec())
    });
    faults.take(read).map(|read| read.value)
}
