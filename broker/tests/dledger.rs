//! Groups that elect their own master, as processes of their own: what was acknowledged is there whoever dies.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use namesrv::{NameServer, NamesrvConfig};
use remoting::admin::Admin;
use remoting::client::RemotingClient;
use remoting::protocol::body::{DLedgerState, DLedgerStatus};
use remoting::protocol::header::SendMessageRequestHeader;
use remoting::protocol::{RemotingCommand, request_code, response_code};

const SENDERS: u64 = 4;
const QUEUES: i32 = 4;
const TOPIC: &str = "GroupTest";
const CALL_LIMIT: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(60);

struct Node {
    name: String,
    conf: PathBuf,
    store: PathBuf,
    address: String,
    process: Option<Child>,
}

impl Node {
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
        assert!(up, "{} ended before it was up", self.name);
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    fn wait(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.wait();
        }
    }

    fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
        }
        self.wait();
    }
}

/// A test that fails leaves no broker behind.
impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that are free, three next to each other each.
fn free_ports(count: usize) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::new();
    while ports.len() < count {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if port > 20_000
            && free(port - 2)
            && free(port + 1)
            && ports.iter().all(|p| p.abs_diff(port) > 4)
        {
            ports.push(port);
        }
    }
    ports
}

struct Cluster {
    names: NameServer,
    admin: Admin,
    nodes: Vec<Node>,
    seen: Arc<Seen>,
}

/// Where an acknowledged body was said to lie.
#[derive(Default)]
struct Seen {
    acknowledged: Mutex<BTreeMap<String, (i32, i64)>>,
    count: AtomicU64,
    longest_gap_ms: AtomicU64,
    leader: AtomicUsize,
    stop: AtomicBool,
}

impl Cluster {
    async fn start(dir: &Path, members: usize, flush: &str, more: &str) -> Self {
        let names = NameServer::start(NamesrvConfig {
            listen_port: 0,
            bind_address: "127.0.0.1".into(),
            http_port: 0,
            kv_config_path: dir.join("kv.json"),
            ..NamesrvConfig::default()
        })
        .await
        .unwrap();
        let main = free_ports(2 * members);
        let (main, peers) = main.split_at(members);
        let list: Vec<String> = (0..members)
            .map(|k| format!("n{k}-127.0.0.1:{}", peers[k]))
            .collect();
        let nodes = (0..members)
            .map(|k| {
                let name = format!("n{k}");
                let conf = dir.join(format!("{name}.conf"));
                let store = dir.join(&name);
                fs::write(
                    &conf,
                    format!(
                        "brokerName=group\nbrokerClusterName=test\nnamesrvAddr={}\nbrokerIP1=127.0.0.1\nbindAddress=127.0.0.1\nlistenPort={}\nhttpPort=0\nstorePathRootDir={}\nmappedFileSizeCommitLog=1048576\nshutdownDrainMs=200\nflushDiskType={flush}\nenableDLegerCommitLog=true\ndLegerGroup=group\ndLegerPeers={}\ndLegerSelfId={name}\nslaveReadEnable=true\n{more}",
                        names.address(),
                        main[k],
                        store.display(),
                        list.join(";"),
                    ),
                )
                .unwrap();
                let address = format!("127.0.0.1:{}", main[k]);
                Node { name, conf, store, address, process: None }
            })
            .collect();
        let admin = Admin::new(RemotingClient::default(), names.address().to_string());
        let mut cluster = Self {
            names,
            admin,
            nodes,
            seen: Arc::default(),
        };
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster
    }

    async fn status(&self, at: usize) -> Option<DLedgerStatus> {
        self.nodes[at].process.as_ref()?;
        self.admin
            .dledger_status(&self.nodes[at].address)
            .await
            .ok()
    }

    /// Waits for a leader that says so itself, and for what `also` asks of it.
    async fn leader(&self, also: impl Fn(&DLedgerStatus) -> bool) -> usize {
        let until = Instant::now() + LIMIT;
        let mut last = Vec::new();
        while Instant::now() < until {
            last.clear();
            for at in 0..self.nodes.len() {
                let Some(status) = self.status(at).await else {
                    continue;
                };
                if status.state == DLedgerState::Leader && also(&status) {
                    return at;
                }
                last.push(status);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no such leader: {last:?}");
    }

    async fn all_level(&self) -> usize {
        self.leader(|s| {
            s.members.len() == self.nodes.len()
                && s.members.iter().all(|m| m.lag_bytes == 0 && m.sure)
        })
        .await
    }

    fn senders(&self) -> Vec<tokio::task::JoinHandle<()>> {
        let addresses: Vec<String> = self.nodes.iter().map(|n| n.address.clone()).collect();
        (0..SENDERS)
            .map(|sender| {
                let (addresses, seen) = (addresses.clone(), Arc::clone(&self.seen));
                tokio::spawn(send_on(addresses, sender, seen))
            })
            .collect()
    }

    async fn acknowledged(&self, more: u64) {
        let target = self.seen.count.load(Ordering::Relaxed) + more;
        let until = Instant::now() + LIMIT;
        while self.seen.count.load(Ordering::Relaxed) < target {
            assert!(Instant::now() < until, "nothing is acknowledged any more");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Everything acknowledged lies where that was said, on this member.
    async fn check(&self, at: usize) {
        let address = &self.nodes[at].address;
        let mut there: HashMap<(i32, i64), String> = HashMap::new();
        for queue in 0..QUEUES {
            let max = self.admin.max_offset(address, TOPIC, queue).await.unwrap();
            let mut offset = 0;
            while offset < max {
                let (messages, header) = self
                    .admin
                    .pull(address, TOPIC, queue, offset, 32)
                    .await
                    .unwrap();
                assert!(header.next_begin_offset > offset);
                offset = header.next_begin_offset;
                for message in messages {
                    let body = String::from_utf8(message.body).unwrap();
                    there.insert((queue, message.queue_offset), body);
                }
            }
        }
        let acknowledged = self.seen.acknowledged.lock().unwrap().clone();
        assert!(!acknowledged.is_empty());
        for (body, place) in &acknowledged {
            assert_eq!(
                there.get(place),
                Some(body),
                "{place:?} on {}",
                self.nodes[at].name
            );
        }
        println!(
            "{}: {} messages, all {} acknowledged ones among them; longest gap between two acknowledgements of a sender: {} ms",
            self.nodes[at].name,
            there.len(),
            acknowledged.len(),
            self.seen.longest_gap_ms.load(Ordering::Relaxed)
        );
    }

    async fn end(mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        self.names.shutdown().await;
    }
}

fn send(body: &str) -> RemotingCommand {
    RemotingCommand::request(request_code::SEND_MESSAGE)
        .with_header(&SendMessageRequestHeader {
            producer_group: "group".into(),
            topic: TOPIC.into(),
            default_topic: "TBW102".into(),
            default_topic_queue_nums: QUEUES,
            queue_id: -1,
            ..SendMessageRequestHeader::default()
        })
        .with_body(body.as_bytes().to_vec())
}

/// Sends until told to stop, to whoever takes it.
async fn send_on(addresses: Vec<String>, sender: u64, seen: Arc<Seen>) {
    let client = RemotingClient::default();
    let mut last = Instant::now();
    for n in 0.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        let body = format!("{sender}-{n} {}", "x".repeat(200));
        let to = seen.leader.load(Ordering::Relaxed);
        let answer = client.invoke(&addresses[to], send(&body), CALL_LIMIT).await;
        match answer {
            Ok(answer) if answer.code == response_code::SUCCESS => {
                let field = |name: &str| answer.ext(name).unwrap().parse::<i64>().unwrap();
                let place = (field("queueId") as i32, field("queueOffset"));
                let taken = seen.acknowledged.lock().unwrap().insert(body, place);
                assert!(taken.is_none());
                seen.count.fetch_add(1, Ordering::Relaxed);
                let gap = last.elapsed().as_millis() as u64;
                seen.longest_gap_ms.fetch_max(gap, Ordering::Relaxed);
                last = Instant::now();
            }
            _ => {
                // That message may or may not be there.
                let next = (to + 1) % addresses.len();
                let _ =
                    seen.leader
                        .compare_exchange(to, next, Ordering::Relaxed, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

async fn stop(seen: &Seen, senders: Vec<tokio::task::JoinHandle<()>>) {
    seen.stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
}

async fn leaders_die(flush: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, flush, "").await;
    cluster.leader(|_| true).await;
    let senders = cluster.senders();
    for _ in 0..3 {
        cluster.acknowledged(200).await;
        let leader = cluster.leader(|_| true).await;
        cluster.nodes[leader].kill();
        let died = Instant::now();
        cluster.acknowledged(SENDERS + 1).await;
        println!(
            "{flush}: the first send was taken {:?} after the leader died",
            died.elapsed()
        );
        cluster.acknowledged(100).await;
        cluster.nodes[leader].start();
        cluster
            .leader(|s| s.members.iter().all(|m| m.recently_active && m.sure))
            .await;
    }
    stop(&cluster.seen, senders).await;
    cluster.all_level().await;
    for at in 0..3 {
        cluster.check(at).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_leaders_are_killed_and_synced_disks_are_promised() {
    leaders_die("SYNC_FLUSH").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_leaders_are_killed_without_synced_disks() {
    leaders_die("ASYNC_FLUSH").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_and_all_of_it_survives_the_death_of_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "SYNC_FLUSH", "").await;
    cluster.all_level().await;
    let senders = cluster.senders();
    cluster.acknowledged(200).await;
    let leader = cluster.leader(|_| true).await;
    cluster.seen.longest_gap_ms.store(0, Ordering::Relaxed);
    cluster.nodes[leader].signal("-TERM");
    cluster.nodes[leader].wait();
    cluster.acknowledged(200).await;
    println!(
        "longest gap of a planned hand-over: {} ms",
        cluster.seen.longest_gap_ms.load(Ordering::Relaxed)
    );
    cluster.nodes[leader].start();
    cluster.acknowledged(100).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    stop(&cluster.seen, senders).await;
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.all_level().await;
    for at in 0..3 {
        cluster.check(at).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_in_its_tracks_takes_no_late_writes_and_an_empty_volume_fills_again()
 {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.leader(|_| true).await;
    let senders = cluster.senders();
    cluster.acknowledged(200).await;
    let old = cluster.leader(|_| true).await;
    cluster.nodes[old].signal("-STOP");
    let term = |s: &DLedgerStatus| s.term;
    let before = cluster.status((old + 1) % 3).await.map_or(0, |s| term(&s));
    let until = Instant::now() + LIMIT;
    let new = 'found: loop {
        assert!(Instant::now() < until, "nobody took over");
        for at in (0..3).filter(|at| *at != old) {
            if let Some(status) = cluster.status(at).await
                && status.state == DLedgerState::Leader
                && status.term > before
            {
                break 'found at;
            }
        }
    };
    assert_ne!(new, old);
    cluster.acknowledged(100).await;
    cluster.nodes[old].signal("-CONT");
    cluster
        .leader(|s| s.term > before && s.members.iter().all(|m| m.recently_active))
        .await;
    // A follower loses its volume.
    let leader = cluster.leader(|_| true).await;
    let lost = (leader + 1) % 3;
    cluster.nodes[lost].kill();
    fs::remove_dir_all(&cluster.nodes[lost].store).unwrap();
    cluster.acknowledged(50).await;
    cluster.nodes[lost].start();
    cluster.acknowledged(50).await;
    stop(&cluster.seen, senders).await;
    cluster.all_level().await;
    for at in 0..3 {
        cluster.check(at).await;
    }
    cluster.end().await;
}
