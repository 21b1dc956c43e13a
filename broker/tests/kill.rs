//! `kill -9` of a broker process under load, again and again: nothing acknowledged is missing afterwards, and the same offsets still hold the same messages.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use remoting::admin::Admin;
use remoting::client::RemotingClient;
use remoting::protocol::header::SendMessageRequestHeader;
use remoting::protocol::{RemotingCommand, request_code, response_code};

/// Senders at once; each waits for its answer before the next message.
const SENDERS: u64 = 8;
const ROUNDS: u64 = 3;
/// Acknowledgements after which a round's kill comes, plus a part that depends on the round.
const ACKNOWLEDGED_BEFORE_KILL: u64 = 400;
const CALL_LIMIT: Duration = Duration::from_secs(3);
const QUEUES: i32 = 4;
const TOPIC: &str = "KillTest";

struct Broker {
    process: Child,
    address: String,
}

impl Broker {
    /// Starts `mqbroker` and waits for its "boot success" line, which names its address.
    fn start(conf: &Path) -> Broker {
        let mut process = Command::new(env!("CARGO_BIN_EXE_mqbroker"))
            .arg("-c")
            .arg(conf)
            .env_remove("NAMESRV_ADDR")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|l| l.contains("boot success"))
            .expect("the broker ended before it was up");
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let address = line
            .split_once("The broker[")
            .unwrap()
            .1
            .split_once(", ")
            .unwrap()
            .1;
        let address = address.split_once(']').unwrap().0.to_owned();
        Broker { process, address }
    }

    fn kill(self) {
        drop(self);
    }
}

/// A test that fails leaves no broker behind.
impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn send(body: &str) -> RemotingCommand {
    RemotingCommand::request(request_code::SEND_MESSAGE)
        .with_header(&SendMessageRequestHeader {
            producer_group: "kill".into(),
            topic: TOPIC.into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: QUEUES,
            queue_id: -1,
            ..SendMessageRequestHeader::default()
        })
        .with_body(body.as_bytes().to_vec())
}

/// Where an acknowledged body was said to lie.
type Acknowledged = BTreeMap<String, (i32, i64)>;

async fn send_until_dead(
    address: String,
    sender: u64,
    round: u64,
    seen: Arc<Mutex<Acknowledged>>,
    count: Arc<AtomicU64>,
) {
    let client = RemotingClient::default();
    for n in 0.. {
        let body = format!("{round}-{sender}-{n}");
        // An error is the kill: that message may or may not be there.
        let Ok(answer) = client.invoke(&address, send(&body), CALL_LIMIT).await else {
            return;
        };
        assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
        let field = |name: &str| answer.ext_fields.get(name).unwrap().parse::<i64>().unwrap();
        seen.lock()
            .unwrap()
            .insert(body, (field("queueId") as i32, field("queueOffset")));
        count.fetch_add(1, Ordering::Relaxed);
    }
}

async fn read_all(address: &str) -> (BTreeMap<(i32, i64), String>, u64) {
    let admin = Admin::new(RemotingClient::default(), "");
    let (mut found, mut twice) = (BTreeMap::new(), 0);
    for queue in 0..QUEUES {
        let (mut offset, max) = (0, admin.max_offset(address, TOPIC, queue).await.unwrap());
        while offset < max {
            let (messages, header) = admin.pull(address, TOPIC, queue, offset, 32).await.unwrap();
            assert!(
                header.next_begin_offset > offset,
                "queue {queue} stands still at {offset} of {max}"
            );
            offset = header.next_begin_offset;
            for m in messages {
                let body = String::from_utf8(m.body).unwrap();
                twice += u64::from(found.insert((queue, m.queue_offset), body).is_some());
            }
        }
    }
    (found, twice)
}

fn conf_in(dir: &Path, flush: &str) -> PathBuf {
    let conf = dir.join("broker.conf");
    fs::write(
        &conf,
        format!(
            "brokerName=kill\nbrokerClusterName=kill\nbrokerIP1=127.0.0.1\nbindAddress=127.0.0.1\nlistenPort={}\nhttpPort=0\nstorePathRootDir={}\nmappedFileSizeCommitLog=1048576\nflushDiskType={flush}\n",
            free_port(),
            dir.join("store").display(),
        ),
    )
    .unwrap();
    conf
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn storm(flush: &str) {
    let dir = tempfile::tempdir().unwrap();
    let conf = conf_in(dir.path(), flush);
    let runtime = runtime();
    let seen = Arc::new(Mutex::new(Acknowledged::new()));
    let mut broker = Broker::start(&conf);
    for round in 0..ROUNDS {
        let count = Arc::new(AtomicU64::new(0));
        let senders: Vec<_> = (0..SENDERS)
            .map(|s| {
                runtime.spawn(send_until_dead(
                    broker.address.clone(),
                    s,
                    round,
                    Arc::clone(&seen),
                    Arc::clone(&count),
                ))
            })
            .collect();
        let enough = ACKNOWLEDGED_BEFORE_KILL + round * 137;
        while count.load(Ordering::Relaxed) < enough
            && !senders.iter().any(tokio::task::JoinHandle::is_finished)
        {
            std::thread::yield_now();
        }
        broker.kill();
        runtime.block_on(async {
            for sender in senders {
                sender.await.unwrap();
            }
        });
        assert!(
            count.load(Ordering::Relaxed) >= enough,
            "the senders gave up before the kill"
        );
        broker = Broker::start(&conf);
        let (found, twice) = runtime.block_on(read_all(&broker.address));
        let seen = seen.lock().unwrap();
        let missing: Vec<_> = seen
            .iter()
            .filter(|(body, at)| found.get(at) != Some(body))
            .collect();
        assert!(
            missing.is_empty(),
            "{flush}, round {round}: {} of {} acknowledged are not where they were: {:?}",
            missing.len(),
            seen.len(),
            &missing[..missing.len().min(5)]
        );
        assert_eq!(twice, 0);
        println!(
            "{flush}, round {round}: {} acknowledged, {} found",
            seen.len(),
            found.len()
        );
    }
    broker.kill();
}

/// A port that is free, and whose neighbour below (the fast port) is too.
fn free_port() -> u16 {
    loop {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        if port > 20_000
            && std::net::TcpListener::bind(("127.0.0.1", port - 2)).is_ok()
            && std::net::TcpListener::bind(("127.0.0.1", port + 1)).is_ok()
        {
            return port;
        }
    }
}

/// The topic of the first message is as safe as the message.
#[test]
fn a_topic_that_an_acknowledged_send_made_is_there_after_a_kill() {
    let runtime = runtime();
    for round in 0..ROUNDS {
        let dir = tempfile::tempdir().unwrap();
        let conf = conf_in(dir.path(), "ASYNC_FLUSH");
        let broker = Broker::start(&conf);
        let client = RemotingClient::default();
        let sent = client.invoke(&broker.address, send("first"), CALL_LIMIT);
        let answer = runtime.block_on(sent).unwrap();
        assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
        broker.kill();
        let broker = Broker::start(&conf);
        let (found, _) = runtime.block_on(read_all(&broker.address));
        assert_eq!(
            found.into_values().collect::<Vec<_>>(),
            ["first"],
            "round {round}"
        );
        broker.kill();
    }
}

#[test]
fn kill_under_load_loses_nothing_acknowledged_with_async_flush() {
    storm("ASYNC_FLUSH");
}

#[test]
fn kill_under_load_loses_nothing_acknowledged_with_sync_flush() {
    storm("SYNC_FLUSH");
}

/// Delayed messages that the kill test sends, and how many of them have arrived when a kill comes.
const DELAYED: usize = 300;
const KILLED_AT: [usize; 2] = [1, DELAYED / 2];
const DELIVERY_LIMIT: Duration = Duration::from_secs(30);

/// A kill may deliver a message again, never lose one.
#[test]
fn delayed_messages_that_were_acknowledged_arrive_across_kills() {
    let dir = tempfile::tempdir().unwrap();
    let conf = conf_in(dir.path(), "ASYNC_FLUSH");
    let runtime = runtime();
    let mut broker = Broker::start(&conf);
    runtime.block_on(async {
        let client = RemotingClient::default();
        for n in 0..DELAYED {
            let mut message = send(&format!("delayed {n}"));
            let properties = "DELAY\u{1}1\u{2}".to_owned();
            message
                .ext_fields
                .insert("properties".to_owned(), properties);
            let answer = client
                .invoke(&broker.address, message, CALL_LIMIT)
                .await
                .unwrap();
            assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
        }
    });
    let deadline = Instant::now() + DELIVERY_LIMIT;
    let mut kills = KILLED_AT.into_iter().peekable();
    loop {
        let (found, _) = runtime.block_on(read_all(&broker.address));
        let arrived: BTreeSet<&String> = found.values().collect();
        if kills.next_if(|at| arrived.len() >= *at).is_some() {
            broker.kill();
            broker = Broker::start(&conf);
        } else if arrived.len() == DELAYED {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {DELAYED} arrived",
            arrived.len()
        );
    }
    assert_eq!(kills.next(), None);
    broker.kill();
}
