//! Requests recorded from unmodified clients, tools and brokers, sent to our servers: the answers must
//! have the shape of the recorded ones (code, header fields, body members).
//!
//! The recording's topics, groups and clients are made first by replaying what made them there. A
//! request whose answer depends on more history than that is only checked to be answered at all.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use remoting::protocol::{json, request_code as code};
use remoting::{ClientConfig, RemotingClient, RemotingCommand};
use serde_json::Value;

use crate::rig::{PATIENCE, Rig};

struct Exchange {
    place: String,
    code: i32,
    to_name_server: bool,
    server: String,
    request: RemotingCommand,
    answer: Option<RemotingCommand>,
}

fn command(hex: &str) -> RemotingCommand {
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    RemotingCommand::decode(&bytes[4..]).unwrap()
}

/// The recording, without what servers sent to clients.
fn exchanges() -> Vec<Exchange> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../remoting/tests/fixtures/frames.jsonl.gz");
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    text.lines()
        .enumerate()
        .map(|(number, line)| (number, serde_json::from_str::<Value>(line).unwrap()))
        .filter(|(_, line)| line["to"] != "client")
        .map(|(number, line)| Exchange {
            place: format!(
                "line {} {} of {} to {}",
                number + 1,
                line["name"].as_str().unwrap(),
                line["client"].as_str().unwrap(),
                line["server"].as_str().unwrap()
            ),
            code: line["code"].as_i64().unwrap() as i32,
            to_name_server: line["to"] == "namesrv",
            server: line["server"].as_str().unwrap().to_owned(),
            request: command(line["request_hex"].as_str().unwrap()),
            answer: line["response_hex"].as_str().map(command),
        })
        .collect()
}

/// Codes whose answers tell of clients online, stored messages or committed offsets: more history than
/// the replay makes. Their answers are compared only where the code is the recorded one.
const DEPENDS_ON_HISTORY: &[i32] = &[
    code::PULL_MESSAGE,
    code::QUERY_MESSAGE,
    code::QUERY_CONSUMER_OFFSET,
    code::UPDATE_CONSUMER_OFFSET,
    code::VIEW_MESSAGE_BY_ID,
    code::CONSUMER_SEND_MSG_BACK,
    code::END_TRANSACTION,
    code::GET_CONSUMER_LIST_BY_GROUP,
    code::GET_ROUTEINFO_BY_TOPIC,
    code::GET_CONSUMER_CONNECTION_LIST,
    code::GET_PRODUCER_CONNECTION_LIST,
    code::GET_CONSUME_STATS,
    code::INVOKE_BROKER_TO_RESET_OFFSET,
    code::INVOKE_BROKER_TO_GET_CONSUMER_STATUS,
    code::GET_CONSUMER_RUNNING_INFO,
    code::CONSUME_MESSAGE_DIRECTLY,
    code::VIEW_BROKER_STATS_DATA,
    code::SEND_REPLY_MESSAGE,
    code::SEND_REPLY_MESSAGE_V2,
    code::GET_SUBSCRIPTIONGROUP_CONFIG,
    code::LITE_PULL_MESSAGE,
    code::RECALL_MESSAGE,
    code::BROKER_HEARTBEAT,
];

/// Where our answer has another code than the recorded one, and why.
fn differs_on_purpose(exchange: &Exchange, ours: i32, recorded: i32) -> bool {
    let asks_for = |what: &str| {
        exchange
            .request
            .ext_fields
            .values()
            .any(|value| value.contains(what))
            || String::from_utf8_lossy(&exchange.request.body).contains(what)
    };
    match (exchange.code, recorded, ours) {
        // The 5.x line tells an unusable parameter from a failure; the 4.9 line does not.
        (_, 1, 29) => exchange.server.starts_with("4."),
        // SQL filters are off unless enablePropertyFilter is set, as upstream; the recording had it on.
        (code::CHECK_CLIENT_CONFIG, _, 1) => true,
        // Timers of the 5.x line need the timer wheel.
        (code::SEND_MESSAGE_V2, 0, 1) => asks_for("TIMER_"),
        _ => false,
    }
}

/// Header fields and body members that only one of the lines sends, or that only state brings.
const OPTIONAL: &[&str] = &[
    // 5.3.3 alone.
    "transactionId",
    "recallHandle",
    "IS_SUPPORT_HEART_BEAT_V2",
    "IS_SUB_CHANGE",
    "topicSysFlag",
    "groupSysFlag",
    "stateVersion",
    "dataVersion",
    "groupTopicMap",
    "topicPutTps",
    "forbiddenTable",
    "mappingDataVersion",
    "topicQueueMappingDetailMap",
    "topicQueueMappingInfoMap",
    "attributes",
    // Present once there is something to tell.
    "brokerAddr",
    "subscriptionData",
    "queueData",
    "haServerAddr",
    "masterAddr",
    // Ours.
    "configHash",
];

fn members(body: &[u8]) -> Option<BTreeSet<String>> {
    let value = json::parse(body).ok()?;
    Some(value.as_object()?.keys().cloned().collect())
}

/// What one answer has that the other lacks, unless it is optional.
fn difference(ours: &BTreeSet<String>, recorded: &BTreeSet<String>) -> Vec<String> {
    ours.symmetric_difference(recorded)
        .filter(|name| !OPTIONAL.contains(&name.as_str()))
        .cloned()
        .collect()
}

fn names(command: &RemotingCommand) -> BTreeSet<String> {
    command.ext_fields.keys().cloned().collect()
}

/// First what makes topics, groups, members and messages, last what takes them away.
fn turn(code: i32) -> u8 {
    match code {
        code::UPDATE_AND_CREATE_TOPIC | code::UPDATE_AND_CREATE_TOPIC_LIST => 0,
        code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP
        | code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST => 1,
        code::HEART_BEAT => 2,
        code::SEND_MESSAGE | code::SEND_MESSAGE_V2 | code::SEND_BATCH_MESSAGE => 3,
        code::UNREGISTER_CLIENT
        | code::DELETE_SUBSCRIPTIONGROUP
        | code::DELETE_TOPIC_IN_BROKER
        | code::DELETE_TOPIC_IN_NAMESRV
        | code::WIPE_WRITE_PERM_OF_BROKER
        | code::UNREGISTER_BROKER => 9,
        _ => 5,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_requests_get_answers_of_the_recorded_shape() {
    let rig = Rig::start().await;
    let client = RemotingClient::new(ClientConfig::default());
    // A recorded consumer may be asked back over this connection; it knows nothing.
    client.set_handler(|_, request| Some(RemotingCommand::not_supported(request.code)));
    let broker = rig.broker_address();
    let name_server = rig.name_server.address().to_string();
    let mut all = exchanges();
    all.sort_by_key(|exchange| turn(exchange.code));
    let (mut compared, mut wrong) = (0, Vec::new());
    for exchange in &all {
        let address = if exchange.to_name_server {
            &name_server
        } else {
            &broker
        };
        let mut request = exchange.request.clone();
        if let Some(suspend) = request.ext_fields.get_mut("suspendTimeoutMillis") {
            // A long poll that nothing wakes is answered at its end.
            "100".clone_into(suspend);
        }
        let oneway = request.is_oneway();
        let answer = if oneway {
            // Followed by something that is answered, so that it has been handled.
            client.oneway(address, request).await.unwrap();
            client
                .invoke(address, RemotingCommand::request(9999), PATIENCE)
                .await
        } else {
            client.invoke(address, request, PATIENCE).await
        };
        let place = &exchange.place;
        let ours = answer.unwrap_or_else(|error| panic!("{place}: {error}"));
        let Some(recorded) = exchange.answer.as_ref().filter(|_| !oneway) else {
            continue;
        };
        if !exchange.to_name_server
            && broker::processor::NOT_SERVED
                .iter()
                .any(|(code, _)| *code == exchange.code)
        {
            assert_eq!(ours.code, 3, "{place}");
            continue;
        }
        if ours.code != recorded.code {
            if !DEPENDS_ON_HISTORY.contains(&exchange.code)
                && !differs_on_purpose(exchange, ours.code, recorded.code)
            {
                wrong.push(format!(
                    "{place}: code {} ({:?}), recorded {} ({:?})",
                    ours.code, ours.remark, recorded.code, recorded.remark
                ));
            }
            continue;
        }
        compared += 1;
        let fields = difference(&names(&ours), &names(recorded));
        if !fields.is_empty() {
            wrong.push(format!("{place}: header fields {fields:?}"));
        }
        match (members(&ours.body), members(&recorded.body)) {
            (Some(ours), Some(recorded)) => {
                let members = difference(&ours, &recorded);
                if !members.is_empty() {
                    wrong.push(format!("{place}: body members {members:?}"));
                }
            }
            (None, Some(_)) => wrong.push(format!("{place}: the body is no JSON object")),
            _ => {}
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 300, "only {compared} answers were compared");
    println!("{compared} answers compared");
    client.shutdown().await;
    rig.stop().await;
}
