//! `broker status|config`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use remoting::admin::Admin;

use super::{admin, masters_of};
use crate::cli::Global;
use crate::output::Format;

#[derive(Subcommand, Debug)]
pub(crate) enum BrokerCommand {
    /// What a broker counts and measures
    Status(StatusArgs),
    /// The configuration a broker runs with; with KEY=VALUE, change it
    Config(ConfigArgs),
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    which: Which,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    which: Which,
    /// Change these keys while it runs
    #[arg(value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Show only keys that contain this
    #[arg(short = 'k', long, value_name = "TEXT")]
    key: Option<String>,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
struct Which {
    /// Broker address, host:port (default: every master)
    #[arg(short = 'b', long = "broker", value_name = "ADDR")]
    address: Option<String>,
    /// Broker name, as in `cluster list`
    #[arg(long, value_name = "NAME", conflicts_with = "address")]
    name: Option<String>,
}

impl Which {
    async fn addresses(&self, admin: &Admin) -> Result<Vec<String>> {
        if let Some(address) = &self.address {
            return Ok(vec![address.clone()]);
        }
        let masters = masters_of(admin, None).await?;
        let Some(name) = &self.name else {
            return Ok(masters.into_values().collect());
        };
        let found = masters.get(name).cloned();
        let known: Vec<&str> = masters.keys().map(String::as_str).collect();
        Ok(vec![found.with_context(|| {
            format!("there is no broker {name}; there is {}", known.join(", "))
        })?])
    }

    /// An address needs no name server.
    fn name_servers(&self, global: &Global) -> Result<String> {
        if self.address.is_some() {
            Ok(String::new())
        } else {
            global.name_servers()
        }
    }
}

pub(crate) async fn run(global: &Global, command: BrokerCommand) -> Result<()> {
    match command {
        BrokerCommand::Status(args) => {
            let admin = admin(&args.which.name_servers(global)?);
            let mut all = BTreeMap::new();
            for address in args.which.addresses(&admin).await? {
                let figures = admin.broker_runtime_info(&address).await?;
                all.insert(address, figures);
            }
            args.output.show(&all, || show(&all, None))
        }
        BrokerCommand::Config(args) => {
            let admin = admin(&args.which.name_servers(global)?);
            let addresses = args.which.addresses(&admin).await?;
            if !args.changes.is_empty() {
                let changes = args
                    .changes
                    .iter()
                    .map(|c| change(c))
                    .collect::<Result<BTreeMap<_, _>>>()?;
                for address in addresses {
                    let remark = admin.update_broker_config(&address, &changes).await?;
                    say!(
                        "update broker config success, {address}{}",
                        remark.map(|r| format!(" ({r})")).unwrap_or_default()
                    );
                }
                return Ok(());
            }
            let mut all = BTreeMap::new();
            for address in addresses {
                let values = admin.broker_config(&address).await?.values;
                all.insert(address, values);
            }
            args.output.show(&all, || show(&all, args.key.as_deref()))
        }
    }
}

fn change(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => bail!("`{text}`: expected KEY=VALUE"),
    }
}

fn show(all: &BTreeMap<String, BTreeMap<String, String>>, only: Option<&str>) {
    for (address, values) in all {
        say!("============{address}============");
        for (key, value) in values
            .iter()
            .filter(|(k, _)| only.is_none_or(|o| k.to_lowercase().contains(&o.to_lowercase())))
        {
            say!("{key:<40} = {value}");
        }
    }
}
