//! The life of the process, in order: arguments, configuration, log, build, run, exit code.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command answers, and why it cannot"
)]

use std::{env, error::Error, process::ExitCode, time::Duration};

use clap::error::ErrorKind;
use rustix::process::{Resource, Rlimit};
use sqril_grpc::{
    app::App,
    config::{Cli, Command, Faults, HealthArgs, SandboxArgs, ServeArgs},
    grpc::health,
    metrics::Metrics,
    sandbox::Sandbox,
    shutdown::Signals,
    telemetry::{self, Instruments, Tracer},
};
use tokio::{net::TcpListener, task::spawn_blocking};
use tracing::info;

/// How long the last spans may take to be sent when the process leaves.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// The configuration cannot be used (`EX_USAGE` of sysexits.h).
const BAD_CONFIGURATION: u8 = 64;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::read(env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            drop(error.print());
            let asked_for = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            return if asked_for {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(BAD_CONFIGURATION)
            };
        }
    };
    let result = match cli.command {
        Command::Serve(args) => serve(args).await,
        Command::Sandbox(args) => sandbox(args).await,
        Command::Health(args) => ask_health(args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sqril-grpc: {error}");
            let code = if error.is::<Faults>() {
                BAD_CONFIGURATION
            } else {
                1
            };
            ExitCode::from(code)
        }
    }
}

/// Raises the limit of open files to what the system allows, for each connection needs one. Where that fails, the
/// listener says so once it runs out.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}

async fn serve(args: ServeArgs) -> Result<(), Box<dyn Error>> {
    let config = args.check()?;
    if let Some(effective) = config.show {
        print!("{effective}");
        return Ok(());
    }
    let metrics = Metrics::default();
    let log = telemetry::init(config.log_format, config.log_buffer, &metrics);
    tokio::spawn(log.tell_of_losses(metrics.clone()));
    raise_open_files();
    let signals = Signals::listen()?;
    let tracer = Tracer::new(config.traces, config.propagate_trace, &metrics)?;
    let instruments = Instruments {
        metrics,
        tracer: tracer.clone(),
    };
    let ended = App::build(config, instruments).await?.run(signals).await;
    spawn_blocking(move || tracer.shutdown(LAST_SPANS)).await?;
    ended
}

async fn sandbox(args: SandboxArgs) -> Result<(), Box<dyn Error>> {
    let config = args.check()?;
    let log_buffer = 1024;
    let _log = telemetry::init(config.log_format, log_buffer, &Metrics::default());
    let mut signals = Signals::listen()?;
    let sandbox = Sandbox::new(TcpListener::bind(config.listen).await?);
    info!(http = %sandbox.address()?, "serving");
    tokio::select! {
        never = sandbox.run() => match never {},
        signal = signals.next() => info!(signal, "stopped"),
    }
    Ok(())
}

async fn ask_health(args: HealthArgs) -> Result<(), Box<dyn Error>> {
    let config = args.check()?;
    health::probe(&config.target, config.service, config.timeout).await?;
    println!("SERVING");
    Ok(())
}
