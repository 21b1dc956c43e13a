//! Groups that elect their own master, as processes of their own: what was acknowledged is there whoever dies.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IoSlice};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use broker::{Broker, BrokerConfig};
use namesrv::{NameServer, NamesrvConfig};
use remoting::admin::Admin;
use remoting::client::RemotingClient;
use remoting::protocol::body::{DLedgerState, DLedgerStatus, SubscriptionGroupConfig, TopicConfig};
use remoting::protocol::header::SendMessageRequestHeader;
use remoting::protocol::{RemotingCommand, request_code, response_code};
use store::{Disk, RealDisk, SystemClock};

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
    /// In this process instead, where its disk can be made to fail.
    here: Option<Arc<Broker>>,
}

/// A disk whose writes or syncs fail from when the test says so.
#[derive(Default)]
struct Trouble {
    write: AtomicI32,
    sync: AtomicI32,
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn unless(error: &AtomicI32) -> io::Result<()> {
    match error.load(Ordering::SeqCst) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

impl Disk for Trouble {
    fn write_at(&self, file: &File, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        unless(&self.write)?;
        RealDisk.write_at(file, buffers, position)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        unless(&self.sync)?;
        RealDisk.sync_data(file)
    }
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

    async fn start_here(&mut self, disk: Arc<Trouble>) {
        let mut config = BrokerConfig::default();
        let text = fs::read(&self.conf).unwrap();
        config.apply_file(&self.conf, &text).unwrap();
        let settings = config.validate().unwrap();
        let broker = Broker::start_on_disk(settings, Arc::new(SystemClock), disk).await;
        self.here = Some(broker.unwrap());
    }

    fn runs(&self) -> bool {
        self.process.is_some() || self.here.is_some()
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
        let mut cluster = Self::prepare(dir, members, flush, more).await;
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster
    }

    /// Members that do not run yet.
    async fn prepare(dir: &Path, members: usize, flush: &str, more: &str) -> Self {
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
                Node { name, conf, store, address, process: None, here: None }
            })
            .collect();
        let admin = Admin::new(RemotingClient::default(), names.address().to_string());
        Self {
            names,
            admin,
            nodes,
            seen: Arc::default(),
        }
    }

    async fn status(&self, at: usize) -> Option<DLedgerStatus> {
        if !self.nodes[at].runs() {
            return None;
        }
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
            s.members.len() == self.nodes.iter().filter(|n| n.runs()).count()
                && s.members.iter().all(|m| m.lag_bytes == 0 && m.sure)
        })
        .await
    }

    /// Waits until everybody's word counts, as everybody says of itself: what the leader heard may be older than a restart.
    async fn all_sure(&self) {
        for at in 0..self.nodes.len() {
            until("a member's word does not count", async || {
                self.status(at).await.is_some_and(|s| {
                    !s.leader_id.is_empty() && s.members.iter().any(|m| m.id == s.self_id && m.sure)
                })
            })
            .await;
        }
        self.leader(|s| s.members.iter().all(|m| m.recently_active && m.sure))
            .await;
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

    /// A follower learns with the next heartbeat what is committed.
    async fn shows_all(&self, at: usize) {
        let address = &self.nodes[at].address;
        let leader = self.leader(|_| true).await;
        let end = self.status(leader).await.unwrap().last_offset;
        until("a member does not show all that is committed", async || {
            let shown = self
                .status(at)
                .await
                .is_some_and(|s| s.commit_offset >= end);
            let mut all = shown;
            for queue in 0..QUEUES {
                let here = self.admin.max_offset(address, TOPIC, queue).await.ok();
                let there = &self.nodes[leader].address;
                all &= here == self.admin.max_offset(there, TOPIC, queue).await.ok();
            }
            all
        })
        .await;
    }

    /// Everything acknowledged lies where that was said, on this member.
    async fn check(&self, at: usize) {
        let address = &self.nodes[at].address;
        self.shows_all(at).await;
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
    cluster.all_sure().await;
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
        cluster.all_sure().await;
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

/// Until it is so; the text says what was waited for.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let until = Instant::now() + LIMIT;
    while !so().await {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The member `n0`, which leads or follows, has a disk that fails under load; the others go on, and a restart heals it.
async fn a_disk_fails(leads: bool, fail: impl FnOnce(&Trouble)) {
    let dir = tempfile::tempdir().unwrap();
    let preferred = if leads {
        "preferredLeaderId=n0\n"
    } else {
        "preferredLeaderId=n1\n"
    };
    let mut cluster = Cluster::prepare(dir.path(), 3, "SYNC_FLUSH", preferred).await;
    let disk = Arc::new(Trouble::default());
    cluster.nodes[0].start_here(Arc::clone(&disk)).await;
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    let senders = cluster.senders();
    cluster
        .leader(|s| (s.self_id == "n0") == leads && s.members.iter().all(|m| m.sure))
        .await;
    cluster.acknowledged(100).await;
    fail(&disk);
    let sick = Arc::clone(cluster.nodes[0].here.as_ref().unwrap());
    until("a member whose disk failed is still ready", async || {
        sick.ready().is_err()
    })
    .await;
    cluster.leader(|s| s.self_id != "n0").await;
    cluster.acknowledged(100).await;
    assert!(sick.accepts_sends().is_err());
    cluster.nodes[0].here = None;
    sick.shutdown().await;
    drop(sick);
    cluster.nodes[0].start();
    cluster.acknowledged(20).await;
    stop(&cluster.seen, senders).await;
    cluster.all_level().await;
    for at in 0..3 {
        cluster.check(at).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_sync_its_disk_makes_room_for_another() {
    a_disk_fails(true, |disk| disk.sync.store(EIO, Ordering::SeqCst)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_cannot_sync_its_disk_holds_nobody_up() {
    a_disk_fails(false, |disk| disk.sync.store(EIO, Ordering::SeqCst)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_holds_nobody_up() {
    a_disk_fails(false, |disk| disk.write.store(ENOSPC, Ordering::SeqCst)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_leader_takes_the_leadership_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "preferredLeaderId=n1\n").await;
    let senders = cluster.senders();
    cluster.leader(|s| s.self_id == "n1").await;
    cluster.acknowledged(50).await;
    cluster.nodes[1].kill();
    cluster.leader(|s| s.self_id != "n1").await;
    cluster.acknowledged(50).await;
    cluster.nodes[1].start();
    cluster.leader(|s| s.self_id == "n1").await;
    cluster.acknowledged(50).await;
    stop(&cluster.seen, senders).await;
    cluster.all_level().await;
    for at in 0..3 {
        cluster.check(at).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_joins_with_an_empty_volume_and_another_leaves_under_load() {
    let dir = tempfile::tempdir().unwrap();
    // The fourth is prepared with the three, of whose membership it is no part yet.
    let mut cluster = Cluster::prepare(dir.path(), 4, "ASYNC_FLUSH", "").await;
    let text = fs::read_to_string(&cluster.nodes[0].conf).unwrap();
    let peers = text
        .lines()
        .find_map(|l| l.strip_prefix("dLegerPeers="))
        .unwrap();
    let (three, fourth) = peers.rsplit_once(';').unwrap();
    let address = fourth.strip_prefix("n3-").unwrap();
    for node in &mut cluster.nodes[..3] {
        let own = fs::read_to_string(&node.conf).unwrap();
        fs::write(&node.conf, own.replace(peers, three)).unwrap();
        node.start();
    }
    let senders = cluster.senders();
    cluster.acknowledged(50).await;
    cluster.nodes[3].start();
    until("the fourth is not taken in", async || {
        let leader = cluster.leader(|_| true).await;
        let leader = &cluster.nodes[leader].address;
        let asked = cluster.admin.dledger_add_member(leader, "n3", address);
        asked.await.is_ok()
    })
    .await;
    let votes = |s: &DLedgerStatus, name: &str| s.members.iter().any(|m| m.id == name && m.voter);
    let leader = cluster.leader(|s| votes(s, "n3")).await;
    cluster.acknowledged(50).await;
    let leaves = (0..3).find(|at| *at != leader).unwrap();
    let name = cluster.nodes[leaves].name.clone();
    until("a member is not let go", async || {
        let leader = cluster.leader(|_| true).await;
        let leader = &cluster.nodes[leader].address;
        let asked = cluster.admin.dledger_remove_member(leader, &name);
        asked.await.is_ok()
    })
    .await;
    cluster
        .leader(|s| s.members.len() == 3 && !votes(s, &name))
        .await;
    cluster.nodes[leaves].kill();
    // The one that joined counts: without it there would be no majority now.
    let other = (0..3).find(|at| *at != leader && *at != leaves).unwrap();
    cluster.nodes[other].kill();
    cluster.acknowledged(50).await;
    cluster.nodes[other].start();
    stop(&cluster.seen, senders).await;
    cluster.all_level().await;
    for at in [leader, other, 3] {
        cluster.check(at).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_knows_topics_groups_and_offsets_and_delivers_what_was_delayed_once() {
    const DELAYED: usize = 8;
    const GROUP: &str = "readers";
    let dir = tempfile::tempdir().unwrap();
    let more = "messageDelayLevel=2s\nslaveSyncIntervalMs=100\n";
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", more).await;
    let leader = cluster.all_level().await;
    let address = cluster.nodes[leader].address.clone();
    for name in [TOPIC, "Made"] {
        let topic = TopicConfig {
            topic_name: name.into(),
            read_queue_nums: 3,
            write_queue_nums: 3,
            perm: 6,
            ..TopicConfig::default()
        };
        cluster.admin.create_topic(&address, &topic).await.unwrap();
    }
    let group = SubscriptionGroupConfig::new(GROUP);
    let made = cluster.admin.create_subscription_group(&address, &group);
    made.await.unwrap();
    let moved = cluster
        .admin
        .update_consumer_offset(&address, GROUP, "Made", 1, 7);
    moved.await.unwrap();
    let followers: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    for at in &followers {
        let (admin, address) = (&cluster.admin, &cluster.nodes[*at].address);
        until("a follower does not copy the tables", async || {
            let topic = admin.topic_config(address, "Made").await;
            let groups = admin.subscription_groups(address).await;
            let offset = admin.consumer_offset(address, GROUP, "Made", 1).await;
            matches!(topic, Ok(Some(t)) if t.read_queue_nums == 3)
                && groups.is_ok_and(|g| g.subscription_group_table.contains_key(GROUP))
                && matches!(offset, Ok(Some(7)))
        })
        .await;
    }
    let client = RemotingClient::default();
    for n in 0..DELAYED {
        let message = RemotingCommand::request(request_code::SEND_MESSAGE)
            .with_header(&SendMessageRequestHeader {
                producer_group: "group".into(),
                topic: TOPIC.into(),
                default_topic: "TBW102".into(),
                default_topic_queue_nums: QUEUES,
                queue_id: 0,
                properties: Some("DELAY\u{1}1\u{2}".into()),
                ..SendMessageRequestHeader::default()
            })
            .with_body(format!("delayed {n}").into_bytes());
        let answer = client.invoke(&address, message, CALL_LIMIT).await.unwrap();
        assert_eq!(answer.code, response_code::SUCCESS);
    }
    cluster.nodes[leader].kill();
    let new = cluster.leader(|_| true).await;
    cluster.nodes[leader].start();
    let (admin, address) = (&cluster.admin, &cluster.nodes[new].address);
    let known = admin.topic_config(address, "Made").await.unwrap();
    assert_eq!(known.map(|t| t.read_queue_nums), Some(3));
    let offset = admin.consumer_offset(address, GROUP, "Made", 1).await;
    assert_eq!(offset.unwrap(), Some(7));
    let delivered = DELAYED as i64;
    until("what was delayed is not delivered", async || {
        let end = admin.max_offset(address, TOPIC, 0).await;
        end.is_ok_and(|end| end >= delivered)
    })
    .await;
    cluster.all_level().await;
    for (at, node) in cluster.nodes.iter().enumerate() {
        cluster.shows_all(at).await;
        let pulled = cluster.admin.pull(&node.address, TOPIC, 0, 0, 32);
        let (messages, _) = pulled.await.unwrap();
        let bodies: Vec<_> = messages.iter().map(|m| m.body.clone()).collect();
        let wanted: Vec<_> = (0..DELAYED)
            .map(|n| format!("delayed {n}").into_bytes())
            .collect();
        assert_eq!(bodies, wanted, "on {}", node.name);
    }
    cluster.end().await;
}
