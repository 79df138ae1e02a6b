//! The configuration: flags and environment, read and checked before a socket opens. Every fault is reported at once,
//! with its flag and its variable.
//!
//! Each flag is also an environment variable: `SQRIL_GRPC_` and the flag in capitals. Only the client secret has no
//! flag, for command lines are visible to everybody on a machine.

mod cli;
mod read;

use std::{env, net::SocketAddr, time::Duration};

use secrecy::SecretString;

use self::read::{
    MOMENT, NOWHERE, address, base_url, bytes, contents, count, count_or_none, is_loopback,
    log_format, proxy, share, stand_in_url, switch, time, time_or_none,
};
pub use self::{
    cli::{Cli, Command, HealthArgs, SandboxArgs, ServeArgs},
    read::Faults,
};
use crate::{admission, grpc::Deadlines, incoming, rest};

const SECRET_VARIABLE: &str = "SQRIL_GRPC_CLIENT_SECRET";

/// What `serve` is to do.
#[derive(Debug)]
pub struct Serve {
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// Where the admin port listens.
    pub admin_listen: SocketAddr,
    /// How Sqril is reached.
    pub upstream: rest::Settings,
    /// The façade's own credentials; `None` to call the embedded Sqril instead of `upstream`.
    pub credentials: Option<rest::Credentials>,
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
    pub addr: SocketAddr,
    /// What to ask for.
    pub service: String,
    /// How long to wait.
    pub timeout: Duration,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
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
        let config = Serve {
            listen: faults.read("listen", &self.listen, address, NOWHERE),
            admin_listen: faults.read("admin-listen", &self.admin_listen, address, NOWHERE),
            upstream: self.upstream(&mut faults),
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
            show: check_config.then(|| self.effective()),
        };
        self.check_together(&config, sandbox, &mut faults);
        faults.or(config)
    }

    fn incoming(&self, grace: Duration, faults: &mut Faults) -> incoming::Limits {
        incoming::Limits {
            connections: faults.read("max-connections", &self.max_connections, count, 1),
            preface: faults.read("preface-timeout", &self.preface_timeout, time, MOMENT),
            age: faults.read("max-connection-age", &self.max_connection_age, time, MOMENT),
            grace,
        }
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
    fn check_together(&self, config: &Serve, sandbox: bool, faults: &mut Faults) {
        let trusted = faults.read("trust-network", &self.trust_network, switch, false);
        for (flag, address) in [
            ("listen", config.listen),
            ("admin-listen", config.admin_listen),
        ] {
            faults.demand(flag, trusted || address.ip().is_loopback(), NEEDS_TRUST);
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
            "client-id",
            "client-id-file",
            "client-secret-file",
        ] {
            faults.demand(flag, !(sandbox && self.is_given(flag)), NOT_WITH_SANDBOX);
        }
    }

    fn credentials(&self, faults: &mut Faults) -> Option<rest::Credentials> {
        let given = env::var(SECRET_VARIABLE).ok();
        let id = one_of(
            self.client_id.clone(),
            &self.client_id_file,
            "--client-id-file",
        );
        let secret = one_of(given, &self.client_secret_file, SECRET_VARIABLE);
        let id = id.and_then(|id| match id.contains(':') {
            true => Err("must not hold \":\", which ends it in Basic authentication".to_owned()),
            false => Ok(id),
        });
        let id = id.map_err(|what| faults.add("client-id", what)).ok();
        let secret = secret
            .map_err(|what| faults.add("client-secret-file", what))
            .ok();
        Some(rest::Credentials {
            id: id?,
            secret: SecretString::from(secret?),
        })
    }
}

const NEEDS_TRUST: &str =
    "plaintext off loopback needs --trust-network: whoever reaches the port may use it";
const NEEDS_TLS: &str = "must be https off loopback, or --allow-plaintext-upstream must be given";
const NEEDS_LESS: &str =
    "must be less than --attempt-timeout, or a failed connect looks like a lost update";
const NEEDS_TIME: &str = "must be less than --max-deadline, or no call has time enough";
const NOT_WITH_SANDBOX: &str = "cannot be given with --sandbox, which brings its own";

/// A text that is given itself or as a file, but not both; the other way to give it is named in a fault.
fn one_of(given: Option<String>, file: &Option<String>, other: &str) -> Result<String, String> {
    let given = given.filter(|text| !text.is_empty());
    let file = file.as_ref().filter(|file| !file.is_empty());
    let text = match (given, file) {
        (Some(text), None) => text,
        (None, Some(file)) => contents(file)?,
        (Some(_), Some(_)) => return Err(format!("give it or {other}, not both")),
        (None, None) => return Err(format!("needed, or {other}; or try --sandbox")),
    };
    match text {
        text if text.is_empty() => Err("must not be empty".to_owned()),
        text if text.chars().any(char::is_control) => {
            Err("must not hold control characters".to_owned())
        }
        text => Ok(text),
    }
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
        let config = Health {
            addr: faults.read("addr", &self.addr, address, NOWHERE),
            timeout: faults.read("timeout", &self.timeout, time, MOMENT),
            service: self.service,
        };
        faults.or(config)
    }
}
