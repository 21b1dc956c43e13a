//! One broker.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use remoting::client::RemotingClient;

use crate::common::load::{CALL_LIMIT, Load, check, message, place, read_all};
use crate::common::process::{BrokerProcess, free_ports};
use crate::common::until;

const SENDERS: u64 = 8;
const ROUNDS: u64 = 3;
/// Acknowledgements after which a round's kill comes, plus a part that depends on the round.
const ACKNOWLEDGED_BEFORE_KILL: u64 = 400;

/// Its properties, and where it will be.
fn conf_in(dir: &Path, flush: &str) -> (PathBuf, String) {
    let conf = dir.join("broker.conf");
    let port = free_ports(1)[0];
    fs::write(
        &conf,
        format!(
            "brokerName=kill\nbrokerClusterName=kill\nbrokerIP1=127.0.0.1\nbindAddress=127.0.0.1\nlistenPort={port}\nhttpPort=0\nstorePathRootDir={}\nmappedFileSizeCommitLog=1048576\nflushDiskType={flush}\n",
            dir.join("store").display(),
        ),
    )
    .unwrap();
    (conf, format!("127.0.0.1:{port}"))
}

async fn storm(flush: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (conf, address) = conf_in(dir.path(), flush);
    let mut broker = BrokerProcess::start(&conf, None);
    let load = Load::start(std::slice::from_ref(&address), SENDERS);
    for round in 0..ROUNDS {
        load.acknowledged(ACKNOWLEDGED_BEFORE_KILL + round * 137)
            .await;
        broker.kill();
        broker = BrokerProcess::start(&conf, None);
        let acknowledged = load.so_far();
        let found = read_all(&address).await;
        check(&format!("{flush}, round {round}"), &acknowledged, &found);
    }
    let acknowledged = load.stop().await;
    check(flush, &acknowledged, &read_all(&address).await);
}

/// The topic of the first message is as safe as the message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_an_acknowledged_send_made_is_there_after_a_kill() {
    for round in 0..ROUNDS {
        let dir = tempfile::tempdir().unwrap();
        let (conf, address) = conf_in(dir.path(), "ASYNC_FLUSH");
        let broker = BrokerProcess::start(&conf, None);
        let client = RemotingClient::default();
        let answer = client.invoke(&address, message("first"), CALL_LIMIT).await;
        let answer = answer.unwrap();
        assert!(place(&answer).is_some(), "{:?}", answer.remark);
        broker.kill();
        let _broker = BrokerProcess::start(&conf, None);
        let found = read_all(&address).await;
        assert_eq!(
            found.into_values().collect::<Vec<_>>(),
            ["first"],
            "round {round}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_under_load_loses_nothing_acknowledged_with_async_flush() {
    storm("ASYNC_FLUSH").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_under_load_loses_nothing_acknowledged_with_sync_flush() {
    storm("SYNC_FLUSH").await;
}

/// Delayed messages that the kill test sends, and how many of them have arrived when a kill comes.
const DELAYED: usize = 300;
const KILLED_AT: [usize; 2] = [1, DELAYED / 2];

/// A kill may deliver a message again, never lose one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_messages_that_were_acknowledged_arrive_across_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (conf, address) = conf_in(dir.path(), "ASYNC_FLUSH");
    let mut broker = BrokerProcess::start(&conf, None);
    let client = RemotingClient::default();
    for n in 0..DELAYED {
        let mut message = message(&format!("delayed {n}"));
        let properties = "DELAY\u{1}1\u{2}".to_owned();
        message
            .ext_fields
            .insert("properties".to_owned(), properties);
        let answer = client.invoke(&address, message, CALL_LIMIT).await.unwrap();
        assert!(place(&answer).is_some(), "{:?}", answer.remark);
    }
    let arrived = async || {
        let found = read_all(&address).await;
        found.into_values().collect::<BTreeSet<String>>().len()
    };
    for at in KILLED_AT {
        until("some of the delayed", async || arrived().await >= at).await;
        broker.kill();
        broker = BrokerProcess::start(&conf, None);
    }
    until("all of the delayed", async || arrived().await == DELAYED).await;
}
