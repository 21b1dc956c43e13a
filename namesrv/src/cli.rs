//! `mqnamesrv`, also when `rocketctl` acts as it: upstream's flags, upstream's line of success.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::NamesrvConfig;
use crate::server::NameServer;

/// Routes topics to brokers. Every key of the configuration can be overridden by an environment variable: `listenPort` by `ROCKETMQ_LISTEN_PORT`.
#[derive(Parser)]
#[command(name = "mqnamesrv", version, disable_version_flag = true)]
struct Args {
    /// Name server address list; accepted because upstream's launcher takes it, and ignored
    #[arg(short = 'n', long = "namesrvAddr", value_name = "ADDRESSES")]
    namesrv_addr: Option<String>,
    /// Name server config properties file
    #[arg(short = 'c', long = "configFile", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Print the effective configuration and exit
    #[arg(short = 'p', long = "printConfigItem")]
    print_config: bool,
    /// Print every key with its meaning and exit
    #[arg(long)]
    keys: bool,
}

/// `args` with the program's name first. Exit code: 0 done, 1 failed, 2 wrong use.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    if args.keys {
        print!("{}", NamesrvConfig::key_table());
        return ExitCode::SUCCESS;
    }
    let (config, warnings) =
        match NamesrvConfig::load(args.config_file.as_deref(), |name| std::env::var(name).ok()) {
            Ok(loaded) => loaded,
            Err(e) => return failed(&e),
        };
    for warning in &warnings {
        eprintln!("mqnamesrv: warning: {warning}");
    }
    if args.print_config {
        print!("{}", config.to_properties());
        return ExitCode::SUCCESS;
    }
    let filter = EnvFilter::try_from_env("ROCKETMQ_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stderr().is_terminal();
    // A second subscriber in one process (tests, embedding) is no fault.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!plain)
        .with_target(false)
        .try_init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("namesrv")
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return failed(&format!("cannot start threads: {e}")),
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failed(&e),
    }
}

async fn run(config: NamesrvConfig) -> Result<(), Box<dyn std::error::Error>> {
    // Before the line of success: whoever waits for it may send the signal at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = NameServer::start(config).await?;
    println!(
        "The Name Server boot success. serializeType=JSON, address {}",
        server.address()
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    server.shutdown().await;
    Ok(())
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("mqnamesrv: {error}");
    ExitCode::FAILURE
}
