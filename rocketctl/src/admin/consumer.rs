//! `consumer progress`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use remoting::admin::{Admin, Error};
use remoting::protocol::body::{ConsumeStats, MessageQueue};
use remoting::protocol::response_code;
use serde_json::{Value, json};

use super::{admin, masters_of};
use crate::output::{Format, Table, time};

#[derive(Subcommand, Debug)]
pub(crate) enum ConsumerCommand {
    /// How far a group has come, queue by queue; without --group, all groups
    Progress(ProgressArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ProgressArgs {
    #[arg(short = 'g', long)]
    group: Option<String>,
    #[arg(short = 't', long, requires = "group")]
    topic: Option<String>,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) async fn run(name_servers: &str, command: ConsumerCommand) -> Result<()> {
    let admin = admin(name_servers);
    let ConsumerCommand::Progress(args) = command;
    match &args.group {
        Some(group) => one(&admin, group, &args).await,
        None => all(&admin, args.output).await,
    }
}

/// The statistics of a group on all brokers; `None` where no broker knows the group.
async fn stats(admin: &Admin, group: &str, topic: Option<&str>) -> Result<Option<ConsumeStats>> {
    let mut sum: Option<ConsumeStats> = None;
    for address in masters_of(admin, None).await?.values() {
        match admin.consume_stats(address, group, topic).await {
            Ok(stats) => {
                let sum = sum.get_or_insert_with(ConsumeStats::default);
                sum.consume_tps += stats.consume_tps;
                sum.offset_table.extend(stats.offset_table);
            }
            // Not on this broker.
            Err(Error::Refused {
                code:
                    response_code::CONSUMER_NOT_ONLINE
                    | response_code::SUBSCRIPTION_GROUP_NOT_EXIST
                    | response_code::TOPIC_NOT_EXIST,
                ..
            }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(sum)
}

fn behind(stats: &ConsumeStats) -> i64 {
    stats
        .offset_table
        .values()
        .map(|o| (o.broker_offset - o.consumer_offset).max(0))
        .sum()
}

async fn one(admin: &Admin, group: &str, args: &ProgressArgs) -> Result<()> {
    let Some(stats) = stats(admin, group, args.topic.as_deref()).await? else {
        bail!("no broker knows the group {group}")
    };
    let rows: Vec<(&MessageQueue, Value)> = stats
        .offset_table
        .iter()
        .map(|(queue, o)| {
            let row = json!({
                "topic": queue.topic, "brokerName": queue.broker_name, "queueId": queue.queue_id,
                "brokerOffset": o.broker_offset, "consumerOffset": o.consumer_offset,
                "diff": o.broker_offset - o.consumer_offset, "lastTimestamp": o.last_timestamp,
            });
            (queue, row)
        })
        .collect();
    let json = json!({"group": group, "consumeTps": stats.consume_tps, "diffTotal": behind(&stats), "queues": rows.iter().map(|(_, r)| r).collect::<Vec<_>>()});
    args.output.show(&json, || {
        let mut table = Table::new([
            "#Topic",
            "#Broker Name",
            "#QID",
            "#Broker Offset",
            "#Consumer Offset",
            "#Diff",
            "#LastTime",
        ]);
        for (queue, o) in stats.offset_table.iter() {
            table.row([
                queue.topic.clone(),
                queue.broker_name.clone(),
                queue.queue_id.to_string(),
                o.broker_offset.to_string(),
                o.consumer_offset.to_string(),
                (o.broker_offset - o.consumer_offset).to_string(),
                time(o.last_timestamp),
            ]);
        }
        table.print();
        say!(
            "\nConsume TPS: {:.2}\nConsume Diff Total: {}",
            stats.consume_tps,
            behind(&stats)
        );
    })
}

async fn all(admin: &Admin, output: Format) -> Result<()> {
    const SYSTEM_GROUPS: [&str; 4] = [
        "TOOLS_CONSUMER",
        "FILTERSRV_CONSUMER",
        "SELF_TEST_C_GROUP",
        "SELF_TEST_P_GROUP",
    ];
    let masters = masters_of(admin, None).await?;
    let mut groups = BTreeSet::new();
    for address in masters.values() {
        groups.extend(
            admin
                .subscription_groups(address)
                .await?
                .subscription_group_table
                .into_keys(),
        );
    }
    groups.retain(|g| {
        !SYSTEM_GROUPS.contains(&g.as_str())
            && !g.starts_with("CID_ONS")
            && !g.starts_with("CID_RMQ_SYS_")
    });
    let mut found: BTreeMap<String, (usize, f64, i64)> = BTreeMap::new();
    for group in groups {
        let mut members = BTreeSet::new();
        for address in masters.values() {
            if let Some(connection) = admin.consumer_connection(address, &group).await? {
                members.extend(connection.connection_set.into_iter().map(|c| c.client_id));
            }
        }
        let stats = stats(admin, &group, None).await?.unwrap_or_default();
        found.insert(group, (members.len(), stats.consume_tps, behind(&stats)));
    }
    let json: Vec<Value> = found.iter().map(|(g, (count, tps, diff))| json!({"group": g, "count": count, "consumeTps": tps, "diffTotal": diff})).collect();
    output.show(&json, || {
        let mut table = Table::new(["#Group", "#Count", "#TPS", "#Diff Total"]);
        for (group, (count, tps, diff)) in &found {
            let count = if *count == 0 {
                "OFFLINE".to_owned()
            } else {
                count.to_string()
            };
            table.row([group.clone(), count, format!("{tps:.2}"), diff.to_string()]);
        }
        table.print();
    })
}
