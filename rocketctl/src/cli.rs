//! The command line. Exit codes: 0 done, 1 failed, 2 wrong use.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::admin;
use crate::local::commands::{self, DownArgs, LogsArgs, StatusArgs, UpArgs};
use crate::local::state::DataRoot;
use crate::message::{ConsumeArgs, SendArgs};
use crate::servers::Role;

/// RocketMQ clusters on this computer, and the tools for any of them.
#[derive(Parser, Debug)]
#[command(name = "rocketctl", version, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Global {
    /// Name servers, host:port parted by ';' (default: those of the running local cluster)
    #[arg(
        short = 'n',
        long = "namesrv",
        global = true,
        env = "NAMESRV_ADDR",
        value_name = "ADDRESSES"
    )]
    namesrv: Option<String>,
    /// Where local clusters lie (default: $XDG_DATA_HOME/rocketcluster or ~/.local/share/rocketcluster)
    #[arg(long, global = true, env = "ROCKETCTL_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Which running local cluster, when there are several
    #[arg(long = "local", global = true, value_name = "[NAMESPACE/]NAME")]
    local: Option<String>,
}

impl Global {
    pub(crate) fn data_root(&self) -> anyhow::Result<DataRoot> {
        DataRoot::new(self.data_dir.clone())
    }

    pub(crate) fn name_servers(&self) -> anyhow::Result<String> {
        match &self.namesrv {
            Some(given) => Ok(given.clone()),
            None => commands::local_name_servers(&self.data_root()?, self.local.as_deref())
                .context("no name server is given with -n"),
        }
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start the cluster of a RocketCluster file on this computer, or apply its changes
    Up(UpArgs),
    /// Stop a local cluster; its data stays
    Down(DownArgs),
    /// Show local clusters and their pods
    Status(StatusArgs),
    /// Show what the pods of a local cluster log
    Logs(LogsArgs),
    /// Send messages
    Send(SendArgs),
    /// Print messages as they come
    Consume(ConsumeArgs),
    /// Create, list, show and delete topics
    #[command(subcommand)]
    Topic(admin::topic::TopicCommand),
    /// Show clusters
    #[command(subcommand)]
    Cluster(admin::cluster::ClusterCommand),
    /// Show and configure brokers
    #[command(subcommand)]
    Broker(admin::broker::BrokerCommand),
    /// Look at stored messages
    #[command(subcommand)]
    Message(admin::message::MessageCommand),
    /// Show consumer groups
    #[command(subcommand)]
    Consumer(admin::consumer::ConsumerCommand),
    /// Put load on a broker, or compare ours with the original
    #[cfg(target_os = "linux")]
    #[command(subcommand)]
    Bench(crate::bench::BenchCommand),
    /// Run a name server: `rocketctl mqnamesrv -h`
    #[command(name = "mqnamesrv", disable_help_flag = true)]
    NameServer(#[command(flatten)] Rest),
    /// Run a broker: `rocketctl mqbroker -h`
    #[command(name = "mqbroker", disable_help_flag = true)]
    Mqbroker(#[command(flatten)] Rest),
    /// The commands under mqadmin's names and options: `rocketctl mqadmin -h`
    #[command(name = "mqadmin", visible_alias = "admin", disable_help_flag = true)]
    Mqadmin(#[command(flatten)] Rest),
    /// Stop name servers or brokers of this machine: `rocketctl mqshutdown namesrv|broker`
    #[command(name = "mqshutdown", disable_help_flag = true)]
    Shutdown(#[command(flatten)] Rest),
}

/// Only for the list of commands: [`Role::pick`] takes these before the command line is parsed.
#[derive(Args, Debug)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _args: Vec<String>,
}

pub fn main(args: Vec<OsString>) -> ExitCode {
    let args = match Role::pick(&args) {
        // The same commands under the names of the original's tool.
        Some((Role::Admin, args)) => match admin::mqadmin::translate(args) {
            Ok(args) => args,
            Err(e) => return explain(&e),
        },
        Some((role, args)) => return role.run(args),
        None => args,
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return explain(&e),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            for (index, line) in format!("{e:#}").lines().enumerate() {
                eprintln!("{}{line}", if index == 0 { "rocketctl: " } else { "" });
            }
            ExitCode::FAILURE
        }
    }
}

fn explain(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// `rocketctl … | head` is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|c| {
        c.downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    match cli.command {
        Command::Up(args) => commands::up(&global.data_root()?, &args),
        Command::Down(args) => commands::down(&global.data_root()?, &args),
        Command::Status(args) => commands::status(&global.data_root()?, &args),
        Command::Logs(args) => commands::logs(&global.data_root()?, &args),
        Command::Send(args) => {
            admin::block_on(crate::message::send(&global.name_servers()?, &args))
        }
        Command::Consume(args) => {
            admin::block_on(crate::message::consume(&global.name_servers()?, &args))
        }
        Command::Topic(command) => {
            admin::block_on(admin::topic::run(&global.name_servers()?, command))
        }
        Command::Cluster(command) => {
            admin::block_on(admin::cluster::run(&global.name_servers()?, command))
        }
        Command::Broker(command) => admin::block_on(admin::broker::run(global, command)),
        Command::Message(command) => {
            admin::block_on(admin::message::run(&global.name_servers()?, command))
        }
        Command::Consumer(command) => {
            admin::block_on(admin::consumer::run(&global.name_servers()?, command))
        }
        #[cfg(target_os = "linux")]
        Command::Bench(command) => {
            let local = global
                .data_root()
                .and_then(|root| commands::local_broker(&root, global.local.as_deref()));
            crate::bench::run(&command, local.ok())
        }
        // Taken by `Role::pick`; only options before the name lead here.
        Command::NameServer(_)
        | Command::Mqbroker(_)
        | Command::Mqadmin(_)
        | Command::Shutdown(_) => {
            anyhow::bail!(
                "the name of a server must be the first argument: `rocketctl mqbroker -c FILE`"
            )
        }
    }
}

#[cfg(test)]
pub(crate) fn understands(args: Vec<OsString>) -> bool {
    Cli::try_parse_from(args).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
