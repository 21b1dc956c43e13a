//! `kill -9` of a master, of its slave, and of both, under load. Of a synchronous one nothing acknowledged with code 0 is missing
//! afterwards, neither on the master nor on the slave. Of an asynchronous one the slave lacks at most the end of the log, which is
//! measured at the moment of the kill, and gets it when the master is back.
//!
//! `ROCKETCLUSTER_KILLS` says how many of the random kills there are, `ROCKETCLUSTER_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use namesrv::{NameServer, NamesrvConfig};
use remoting::admin::Admin;
use remoting::client::RemotingClient;
use remoting::protocol::header::SendMessageRequestHeader;
use remoting::protocol::{RemotingCommand, request_code, response_code};

const SENDERS: u64 = 8;
/// Acknowledgements before each kill.
const ACKNOWLEDGED_BEFORE_KILL: u64 = 300;
const CALL_LIMIT: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);
const QUEUES: i32 = 4;
const TOPIC: &str = "KillTest";

struct Node {
    conf: PathBuf,
    address: String,
    process: Option<Child>,
}

impl Node {
    fn new(dir: &Path, name: &str, names: &NameServer, more: &str) -> Self {
        let port = free_port();
        let conf = dir.join(format!("{name}.conf"));
        fs::write(
            &conf,
            format!(
                "brokerName=kill\nbrokerClusterName=kill\nnamesrvAddr={}\nbrokerIP1=127.0.0.1\nbindAddress=127.0.0.1\nlistenPort={port}\nhttpPort=0\nstorePathRootDir={}\nmappedFileSizeCommitLog=262144\nhaSendHeartbeatInterval=200\nslaveTimeout=2000\n{more}",
                names.address(),
                dir.join(name).display(),
            ),
        )
        .unwrap();
        Self {
            conf,
            address: format!("127.0.0.1:{port}"),
            process: None,
        }
    }

    fn start(&mut self) {
        let mut process = Command::new(env!("CARGO_BIN_EXE_mqbroker"))
            .arg("-c")
            .arg(&self.conf)
            .env_remove("NAMESRV_ADDR")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let up = lines
            .by_ref()
            .map(Result::unwrap)
            .any(|l| l.contains("boot success"));
        self.process = Some(process);
        assert!(up, "the broker ended before it was up");
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A test that fails leaves no broker behind.
impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that is free, and whose neighbours (the fast port, the replication port) are too.
fn free_port() -> u16 {
    loop {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if port > 20_000 && free(port - 2) && free(port + 1) {
            return port;
        }
    }
}

/// xorshift; what it draws decides whom to kill and when.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Where an acknowledged body was said to lie.
type Acknowledged = BTreeMap<String, (i32, i64)>;

#[derive(Default)]
struct Seen {
    replicated: Mutex<Acknowledged>,
    count: AtomicU64,
    stop: AtomicBool,
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

/// Sends until told to stop, across the deaths of the broker.
async fn send_on(address: String, sender: u64, seen: Arc<Seen>) {
    let client = RemotingClient::default();
    for n in 0.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        let body = format!("{sender}-{n} {}", "x".repeat(200));
        let Ok(answer) = client.invoke(&address, send(&body), CALL_LIMIT).await else {
            // Killed, or not up again yet: that message may or may not be there.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        if answer.code == response_code::SUCCESS {
            let field = |name: &str| answer.ext_fields.get(name).unwrap().parse::<i64>().unwrap();
            let place = (field("queueId") as i32, field("queueOffset"));
            seen.replicated.lock().unwrap().insert(body, place);
            seen.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn read_all(address: &str) -> BTreeMap<(i32, i64), String> {
    let admin = Admin::new(RemotingClient::default(), "");
    let mut found = BTreeMap::new();
    for queue in 0..QUEUES {
        let (mut offset, max) = (0, admin.max_offset(address, TOPIC, queue).await.unwrap());
        while offset < max {
            let (messages, header) = admin.pull(address, TOPIC, queue, offset, 32).await.unwrap();
            assert!(
                header.next_begin_offset > offset,
                "queue {queue} stands still at {offset}"
            );
            offset = header.next_begin_offset;
            for m in messages {
                let body = String::from_utf8(m.body).unwrap();
                let before = found.insert((queue, m.queue_offset), body);
                assert_eq!(before, None, "an offset twice");
            }
        }
    }
    found
}

async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn check(who: &str, seen: &Acknowledged, found: &BTreeMap<(i32, i64), String>) {
    let missing: Vec<_> = seen
        .iter()
        .filter(|(body, at)| found.get(at) != Some(body))
        .collect();
    assert!(
        missing.is_empty(),
        "{who}: {} of {} acknowledged are not where they were: {:?}",
        missing.len(),
        seen.len(),
        &missing[..missing.len().min(3)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_synchronous_master_acknowledged_is_lost_whoever_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let names = NameServer::start(NamesrvConfig {
        bind_address: "127.0.0.1".to_owned(),
        listen_port: 0,
        http_port: 0,
        kv_config_path: dir.path().join("kvConfig.json"),
        ..NamesrvConfig::default()
    })
    .await
    .unwrap();
    let mut master = Node::new(
        dir.path(),
        "master",
        &names,
        "brokerRole=SYNC_MASTER\nslaveReadEnable=true\n",
    );
    let more = "brokerRole=SLAVE\nbrokerId=1\nslaveReadEnable=true\n";
    let mut slave = Node::new(dir.path(), "slave", &names, more);
    master.start();
    slave.start();
    let seen = Arc::new(Seen::default());
    let senders: Vec<_> = (0..SENDERS)
        .map(|s| tokio::spawn(send_on(master.address.clone(), s, Arc::clone(&seen))))
        .collect();
    for round in 0..6 {
        let enough = seen.count.load(Ordering::Relaxed) + ACKNOWLEDGED_BEFORE_KILL + round * 37;
        wait_for("acknowledgements", async || {
            seen.count.load(Ordering::Relaxed) >= enough
        })
        .await;
        let (of_master, of_slave) = (round % 3 != 1, round % 3 != 0);
        if of_master {
            master.kill();
        }
        if of_slave {
            slave.kill();
        }
        if of_slave {
            slave.start();
        }
        if of_master {
            master.start();
        }
    }
    let enough = seen.count.load(Ordering::Relaxed) + ACKNOWLEDGED_BEFORE_KILL;
    wait_for("acknowledgements after the last kill", async || {
        seen.count.load(Ordering::Relaxed) >= enough
    })
    .await;
    seen.stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    let admin = Admin::new(RemotingClient::default(), "");
    wait_for("the slave has everything", async || {
        let status = admin.ha_status(&master.address).await.unwrap();
        status.ha_connection_info.iter().any(|c| c.diff == 0)
    })
    .await;
    wait_for("the slave has the topic", async || {
        let topic = admin.topic_config(&slave.address, TOPIC).await;
        topic.is_ok_and(|t| t.is_some())
    })
    .await;
    let on_master = read_all(&master.address).await;
    let on_slave = read_all(&slave.address).await;
    let seen = seen.replicated.lock().unwrap().clone();
    check("master", &seen, &on_master);
    check("slave", &seen, &on_slave);
    assert!(on_master == on_slave, "master and slave differ");
    println!("{} acknowledged, {} found", seen.len(), on_master.len());
    names.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_asynchronous_slave_lacks_is_the_end_of_the_log_and_comes_when_the_master_is_back()
{
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("ROCKETCLUSTER_SEED").unwrap_or(now.unwrap().as_millis() as u64);
    println!("ROCKETCLUSTER_SEED={seed}");
    let mut draw = Draw(seed | 1);
    let dir = tempfile::tempdir().unwrap();
    let names = NameServer::start(NamesrvConfig {
        bind_address: "127.0.0.1".to_owned(),
        listen_port: 0,
        http_port: 0,
        kv_config_path: dir.path().join("kvConfig.json"),
        ..NamesrvConfig::default()
    })
    .await
    .unwrap();
    let more = "brokerRole=ASYNC_MASTER\nslaveReadEnable=true\n";
    let mut master = Node::new(dir.path(), "master", &names, more);
    let more = "brokerRole=SLAVE\nbrokerId=1\nslaveReadEnable=true\n";
    let mut slave = Node::new(dir.path(), "slave", &names, more);
    master.start();
    slave.start();
    let seen = Arc::new(Seen::default());
    let senders: Vec<_> = (0..SENDERS)
        .map(|s| tokio::spawn(send_on(master.address.clone(), s, Arc::clone(&seen))))
        .collect();
    let admin = Admin::new(RemotingClient::default(), "");
    let address = slave.address.clone();
    let copied = async || {
        let info = admin.broker_runtime_info(&address).await.ok()?;
        info.get("commitLogMaxOffset")?.parse::<i64>().ok()
    };
    for round in 0..number("ROCKETCLUSTER_KILLS").unwrap_or(4) {
        let enough = seen.count.load(Ordering::Relaxed) + 100 + draw.below(400);
        wait_for("acknowledgements", async || {
            seen.count.load(Ordering::Relaxed) >= enough
        })
        .await;
        // A slave that follows, or its distance would be that of an earlier kill.
        let begun = Instant::now();
        wait_for("the slave follows", async || {
            let status = admin.ha_status(&master.address).await;
            status.is_ok_and(|s| s.ha_connection_info.iter().any(|c| c.diff < 100_000))
        })
        .await;
        println!("round {round}: it followed after {:?}", begun.elapsed());
        // The first kill is the master's, so that there is one to measure.
        match if round == 0 { 0 } else { draw.below(3) } {
            0 => {
                wait_for("the slave has the topic", async || {
                    let topic = admin.topic_config(&slave.address, TOPIC).await;
                    topic.is_ok_and(|t| t.is_some())
                })
                .await;
                master.kill();
                // What was in the sockets still comes; then the slave stands still.
                let mut end = None;
                wait_for("the slave stands still", async || {
                    let before = std::mem::replace(&mut end, copied().await);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    end.is_some() && before == end
                })
                .await;
                let acknowledged = seen.replicated.lock().unwrap().clone();
                let found = read_all(&slave.address).await;
                let lacks = lost_tail(&acknowledged, &found);
                println!(
                    "round {round}: of {} acknowledged the slave lacks the last {lacks}",
                    acknowledged.len()
                );
                master.start();
            }
            1 => {
                slave.kill();
                slave.start();
            }
            _ => {
                master.kill();
                slave.kill();
                slave.start();
                master.start();
            }
        }
    }
    seen.stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    wait_for("the slave has everything", async || {
        let status = admin.ha_status(&master.address).await;
        status.is_ok_and(|s| s.ha_connection_info.iter().any(|c| c.diff == 0))
    })
    .await;
    let (on_master, on_slave) = (
        read_all(&master.address).await,
        read_all(&slave.address).await,
    );
    let seen = seen.replicated.lock().unwrap().clone();
    check("master", &seen, &on_master);
    check("slave", &seen, &on_slave);
    assert!(on_master == on_slave, "master and slave differ");
    names.shutdown().await;
}

/// How many of the acknowledged are not found; in each queue these are the last ones, with nothing after them.
fn lost_tail(seen: &Acknowledged, found: &BTreeMap<(i32, i64), String>) -> usize {
    let mut lost = 0;
    for (body, (queue, offset)) in seen {
        if found.get(&(*queue, *offset)) != Some(body) {
            let later = found.range((*queue, *offset)..(queue + 1, 0)).next();
            assert_eq!(later, None, "a hole at {queue} {offset}");
            lost += 1;
        }
    }
    lost
}
