//! `topic create|list|route|delete`.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use remoting::protocol::body::{PERM_READ, PERM_WRITE, TopicConfig};

use super::{MASTER_ID, admin, masters_of, route};
use crate::output::{Format, Table};

/// `TopicValidator`: longer names are refused by brokers.
const MAX_TOPIC: usize = 127;

#[derive(Subcommand, Debug)]
pub(crate) enum TopicCommand {
    /// Create a topic on every master of a cluster, or change it
    Create(CreateArgs),
    /// Every topic the name server knows
    List(ListArgs),
    /// Where a topic lives: its queues and brokers
    Route(RouteArgs),
    /// Delete a topic from brokers and name servers, with its messages
    Delete(DeleteArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    topic: String,
    /// Queues on each broker
    #[arg(short = 'q', long, default_value_t = 8)]
    queues: u16,
    /// Queues that consumers read, where it is not --queues
    #[arg(long, value_name = "QUEUES")]
    read_queues: Option<u16>,
    /// Queues that producers write, where it is not --queues
    #[arg(long, value_name = "QUEUES")]
    write_queues: Option<u16>,
    /// What clients may do: r, w or rw
    #[arg(short = 'p', long, default_value = "rw", value_parser = ["r", "w", "rw"])]
    perm: String,
    #[arg(short = 'c', long)]
    cluster: Option<String>,
    /// Only on this broker, host:port
    #[arg(short = 'b', long, value_name = "ADDR", conflicts_with = "cluster")]
    broker: Option<String>,
    /// Keep messages of a queue in order when brokers come and go
    #[arg(long)]
    order: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[arg(short = 'c', long)]
    cluster: Option<String>,
    /// Also those that brokers make for themselves
    #[arg(short = 'a', long)]
    all: bool,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
pub(crate) struct RouteArgs {
    topic: String,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    topic: String,
    #[arg(short = 'c', long)]
    cluster: Option<String>,
}

pub(crate) async fn run(name_servers: &str, command: TopicCommand) -> Result<()> {
    let admin = admin(name_servers);
    match command {
        TopicCommand::Create(args) => {
            check_name(&args.topic)?;
            let masters: Vec<String> = match &args.broker {
                Some(address) => vec![address.clone()],
                None => masters_of(&admin, args.cluster.as_deref())
                    .await?
                    .into_values()
                    .collect(),
            };
            if masters.is_empty() {
                bail!("no master is registered that could take the topic");
            }
            let perm = args
                .perm
                .chars()
                .map(|c| if c == 'r' { PERM_READ } else { PERM_WRITE })
                .sum();
            let config = TopicConfig {
                order: args.order,
                read_queue_nums: args.read_queues.unwrap_or(args.queues).into(),
                write_queue_nums: args.write_queues.unwrap_or(args.queues).into(),
                ..TopicConfig::new(&args.topic, i32::from(args.queues), perm)
            };
            for address in &masters {
                admin.create_topic(address, &config).await?;
                say!("create topic to {address} success.");
            }
            Ok(())
        }
        TopicCommand::List(args) => {
            let found = match &args.cluster {
                Some(cluster) => admin.topics_by_cluster(cluster).await?,
                None => admin.topic_list().await?,
            };
            let info = admin.cluster_info().await?;
            let made_by_brokers = |topic: &str| {
                info.cluster_addr_table.contains_key(topic)
                    || info.broker_addr_table.contains_key(topic)
                    || is_system(topic)
            };
            let topics: Vec<String> = found
                .topic_list
                .into_iter()
                .filter(|t| args.all || !made_by_brokers(t))
                .collect();
            args.output
                .show(&topics, || topics.iter().for_each(|t| say!("{t}")))
        }
        TopicCommand::Route(args) => {
            let route = route(&admin, &args.topic).await?;
            args.output.show(&route, || {
                let mut table = Table::new([
                    "BROKER",
                    "CLUSTER",
                    "READ QUEUES",
                    "WRITE QUEUES",
                    "PERM",
                    "MASTER",
                    "SLAVES",
                ]);
                for queue in &route.queue_datas {
                    let broker = route
                        .broker_datas
                        .iter()
                        .find(|b| b.broker_name == queue.broker_name);
                    let addrs = broker.map(|b| b.broker_addrs.clone()).unwrap_or_default();
                    let slaves: Vec<String> = addrs
                        .iter()
                        .filter(|(id, _)| **id != MASTER_ID)
                        .map(|(_, a)| a.clone())
                        .collect();
                    table.row([
                        queue.broker_name.clone(),
                        broker.map(|b| b.cluster.clone()).unwrap_or_default(),
                        queue.read_queue_nums.to_string(),
                        queue.write_queue_nums.to_string(),
                        perm_text(queue.perm),
                        addrs
                            .get(&MASTER_ID)
                            .cloned()
                            .unwrap_or_else(|| "none".to_owned()),
                        slaves.join(" "),
                    ]);
                }
                table.print();
            })
        }
        TopicCommand::Delete(args) => {
            let masters = masters_of(&admin, args.cluster.as_deref()).await?;
            // Brokers first: one that still has the topic would register it again.
            for address in masters.values() {
                admin.delete_topic_in_broker(address, &args.topic).await?;
            }
            admin
                .delete_topic_in_name_servers(&args.topic, args.cluster.as_deref())
                .await?;
            say!("delete topic [{}] success.", args.topic);
            Ok(())
        }
    }
}

fn check_name(topic: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '%' | '|' | '-' | '_');
    if topic.is_empty() || topic.len() > MAX_TOPIC || !topic.chars().all(allowed) {
        bail!("`{topic}` is no topic name: 1 to {MAX_TOPIC} letters, digits, '-', '_', '%' or '|'");
    }
    Ok(())
}

/// Topics that brokers make for themselves at start.
fn is_system(topic: &str) -> bool {
    const NAMES: [&str; 8] = [
        "SELF_TEST_TOPIC",
        "TBW102",
        "BenchmarkTest",
        "OFFSET_MOVED_EVENT",
        "SCHEDULE_TOPIC_XXXX",
        "RMQ_SYS_TRACE_TOPIC",
        "RMQ_SYS_TRANS_HALF_TOPIC",
        "RMQ_SYS_TRANS_OP_HALF_TOPIC",
    ];
    NAMES.contains(&topic)
        || topic == "TRANS_CHECK_MAX_TIME_TOPIC"
        || topic.starts_with("rmq_sys_")
        || topic.ends_with("_REPLY_TOPIC")
}

fn perm_text(perm: i32) -> String {
    let bit = |mask, letter| if perm & mask == 0 { '-' } else { letter };
    [bit(PERM_READ, 'r'), bit(PERM_WRITE, 'w')].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_permissions() {
        assert!(check_name("a-b_C%|9").is_ok());
        assert!(
            check_name("").is_err()
                && check_name("a b").is_err()
                && check_name(&"x".repeat(128)).is_err()
        );
        assert_eq!(
            (
                perm_text(6).as_str(),
                perm_text(4).as_str(),
                perm_text(2).as_str()
            ),
            ("rw", "r-", "-w")
        );
        assert!(
            is_system("rmq_sys_wheel_timer")
                && is_system("demo_REPLY_TOPIC")
                && !is_system("orders")
        );
    }
}
