//! The command line and the environment, read and checked before a socket opens. Every fault is reported at once,
//! with its flag and its variable.
//!
//! Each flag is also an environment variable: `SQRIL_GRPC_` and the flag in capitals. Only the client secret has no
//! flag, for command lines are visible to everybody on a machine.

use std::{env, fmt, fs, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;
use secrecy::SecretString;
use url::{Host, Url};

use crate::{grpc::Deadlines, rest};

const SECRET_VARIABLE: &str = "SQRIL_GRPC_CLIENT_SECRET";

/// A gRPC façade for Sqril's customer API.
#[derive(Debug, Parser)]
#[command(version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, for the life of the process"
)]
pub enum Command {
    /// Answer gRPC calls by calling Sqril.
    Serve(ServeArgs),
    /// Serve the embedded Sqril alone, over HTTP, for tests.
    Sandbox(SandboxArgs),
    /// Ask a running façade for its health: exit code 0 if it serves, 1 if not.
    Health(HealthArgs),
}

/// The flags of `serve`, as they were given.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Address for gRPC. Off loopback it needs --trust-network.
    #[arg(
        long,
        env = "SQRIL_GRPC_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:50051"
    )]
    listen: String,
    /// Address for /livez and /readyz over HTTP. Off loopback it needs --trust-network.
    #[arg(
        long,
        env = "SQRIL_GRPC_ADMIN_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:9090"
    )]
    admin_listen: String,
    /// A mesh sidecar or a network policy guards the ports: serve in plaintext off loopback.
    #[arg(long, env = "SQRIL_GRPC_TRUST_NETWORK", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true")]
    trust_network: String,
    /// Sqril's base URL; without it, that of Sqril's production.
    #[arg(long, env = "SQRIL_GRPC_UPSTREAM_URL", value_name = "URL")]
    upstream_url: Option<String>,
    /// Call the upstream without TLS although it is off loopback: the secret and all values travel readable.
    #[arg(long, env = "SQRIL_GRPC_ALLOW_PLAINTEXT_UPSTREAM", value_name = "BOOL", num_args = 0..=1,
        require_equals = true, default_value = "false", default_missing_value = "true")]
    allow_plaintext_upstream: String,
    /// Egress proxy: a URL, "env" for HTTPS_PROXY and its like, or "off".
    #[arg(
        long,
        env = "SQRIL_GRPC_UPSTREAM_PROXY",
        value_name = "URL",
        default_value = "off",
        hide_env_values = true
    )]
    upstream_proxy: String,
    /// Client id at Sqril. Needed, or --client-id-file.
    #[arg(long, env = "SQRIL_GRPC_CLIENT_ID", value_name = "ID")]
    client_id: Option<String>,
    /// File that holds the client id.
    #[arg(long, env = "SQRIL_GRPC_CLIENT_ID_FILE", value_name = "FILE")]
    client_id_file: Option<PathBuf>,
    /// File that holds the client secret. Needed, or the variable SQRIL_GRPC_CLIENT_SECRET.
    #[arg(long, env = "SQRIL_GRPC_CLIENT_SECRET_FILE", value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
    /// Call the embedded Sqril: no credentials, no network.
    #[arg(long, env = "SQRIL_GRPC_SANDBOX", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true")]
    sandbox: String,
    /// Longest time to open a connection to the upstream; less than --attempt-timeout.
    #[arg(
        long,
        env = "SQRIL_GRPC_CONNECT_TIMEOUT",
        value_name = "TIME",
        default_value = "2s"
    )]
    connect_timeout: String,
    /// Longest time for one PUT, from its start to the last byte of the answer.
    #[arg(
        long,
        env = "SQRIL_GRPC_ATTEMPT_TIMEOUT",
        value_name = "TIME",
        default_value = "10s"
    )]
    attempt_timeout: String,
    /// Longest time for a call, whatever its caller allows.
    #[arg(
        long,
        env = "SQRIL_GRPC_MAX_DEADLINE",
        value_name = "TIME",
        default_value = "30s"
    )]
    max_deadline: String,
    /// Least time left to a call for which an update is sent.
    #[arg(
        long,
        env = "SQRIL_GRPC_DEADLINE_FLOOR",
        value_name = "TIME",
        default_value = "50ms"
    )]
    deadline_floor: String,
    /// How long an unused upstream connection is kept; must be below the upstream's own keep-alive.
    #[arg(
        long,
        env = "SQRIL_GRPC_POOL_IDLE_TIMEOUT",
        value_name = "TIME",
        default_value = "4s"
    )]
    pool_idle_timeout: String,
    /// Most bytes read of the answer to an update.
    #[arg(
        long,
        env = "SQRIL_GRPC_MAX_ANSWER_BYTES",
        value_name = "BYTES",
        default_value = "65536"
    )]
    max_answer_bytes: String,
    /// Most bytes read of an error's body.
    #[arg(
        long,
        env = "SQRIL_GRPC_MAX_ERROR_BYTES",
        value_name = "BYTES",
        default_value = "16384"
    )]
    max_error_bytes: String,
    /// Longest time to finish running calls after SIGTERM or SIGINT.
    #[arg(
        long,
        env = "SQRIL_GRPC_DRAIN_TIMEOUT",
        value_name = "TIME",
        default_value = "25s"
    )]
    drain_timeout: String,
    /// gRPC reflection, by which grpcurl and its like learn the contract: on or off.
    #[arg(
        long,
        env = "SQRIL_GRPC_REFLECTION",
        value_name = "ON|OFF",
        default_value = "on"
    )]
    reflection: String,
    /// Form of the log on standard error: json or text.
    #[arg(
        long,
        env = "SQRIL_GRPC_LOG_FORMAT",
        value_name = "FORM",
        default_value = "json"
    )]
    log_format: String,
    /// Print the effective configuration, secrets hidden, and leave: exit code 0, or 64 with all its faults.
    #[arg(long, env = "SQRIL_GRPC_CHECK_CONFIG", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true")]
    check_config: String,
}

/// The flags of `sandbox`, as they were given.
#[derive(Args, Debug)]
pub struct SandboxArgs {
    /// Address for HTTP.
    #[arg(
        long,
        env = "SQRIL_GRPC_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8080"
    )]
    listen: String,
    /// Form of the log on standard error: json or text.
    #[arg(
        long,
        env = "SQRIL_GRPC_LOG_FORMAT",
        value_name = "FORM",
        default_value = "json"
    )]
    log_format: String,
}

/// The flags of `health`, as they were given.
#[derive(Args, Debug)]
pub struct HealthArgs {
    /// Address of the façade.
    #[arg(
        long,
        env = "SQRIL_GRPC_ADDR",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:50051"
    )]
    addr: String,
    /// Name to ask for; empty for the process as a whole.
    #[arg(
        long,
        env = "SQRIL_GRPC_SERVICE",
        value_name = "NAME",
        default_value = ""
    )]
    service: String,
    /// Longest time to wait for the answer.
    #[arg(
        long,
        env = "SQRIL_GRPC_TIMEOUT",
        value_name = "TIME",
        default_value = "2s"
    )]
    timeout: String,
}

/// What `serve` is to do.
#[derive(Debug)]
pub struct Serve {
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// Where the admin port listens.
    pub admin_listen: SocketAddr,
    /// Whether the ports are guarded from outside.
    pub trust_network: bool,
    /// How Sqril is reached.
    pub upstream: rest::Settings,
    /// Whether the upstream may be reached without TLS.
    pub allow_plaintext_upstream: bool,
    /// The façade's own credentials; `None` to call the embedded Sqril instead of `upstream`.
    pub credentials: Option<rest::Credentials>,
    /// How much time a call has.
    pub deadlines: Deadlines,
    /// How long running calls may take to finish at the end.
    pub drain_timeout: Duration,
    /// Whether reflection is served.
    pub reflection: bool,
    /// The form of the log.
    pub log_format: LogFormat,
    /// Whether to print all this and leave.
    pub check_config: bool,
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

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug)]
pub struct Faults(Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for Faults {}

impl Faults {
    fn add(&mut self, flag: &str, what: impl fmt::Display) {
        self.0
            .push(format!("--{flag} ({}): {what}", variable(flag)));
    }

    /// Reads a value; a fault leaves a stand-in, which nobody sees because faults end in an error.
    fn read<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, &'static str>,
        or: T,
    ) -> T {
        read(text.trim()).unwrap_or_else(|what| {
            self.add(flag, what);
            or
        })
    }

    fn or<T>(self, value: T) -> Result<T, Faults> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

impl ServeArgs {
    /// Reads the credentials' files and checks everything.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(self) -> Result<Serve, Faults> {
        let mut faults = Faults(Vec::new());
        let sandbox = faults.read("sandbox", &self.sandbox, switch, false);
        let base_url = self
            .upstream_url
            .as_deref()
            .unwrap_or("https://api.sqril.com");
        let config = Serve {
            listen: faults.read("listen", &self.listen, address, NOWHERE),
            admin_listen: faults.read("admin-listen", &self.admin_listen, address, NOWHERE),
            trust_network: faults.read("trust-network", &self.trust_network, switch, false),
            allow_plaintext_upstream: faults.read(
                "allow-plaintext-upstream",
                &self.allow_plaintext_upstream,
                switch,
                false,
            ),
            upstream: rest::Settings {
                base_url: faults.read("upstream-url", base_url, base, stand_in_url()),
                proxy: faults.read(
                    "upstream-proxy",
                    &self.upstream_proxy,
                    proxy,
                    rest::Proxy::Off,
                ),
                connect_timeout: faults.read(
                    "connect-timeout",
                    &self.connect_timeout,
                    time,
                    MOMENT,
                ),
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
                max_error_bytes: faults.read("max-error-bytes", &self.max_error_bytes, bytes, 1),
            },
            credentials: if sandbox {
                None
            } else {
                self.credentials(&mut faults)
            },
            deadlines: Deadlines {
                max: faults.read("max-deadline", &self.max_deadline, time, Duration::MAX),
                floor: faults.read("deadline-floor", &self.deadline_floor, time, MOMENT),
            },
            drain_timeout: faults.read("drain-timeout", &self.drain_timeout, time, MOMENT),
            reflection: faults.read("reflection", &self.reflection, switch, false),
            log_format: faults.read("log-format", &self.log_format, log_format, LogFormat::Json),
            check_config: faults.read("check-config", &self.check_config, switch, false),
        };
        self.check_together(&config, sandbox, &mut faults);
        faults.or(config)
    }

    /// The rules that more than one flag is needed to break.
    fn check_together(&self, config: &Serve, sandbox: bool, faults: &mut Faults) {
        for (flag, address) in [
            ("listen", config.listen),
            ("admin-listen", config.admin_listen),
        ] {
            if !address.ip().is_loopback() && !config.trust_network {
                faults.add(flag, "plaintext off loopback needs --trust-network: whoever reaches the port can change any customer");
            }
        }
        let url = &config.upstream.base_url;
        if url.scheme() == "http" && !is_loopback(url) && !config.allow_plaintext_upstream {
            faults.add(
                "upstream-url",
                "must be https off loopback, or --allow-plaintext-upstream must be given",
            );
        }
        if config.upstream.connect_timeout >= config.upstream.attempt_timeout {
            faults.add(
                "connect-timeout",
                "must be less than --attempt-timeout, or a failed connect looks like a lost update",
            );
        }
        if config.deadlines.floor >= config.deadlines.max {
            faults.add(
                "deadline-floor",
                "must be less than --max-deadline, or no call has time enough",
            );
        }
        let brought = [
            ("upstream-url", self.upstream_url.is_some()),
            ("client-id", self.client_id.is_some()),
            ("client-id-file", self.client_id_file.is_some()),
            ("client-secret-file", self.client_secret_file.is_some()),
        ];
        for (flag, _) in brought.into_iter().filter(|(_, given)| sandbox && *given) {
            faults.add(flag, "cannot be given with --sandbox, which brings its own");
        }
    }

    fn credentials(&self, faults: &mut Faults) -> Option<rest::Credentials> {
        let id = match (&self.client_id, &self.client_id_file) {
            (Some(id), None) => Ok(id.clone()),
            (None, Some(file)) => contents(file),
            (Some(_), Some(_)) => Err("give it or --client-id-file, not both".to_owned()),
            (None, None) => Err("needed, or --client-id-file; or try --sandbox".to_owned()),
        };
        let id = id.and_then(|id| match id {
            id if id.is_empty() => Err("must not be empty".to_owned()),
            id if id.contains(':') => {
                Err("must not hold \":\", which ends it in Basic authentication".to_owned())
            }
            id if id.chars().any(char::is_control) => {
                Err("must not hold control characters".to_owned())
            }
            id => Ok(id),
        });
        let given = env::var(SECRET_VARIABLE)
            .ok()
            .filter(|secret| !secret.is_empty());
        let secret = match (given, &self.client_secret_file) {
            (Some(secret), None) => Ok(secret),
            (None, Some(file)) => contents(file),
            (Some(_), Some(_)) => Err(format!("give it or {SECRET_VARIABLE}, not both")),
            (None, None) => Err(format!("needed, or {SECRET_VARIABLE}; or try --sandbox")),
        };
        let secret = secret.and_then(|secret| match secret {
            secret if secret.is_empty() => Err("must not be empty".to_owned()),
            secret if secret.chars().any(char::is_control) => {
                Err("must not hold control characters".to_owned())
            }
            secret => Ok(SecretString::from(secret)),
        });
        let id = id.map_err(|what| faults.add("client-id", what)).ok();
        let secret = secret
            .map_err(|what| faults.add("client-secret-file", what))
            .ok();
        Some(rest::Credentials {
            id: id?,
            secret: secret?,
        })
    }
}

impl SandboxArgs {
    /// Checks everything.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(self) -> Result<Sandbox, Faults> {
        let mut faults = Faults(Vec::new());
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
        let mut faults = Faults(Vec::new());
        let config = Health {
            addr: faults.read("addr", &self.addr, address, NOWHERE),
            timeout: faults.read("timeout", &self.timeout, time, MOMENT),
            service: self.service,
        };
        faults.or(config)
    }
}

/// The effective configuration, as variables that would give it again. Secrets are hidden.
impl fmt::Display for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut show =
            |flag: &str, value: &dyn fmt::Display| writeln!(f, "{}={value}", variable(flag));
        let time = |duration: Duration| {
            SignedDuration::try_from(duration)
                .map(|d| format!("{d:#}"))
                .unwrap_or_default()
        };
        show("listen", &self.listen)?;
        show("admin-listen", &self.admin_listen)?;
        show("trust-network", &self.trust_network)?;
        show("sandbox", &self.credentials.is_none())?;
        if let Some(credentials) = &self.credentials {
            show("upstream-url", &self.upstream.base_url)?;
            show("allow-plaintext-upstream", &self.allow_plaintext_upstream)?;
            show("client-id", &credentials.id)?;
            show("client-secret", &"[hidden]")?;
        }
        match &self.upstream.proxy {
            rest::Proxy::Off => show("upstream-proxy", &"off")?,
            rest::Proxy::Environment => show("upstream-proxy", &"env")?,
            rest::Proxy::Url(url) => show("upstream-proxy", &without_password(url))?,
        }
        show("connect-timeout", &time(self.upstream.connect_timeout))?;
        show("attempt-timeout", &time(self.upstream.attempt_timeout))?;
        show("max-deadline", &time(self.deadlines.max))?;
        show("deadline-floor", &time(self.deadlines.floor))?;
        show("pool-idle-timeout", &time(self.upstream.pool_idle_timeout))?;
        show("max-answer-bytes", &self.upstream.max_answer_bytes)?;
        show("max-error-bytes", &self.upstream.max_error_bytes)?;
        show("drain-timeout", &time(self.drain_timeout))?;
        show("reflection", &if self.reflection { "on" } else { "off" })?;
        show(
            "log-format",
            &if self.log_format == LogFormat::Json {
                "json"
            } else {
                "text"
            },
        )
    }
}

const NOWHERE: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(
    std::net::Ipv4Addr::LOCALHOST,
    0,
));
const MOMENT: Duration = Duration::ZERO;

fn stand_in_url() -> Url {
    Url::parse("https://stand-in.invalid").expect("a legal URL")
}

fn variable(flag: &str) -> String {
    format!("SQRIL_GRPC_{}", flag.replace('-', "_").to_ascii_uppercase())
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:50051")
}

fn switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" | "yes" => Ok(true),
        "false" | "off" | "0" | "no" | "" => Ok(false),
        _ => Err("must be on or off, or true or false"),
    }
}

fn time(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "must be a time above zero, such as 250ms, 10s or 1m";
    let time = SignedDuration::from_str(text)
        .ok()
        .and_then(|time| Duration::try_from(time).ok());
    time.filter(|time| !time.is_zero() && *time <= Duration::from_secs(86_400))
        .ok_or(FORM)
}

fn bytes(text: &str) -> Result<usize, &'static str> {
    let bytes = text
        .parse()
        .ok()
        .filter(|bytes| (1..=16 * 1024 * 1024).contains(bytes));
    bytes.ok_or("must be a number of bytes, from 1 to 16777216")
}

fn log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("must be json or text"),
    }
}

fn base(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "must be a URL, such as https://api.sqril.com")?;
    if !matches!(url.scheme(), "https" | "http") {
        Err("must be https, or http on loopback")
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("must not hold credentials; they have flags of their own")
    } else if url.query().is_some() || url.fragment().is_some() {
        Err("must not hold a query or a fragment")
    } else {
        Ok(url)
    }
}

fn proxy(text: &str) -> Result<rest::Proxy, &'static str> {
    match text {
        "off" | "" => Ok(rest::Proxy::Off),
        "env" => Ok(rest::Proxy::Environment),
        _ => match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(rest::Proxy::Url(url)),
            _ => Err("must be an http or https URL, env or off"),
        },
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn without_password(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() && url.set_password(Some("hidden")).is_err() {
        return "[hidden]".to_owned();
    }
    url.into()
}

/// A file's text without the newline that editors leave at its end.
fn contents(file: &PathBuf) -> Result<String, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
