//! `message view|query`.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use remoting::admin::Message;
use remoting::protocol::message::MessageId;
use serde_json::{Value, json};

use super::{admin, reachable, route};
use crate::message::shown_body;
use crate::output::{Format, Table, time};

#[derive(Subcommand, Debug)]
pub(crate) enum MessageCommand {
    /// One message by its id: an offset id, or with --topic the unique id that producers print
    View(ViewArgs),
    /// Messages by key
    Query(QueryArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ViewArgs {
    id: String,
    /// The topic, for a unique id
    #[arg(short = 't', long)]
    topic: Option<String>,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
pub(crate) struct QueryArgs {
    #[arg(short = 't', long)]
    topic: String,
    #[arg(short = 'k', long)]
    key: String,
    #[arg(long, default_value_t = 64)]
    max: i32,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) async fn run(name_servers: &str, command: MessageCommand) -> Result<()> {
    let admin = admin(name_servers);
    match command {
        MessageCommand::View(args) => {
            let found = match &args.topic {
                Some(topic) => query(&admin, topic, &args.id, 1, true)
                    .await?
                    .into_iter()
                    .next(),
                None => {
                    let id = MessageId::parse(&args.id).with_context(|| {
                        format!(
                            "`{}` is no offset id; for a unique id give --topic too",
                            args.id
                        )
                    })?;
                    admin.view_message(&id.host.to_string(), id.offset).await?
                }
            };
            let Some(message) = found else {
                bail!("no message has the id {}", args.id)
            };
            args.output.show(&value(&message), || print(&message))
        }
        MessageCommand::Query(args) => {
            let found = query(&admin, &args.topic, &args.key, args.max, false).await?;
            let values: Vec<Value> = found.iter().map(value).collect();
            args.output.show(&values, || {
                let mut table = Table::new(["#Message ID", "#QID", "#Offset", "#Stored", "#Body"]);
                for m in &found {
                    let unique = m.properties.get("UNIQ_KEY").unwrap_or(&m.msg_id).clone();
                    table.row([
                        unique,
                        m.queue_id.to_string(),
                        m.queue_offset.to_string(),
                        time(m.store_timestamp),
                        shown_body(m, 60),
                    ]);
                }
                table.print();
            })
        }
    }
}

/// Asks every broker that has the topic.
async fn query(
    admin: &remoting::admin::Admin,
    topic: &str,
    key: &str,
    max: i32,
    unique: bool,
) -> Result<Vec<Message>> {
    let route = route(admin, topic).await?;
    let mut found = Vec::new();
    for broker in &route.broker_datas {
        let Some(address) = reachable(&route, &broker.broker_name) else {
            continue;
        };
        found.extend(
            admin
                .query_message(&address, topic, key, max, (0, i64::MAX), unique)
                .await?,
        );
    }
    found.sort_by_key(|m| m.store_timestamp);
    found.truncate(usize::try_from(max).unwrap_or(0));
    Ok(found)
}

fn value(m: &Message) -> Value {
    json!({
        "offsetId": m.msg_id,
        "uniqueId": m.properties.get("UNIQ_KEY"),
        "topic": m.topic,
        "queueId": m.queue_id,
        "queueOffset": m.queue_offset,
        "commitLogOffset": m.physical_offset,
        "bornTimestamp": m.born_timestamp,
        "bornHost": m.born_host,
        "storeTimestamp": m.store_timestamp,
        "storeHost": m.store_host,
        "reconsumeTimes": m.reconsume_times,
        "sysFlag": m.sys_flag,
        "flag": m.flag,
        "properties": m.properties,
        "body": shown_body(m, usize::MAX),
    })
}

fn print(m: &Message) {
    let property = |name: &str| m.properties.get(name).cloned().unwrap_or_default();
    let rows = [
        ("OffsetID:", m.msg_id.clone()),
        ("Topic:", m.topic.clone()),
        ("Tags:", format!("[{}]", property("TAGS"))),
        ("Keys:", format!("[{}]", property("KEYS"))),
        ("Queue ID:", m.queue_id.to_string()),
        ("Queue Offset:", m.queue_offset.to_string()),
        ("CommitLog Offset:", m.physical_offset.to_string()),
        ("Reconsume Times:", m.reconsume_times.to_string()),
        ("Born Timestamp:", time(m.born_timestamp)),
        ("Store Timestamp:", time(m.store_timestamp)),
        ("Born Host:", m.born_host.to_string()),
        ("Store Host:", m.store_host.to_string()),
        ("System Flag:", m.sys_flag.to_string()),
        ("Properties:", json!(m.properties).to_string()),
        ("Message Body:", shown_body(m, usize::MAX)),
    ];
    for (name, value) in rows {
        say!("{name:<20} {value}");
    }
}
