//! `cluster list`, mqadmin's clusterList.

use anyhow::Result;
use clap::{Args, Subcommand};
use remoting::admin::Admin;
use serde::Serialize;

use super::{admin, block_on};
use crate::output::{Format, Table};

#[derive(Subcommand, Debug)]
pub(crate) enum ClusterCommand {
    /// Every cluster, broker and address, with its load
    List(ListArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Broker {
    cluster: String,
    broker_name: String,
    broker_id: i64,
    address: String,
    version: String,
    in_tps: f64,
    out_tps: f64,
    /// Share of the disk that is used, from 0 to 1.
    disk_ratio: f64,
    active: bool,
}

pub(crate) async fn run(name_servers: &str, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::List(args) => {
            let brokers = brokers(&admin(name_servers)).await?;
            args.output.show(&brokers, || table(&brokers).print())
        }
    }
}

/// For `up`, which is not async where it prints.
pub(crate) fn print_list(name_servers: &str) -> Result<()> {
    // The supervisor's runtime runs on this thread, and a runtime cannot block within another.
    std::thread::scope(|scope| {
        let listed = scope
            .spawn(|| block_on(async { Ok(table(&brokers(&admin(name_servers)).await?).text()) }))
            .join();
        let text = listed.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        tell!("{}", text.trim_end());
        Ok(())
    })
}

async fn brokers(admin: &Admin) -> Result<Vec<Broker>> {
    let info = admin.cluster_info().await?;
    let mut brokers = Vec::new();
    for (cluster, names) in &info.cluster_addr_table {
        for data in names
            .iter()
            .filter_map(|name| info.broker_addr_table.get(name))
        {
            for (id, address) in &data.broker_addrs {
                // A broker that does not answer is shown with what the name server knows.
                let figures = admin.broker_runtime_info(address).await.unwrap_or_default();
                let text = |key: &str| figures.get(key).cloned().unwrap_or_default();
                let number = |key: &str| {
                    text(key)
                        .split_whitespace()
                        .next()
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(0.0)
                };
                brokers.push(Broker {
                    cluster: cluster.clone(),
                    broker_name: data.broker_name.clone(),
                    broker_id: *id,
                    address: address.clone(),
                    version: text("brokerVersionDesc"),
                    in_tps: number("putTps"),
                    out_tps: number("getTransferredTps"),
                    disk_ratio: number("commitLogDiskRatio"),
                    active: text("brokerActive") != "false" && !figures.is_empty(),
                });
            }
        }
    }
    Ok(brokers)
}

fn table(brokers: &[Broker]) -> Table {
    let mut table = Table::new([
        "#Cluster Name",
        "#Broker Name",
        "#BID",
        "#Addr",
        "#Version",
        "#InTPS",
        "#OutTPS",
        "#SPACE",
        "#ACTIVATED",
    ]);
    for b in brokers {
        table.row([
            b.cluster.clone(),
            b.broker_name.clone(),
            b.broker_id.to_string(),
            b.address.clone(),
            b.version.clone(),
            format!("{:.2}", b.in_tps),
            format!("{:.2}", b.out_tps),
            format!("{:.4}", b.disk_ratio),
            b.active.to_string(),
        ]);
    }
    table
}
