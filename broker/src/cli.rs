//! `mqbroker`: upstream's options, its "boot success" line, and one clear line when it cannot start.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use crate::broker::Broker;
use crate::config::{self, BrokerConfig, KEYS, NOT_APPLICABLE, Settings, Source, Warning};
use crate::turn;

/// Exit code of wrong use.
const WRONG_USE: u8 = 2;
/// Stack of the threads that serve connections; their deepest call is shallow, and idle memory counts.
const WORKER_STACK_BYTES: usize = 1024 * 1024;

/// The RocketMQ broker.
#[derive(Debug, Parser)]
#[command(name = "mqbroker", version = version(), disable_help_flag = true)]
struct Options {
    /// Broker properties file.
    #[arg(short = 'c', long = "configFile", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name servers, `host:port` separated by `;`.
    #[arg(short = 'n', long = "namesrvAddr", value_name = "ADDRESSES")]
    namesrv: Option<String>,
    /// Print every key with the value in force, and exit.
    #[arg(short = 'p', long = "printConfigItem")]
    print: bool,
    /// Print the important keys with the value in force, and exit.
    #[arg(short = 'm', long = "printImportantConfig")]
    print_important: bool,
    /// Print every key with its type, default and meaning, and exit.
    #[arg(long)]
    keys: bool,
    /// Make an unknown key an error.
    #[arg(long)]
    strict: bool,
    /// Print help.
    #[arg(short = 'h', long = "help", action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Version of this build.
pub fn version() -> &'static str {
    option_env!("ROCKETCLUSTER_VERSION").unwrap_or(env!("CARGO_PKG_VERSION"))
}

/// Runs the broker until SIGTERM or SIGINT. `args` begin with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(args) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(WRONG_USE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    if options.keys {
        print!("{}", key_table());
        return ExitCode::SUCCESS;
    }
    init_logging();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mqbroker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ROCKETMQ_LOG")
        .unwrap_or_else(|_| "info".into());
    let plain = std::env::var_os("NO_COLOR").is_some()
        || !std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Several roles may run in one process; the first one sets the log up.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!plain)
        .with_target(false)
        .try_init();
}

/// Defaults < file < environment < flags.
fn load(options: &Options) -> Result<(BrokerConfig, String, Vec<Warning>), config::Error> {
    let mut config = BrokerConfig::default();
    if let Ok(address) = std::env::var("NAMESRV_ADDR") {
        config.set(
            Source::Environment("NAMESRV_ADDR".to_owned()),
            "namesrvAddr",
            &address,
        )?;
    }
    let (mut hash, mut warnings) = (String::new(), Vec::new());
    if let Some(path) = &options.config {
        let bytes = std::fs::read(path).map_err(|source| config::Error::Read {
            path: path.clone(),
            source,
        })?;
        hash = remoting::properties::config_hash(&bytes);
        warnings = config.apply_file(path, &bytes)?;
    }
    config.apply_environment(|name| std::env::var(name).ok())?;
    if let Some(addresses) = &options.namesrv {
        config.set(Source::Flag("-n"), "namesrvAddr", addresses)?;
    }
    Ok((config, hash, warnings))
}

/// Says where the value that cannot be was written, as far as it was.
fn located(error: config::Error, options: &Options) -> anyhow::Error {
    let config::Error::Refused { key, .. } = &error else {
        return error.into();
    };
    let variable = remoting::properties::environment_name(key);
    let from = if std::env::var_os(&variable).is_some() {
        Some(Source::Environment(variable))
    } else {
        options.config.as_ref().and_then(|path| {
            let line = config::line_of(&std::fs::read(path).ok()?, key)?;
            Some(Source::File(path.clone(), line))
        })
    };
    match from {
        Some(from) => anyhow::anyhow!("{from}: {error}"),
        None => error.into(),
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let (config, hash, warnings) = load(options)?;
    for warning in warnings {
        if options.strict {
            return Err(config::Error::Unknown(warning).into());
        }
        eprintln!("warning: {warning}");
    }
    let mut settings = config.validate().map_err(|error| located(error, options))?;
    if options.print || options.print_important {
        let config = settings.in_force();
        for key in KEYS {
            if options.print || key.important {
                println!("{}={}", key.name, key.value(&config));
            }
        }
        return Ok(());
    }
    settings.config_hash = hash;
    settings.config_path.clone_from(&options.config);
    let workers = usize::try_from(settings.raw.worker_threads).unwrap_or(0);
    let workers = if workers == 0 {
        std::thread::available_parallelism().map_or(2, usize::from)
    } else {
        workers
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = turn::install(&mut runtime)
        .worker_threads(workers)
        .thread_stack_size(WORKER_STACK_BYTES)
        .thread_name("broker")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(serve(settings))
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // Before the long part of the start, so that an early signal still ends in an orderly way.
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let started = tokio::select! {
        started = Broker::start(settings) => started,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let broker = started?;
    println!("{}", boot_line(&broker));
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    broker.shutdown().await;
    tracing::info!("stopped");
    Ok(())
}

/// Upstream's line; scripts wait for "boot success".
pub fn boot_line(broker: &Broker) -> String {
    let raw = &broker.settings.raw;
    let mut line = format!(
        "The broker[{}, {}] boot success. serializeType=JSON",
        raw.broker_name,
        broker.address()
    );
    if !raw.namesrv_addr.is_empty() {
        line.push_str(" and name server is ");
        line.push_str(&raw.namesrv_addr);
    }
    line
}

/// Every key as Markdown: what `--keys` prints and the documentation holds.
pub fn key_table() -> String {
    use std::fmt::Write as _;
    let defaults = BrokerConfig::default();
    let mut out = String::from(
        "# Keys of `broker.conf`\n\nPrinted by `mqbroker --keys`. An environment variable sets a key too: `brokerName` by `ROCKETMQ_BROKER_NAME`.\nDefaults < file < environment < command line.\n\n| Key | Type | Default | Changed by request 25 | Meaning |\n|---|---|---|---|---|\n",
    );
    for key in KEYS {
        let change = match key.change {
            config::Change::Dynamic => "at once",
            config::Change::AtStart => "after a restart",
        };
        let default = match key.name {
            // These depend on the machine.
            "brokerName" => "host name".to_owned(),
            "storePathRootDir" => "~/store".to_owned(),
            _ => key.value(&defaults),
        };
        let _ = writeln!(
            out,
            "| {} | {} | {default} | {change} | {} |",
            key.name,
            key.type_name,
            key.meaning.replace('|', "\\|")
        );
    }
    out.push_str("\nAccepted, without effect:\n\n| Key | Why |\n|---|---|\n");
    for (name, why) in NOT_APPLICABLE {
        let _ = writeln!(out, "| {name} | {why} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mqbroker --keys > docs/broker-keys.md` after a change of the table.
    #[test]
    fn the_key_table_of_the_documentation_is_current() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/broker-keys.md");
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(written, key_table());
    }
}
