//! The flags of each command, as text: nothing is judged here, so that everything can be judged at once.

use std::{env, ffi::OsString};

use clap::{
    Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource,
};
use url::Url;

use super::SECRET_VARIABLE;
use crate::identity::FORWARDED_CERTIFICATE;

/// A gRPC façade for Sqril's customer API.
#[derive(Parser)]
#[command(version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
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

impl Cli {
    /// Reads a command line and the environment.
    ///
    /// # Errors
    /// What clap has to say, a demand for help included.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        let command = Cli::command().mut_subcommands(|command| command.mut_args(completed));
        let matches = command.try_get_matches_from(line)?;
        let mut cli = Cli::from_arg_matches(&matches)?;
        if let (Command::Serve(args), Some((_, matches))) = (&mut cli.command, matches.subcommand())
        {
            args.matches = matches.clone();
        }
        Ok(cli)
    }
}

/// Gives a flag its variable, and a switch its forms: `--flag` and `--flag=false`.
fn completed(arg: Arg) -> Arg {
    let Some(flag) = arg
        .get_long()
        .filter(|flag| *flag != "help")
        .map(str::to_owned)
    else {
        return arg;
    };
    let is_switch = arg.get_value_names().is_some_and(|names| names == ["BOOL"]);
    // A proxy's URL may hold a password.
    let arg = arg.env(variable(&flag)).hide_env_values(true);
    if is_switch {
        arg.num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .required(false)
    } else {
        arg
    }
}

/// A flag's variable.
pub(super) fn variable(flag: &str) -> String {
    format!("SQRIL_GRPC_{}", flag.replace('-', "_").to_ascii_uppercase())
}

/// The flags of `serve`, as they were given.
#[derive(Args)]
pub struct ServeArgs {
    /// Address for gRPC. Off loopback it needs --tls-cert or --trust-network.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:50051")]
    pub(super) listen: String,
    /// Address for /livez, /readyz and /metrics over HTTP. Off loopback it needs --trust-network.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9090")]
    pub(super) admin_listen: String,
    /// A mesh sidecar or a network policy guards the ports: serve in plaintext off loopback.
    #[arg(long, value_name = "BOOL")]
    pub(super) trust_network: String,
    /// PEM file with the certificate to show callers, and those between it and its authority. Turns TLS on.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_cert: Option<String>,
    /// PEM file with its private key.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_key: Option<String>,
    /// PEM file with the authorities of callers' certificates: callers must show one, and be allowed to call.
    #[arg(long, value_name = "FILE")]
    pub(super) client_ca: Option<String>,
    /// PEM file with the certificates that these have revoked, a list by each authority.
    #[arg(long, value_name = "FILE")]
    pub(super) client_crl: Option<String>,
    /// Who may call: spiffe://domain/path, spiffe://domain/path/* or a DNS name. May be given more than once.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub(super) allow_caller: Vec<String>,
    /// Answer health checks to everybody who reaches the port, with a certificate or without.
    #[arg(long, value_name = "BOOL")]
    pub(super) open_health: String,
    /// Know callers by what a proxy says of their certificates in x-forwarded-client-cert. Needs --trust-network.
    #[arg(long, value_name = "HEADER", num_args = 0..=1, default_missing_value = FORWARDED_CERTIFICATE)]
    pub(super) identity_header: Option<String>,
    /// Networks of the proxies that may say so.
    #[arg(
        long,
        value_name = "NETWORK",
        value_delimiter = ',',
        default_value = "127.0.0.0/8,::1/128"
    )]
    pub(super) identity_header_from: Vec<String>,
    /// Longest time of a TLS handshake.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(super) handshake_timeout: String,
    /// Most TLS handshakes at one time; further ones wait their turn.
    #[arg(long, value_name = "NUMBER", default_value = "256")]
    pub(super) max_handshakes: String,
    /// How often files of certificates and credentials are read again; 0 for only at SIGHUP.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(super) reload_interval: String,
    /// File with the key of the hash by which logs name customers, so that replicas agree; without it each has its own.
    #[arg(long, value_name = "FILE")]
    pub(super) hash_key_file: Option<String>,
    /// Sqril's base URL; https unless on loopback.
    #[arg(long, value_name = "URL", default_value = "https://api.sqril.com")]
    pub(super) upstream_url: String,
    /// Call the upstream without TLS although it is off loopback: the secret and all values travel readable.
    #[arg(long, value_name = "BOOL")]
    pub(super) allow_plaintext_upstream: String,
    /// Egress proxy: a URL, "env" for HTTPS_PROXY and its like, or "off".
    #[arg(long, value_name = "URL", default_value = "off")]
    pub(super) upstream_proxy: String,
    /// PEM file with the authorities of the upstream's certificate, instead of the system's.
    #[arg(long, value_name = "FILE")]
    pub(super) upstream_ca: Option<String>,
    /// Client id at Sqril. Needed, or --client-id-file.
    #[arg(long, value_name = "ID")]
    pub(super) client_id: Option<String>,
    /// File that holds the client id.
    #[arg(long, value_name = "FILE")]
    pub(super) client_id_file: Option<String>,
    /// File that holds the client secret. Needed, or the variable SQRIL_GRPC_CLIENT_SECRET.
    #[arg(long, value_name = "FILE")]
    pub(super) client_secret_file: Option<String>,
    /// Call the embedded Sqril: no credentials, no network.
    #[arg(long, value_name = "BOOL")]
    pub(super) sandbox: String,
    /// Longest time to open a connection to the upstream; less than --attempt-timeout.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub(super) connect_timeout: String,
    /// Longest time for one PUT, from its start to the last byte of the answer.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(super) attempt_timeout: String,
    /// Longest time for a call, whatever its caller allows.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(super) max_deadline: String,
    /// Least time left to a call for which an update is sent.
    #[arg(long, value_name = "TIME", default_value = "50ms")]
    pub(super) deadline_floor: String,
    /// How long an unused upstream connection is kept; must be below the upstream's own keep-alive.
    #[arg(long, value_name = "TIME", default_value = "4s")]
    pub(super) pool_idle_timeout: String,
    /// Most bytes read of the answer to an update.
    #[arg(long, value_name = "BYTES", default_value = "65536")]
    pub(super) max_answer_bytes: String,
    /// Most bytes read of an error's body.
    #[arg(long, value_name = "BYTES", default_value = "16384")]
    pub(super) max_error_bytes: String,
    /// Most connections to the upstream, which is also the most PUTs at one time; further ones wait.
    #[arg(long, value_name = "NUMBER", default_value = "256")]
    pub(super) upstream_connections: String,
    /// Second attempts for each call, where they are safe: 0.1 is one for ten calls; 0 is none.
    #[arg(long, value_name = "SHARE", default_value = "0.1")]
    pub(super) retry_budget: String,
    /// Stop sending while most of what is sent fails: on or off.
    #[arg(long, value_name = "ON|OFF", default_value = "on")]
    pub(super) breaker: String,
    /// Most calls under way at one time.
    #[arg(long, value_name = "NUMBER", default_value = "1024")]
    pub(super) max_in_flight: String,
    /// Most calls that wait for one of them to end; one over that is refused at once.
    #[arg(long, value_name = "NUMBER", default_value = "256")]
    pub(super) max_queued: String,
    /// Most connections from callers; one over that is closed at once.
    #[arg(long, value_name = "NUMBER", default_value = "10000")]
    pub(super) max_connections: String,
    /// Longest time until a connection has begun HTTP/2.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(super) preface_timeout: String,
    /// How long a caller's connection lives, give or take a tenth, so that load spreads over replicas.
    #[arg(long, value_name = "TIME", default_value = "30m")]
    pub(super) max_connection_age: String,
    /// How long calls are still welcome after SIGTERM, while health checks say NOT_SERVING [default: 5s; 0s with --sandbox]
    #[arg(long, value_name = "TIME")]
    pub(super) drain_delay: Option<String>,
    /// Longest time to finish running calls after that.
    #[arg(long, value_name = "TIME", default_value = "25s")]
    pub(super) drain_timeout: String,
    /// gRPC reflection, by which grpcurl and its like learn the contract: on or off.
    #[arg(long, value_name = "ON|OFF", default_value = "on")]
    pub(super) reflection: String,
    /// Form of the log on standard error: json or text.
    #[arg(long, value_name = "FORM", default_value = "json")]
    pub(super) log_format: String,
    /// Most lines of the log that wait to be written; further ones are lost, and counted.
    #[arg(long, value_name = "NUMBER", default_value = "8192")]
    pub(super) log_buffer: String,
    /// Tell Sqril which trace an update belongs to, in the header `traceparent`.
    #[arg(long, value_name = "BOOL")]
    pub(super) propagate_trace: String,
    /// Print the effective configuration, secrets hidden, and leave: exit code 0, or 64 with all its faults.
    #[arg(long, value_name = "BOOL")]
    pub(super) check_config: String,
    /// Where each value came from.
    #[arg(skip)]
    pub(super) matches: ArgMatches,
}

/// The flags of `sandbox`, as they were given.
#[derive(Args)]
pub struct SandboxArgs {
    /// Address for HTTP.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    pub(super) listen: String,
    /// Form of the log on standard error: json or text.
    #[arg(long, value_name = "FORM", default_value = "json")]
    pub(super) log_format: String,
}

/// The flags of `health`, as they were given.
#[derive(Args)]
pub struct HealthArgs {
    /// Address of the façade.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:50051")]
    pub(super) addr: String,
    /// Name to ask for; empty for the process as a whole.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(super) service: String,
    /// PEM file with the authorities of its certificate. Turns TLS on.
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<String>,
    /// Name in its certificate, if it is not the address.
    #[arg(long, value_name = "NAME")]
    pub(super) server_name: Option<String>,
    /// PEM file with a certificate to show, where health checks are not open.
    #[arg(long, value_name = "FILE")]
    pub(super) cert: Option<String>,
    /// PEM file with its private key.
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<String>,
    /// Longest time to wait for the answer.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub(super) timeout: String,
}

impl ServeArgs {
    /// Whether a flag was given, by itself or by its variable; an empty value is none.
    pub(super) fn is_given(&self, flag: &str) -> bool {
        let id = flag.replace('-', "_");
        let source = self.matches.value_source(&id);
        source.is_some_and(|source| source != ValueSource::DefaultValue)
            && !self.value(&id).is_empty()
    }

    /// The value of every flag that has one, as the variable that would give it again. Secrets are hidden.
    pub(super) fn effective(&self) -> String {
        let command = Self::augment_args(clap::Command::new(""));
        let ids = command.get_arguments().map(|arg| arg.get_id().as_str());
        let values = ids.map(|id| (id, self.value(id)));
        let shown = values.filter(|(id, value)| !value.is_empty() && *id != "check_config");
        let mut lines: String = shown
            .map(|(id, value)| format!("{}={}\n", variable(id), without_password(&value)))
            .collect();
        if env::var_os(SECRET_VARIABLE).is_some() {
            lines += &format!("{SECRET_VARIABLE}=[hidden]\n");
        }
        lines
    }

    fn value(&self, id: &str) -> String {
        let values = self.matches.get_many::<String>(id);
        values.map_or_else(String::new, |values| {
            values.map(String::as_str).collect::<Vec<_>>().join(",")
        })
    }
}

fn without_password(value: &str) -> String {
    match Url::parse(value) {
        Ok(url) if url.password().is_some() => format!(
            "{}://[hidden]@{}",
            url.scheme(),
            url.authority().rsplit('@').next().unwrap_or_default()
        ),
        _ => value.to_owned(),
    }
}
