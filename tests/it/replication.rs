//! A master and its slave with a bad network between them: what was acknowledged is on both in the end, whatever happened.
//!
//! `ROCKETCLUSTER_FAULT_SECONDS` makes the storm longer, `ROCKETCLUSTER_SEED` repeats one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use broker::config::BrokerRole;
use broker::role::MasterAddress;
use broker::{Broker, BrokerConfig};
use fault_proxy::{Direction, Faults, Proxy};
use remoting::protocol::{request_code, response_code};
use remoting::{Admin, ClientConfig, RemotingClient, RemotingCommand};
use store::{Clock, SystemClock};

const PATIENCE: Duration = Duration::from_secs(20);
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TOPIC: &str = "T";
const QUEUES: i32 = 2;
/// A send waits so long for the slave, and either end of the stream for a word of the other.
const SLAVE_TIMEOUT_MS: i32 = 300;
const SILENCE_MS: i32 = 800;
const SENDERS: usize = 4;

/// A clock that can be set.
#[derive(Default)]
struct Adjustable(AtomicI64);

impl Clock for Adjustable {
    fn now_ms(&self) -> i64 {
        SystemClock.now_ms() + self.0.load(Ordering::Relaxed)
    }
}

struct Pair {
    master: Arc<Broker>,
    slave: Arc<Broker>,
    /// In front of the replication port and of the main port of the master, for the slave alone.
    stream: Proxy,
    main: Proxy,
    clock: Arc<Adjustable>,
    client: RemotingClient,
    _folder: tempfile::TempDir,
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Pair {
    async fn start(role: BrokerRole) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Adjustable::default());
        let config = |role: BrokerRole, id: i64| BrokerConfig {
            broker_name: "g".to_owned(),
            broker_role: role,
            broker_id: id,
            bind_address: HOST.to_string(),
            broker_ip1: HOST.to_string(),
            listen_port: 0,
            http_port: 0,
            store_path_root_dir: folder.path().join(id.to_string()).display().to_string(),
            mapped_file_size_commit_log: 256 << 10,
            mapped_file_size_consume_queue: 20_000,
            max_hash_slot_num: 1_000,
            max_index_num: 4_000,
            tail_ring_bytes: 1 << 20,
            shutdown_drain_ms: 0,
            slave_timeout: SLAVE_TIMEOUT_MS,
            ha_send_heartbeat_interval: 100,
            ha_housekeeping_interval: SILENCE_MS,
            slave_sync_interval_ms: 50,
            ..BrokerConfig::default()
        };
        let start = async |config: BrokerConfig| {
            let clock: Arc<dyn Clock> = Arc::clone(&clock) as _;
            let settings = config.validate().unwrap();
            Broker::start_with_clock(settings, clock).await.unwrap()
        };
        let master = start(config(role, 0)).await;
        let slave = start(config(BrokerRole::Slave, 1)).await;
        let behind = async |address: &str| {
            let address: SocketAddr = address.parse().unwrap();
            Proxy::start(HOST, address).await.unwrap()
        };
        let stream = behind(master.ha_address()).await;
        let main = behind(master.address()).await;
        slave.role.update(|role| {
            role.master = MasterAddress {
                address: Some(main.address().to_string()),
                ha_address: Some(stream.address().to_string()),
            }
        });
        let pair = Self {
            master,
            slave,
            stream,
            main,
            clock,
            client: RemotingClient::new(ClientConfig::default()),
            _folder: folder,
        };
        until("the slave follows", || pair.has_slave()).await;
        until("the tables", || pair.slave.slave.master_answers()).await;
        pair
    }

    fn has_slave(&self) -> bool {
        let end = self.master.store.written();
        self.master.ha.replicas.available(end, 1 << 20)
    }

    fn partition(&self) {
        self.stream.partition();
        self.main.partition();
    }

    fn heal(&self) {
        self.stream.heal();
        self.main.heal();
    }

    async fn send(&self, body: &str) -> RemotingCommand {
        send(&self.client, self.master.address(), body).await
    }

    /// The slave has what the master has, and both hold what was acknowledged.
    async fn agree(&self, acknowledged: &Acknowledged) {
        until("the slave has everything", || {
            self.master.store.written() == self.slave.store.written()
                && self.slave.store.confirm_offset() == self.slave.store.written()
        })
        .await;
        until("the topics", || self.slave.topics.get(TOPIC).is_some()).await;
        let (one, other) = (log(&self.master), log(&self.slave));
        assert!(one == other, "the logs differ");
        self.slave.update_config(|c| c.slave_read_enable = true);
        let admin = Admin::new(self.client.clone(), "");
        for broker in [&self.master, &self.slave] {
            let mut found = BTreeMap::new();
            for queue in 0..QUEUES {
                let max = broker.store.max_offset(TOPIC, queue);
                let mut offset = 0;
                while offset < max {
                    let (messages, header) = admin
                        .pull(broker.address(), TOPIC, queue, offset, 32)
                        .await
                        .unwrap();
                    assert!(header.next_begin_offset > offset);
                    offset = header.next_begin_offset;
                    for m in messages {
                        found.insert((queue, m.queue_offset), m.body);
                    }
                }
            }
            for (body, at) in acknowledged {
                assert_eq!(found.get(at).map(Vec::as_slice), Some(body.as_bytes()));
            }
        }
    }

    async fn stop(self) {
        self.slave.shutdown().await;
        self.master.shutdown().await;
    }
}

type Acknowledged = BTreeMap<String, (i32, i64)>;

async fn send(client: &RemotingClient, address: &str, body: &str) -> RemotingCommand {
    let command = RemotingCommand::request(request_code::SEND_MESSAGE_V2)
        .with_ext("a", "producers")
        .with_ext("b", TOPIC)
        .with_ext("c", "TBW102")
        .with_ext("d", QUEUES.to_string())
        .with_ext("e", "-1")
        .with_ext("f", "0")
        .with_ext("g", "1700000000000")
        .with_ext("h", "0")
        .with_body(body.as_bytes().to_vec());
    client.invoke(address, command, PATIENCE).await.unwrap()
}

fn log(broker: &Broker) -> Vec<u8> {
    let mut out = Vec::new();
    while (out.len() as u64) < broker.store.written() {
        let at = out.len() as u64;
        assert!(broker.store.read_range(at, 1 << 20, &mut out).unwrap() > 0);
    }
    out
}

fn place(answer: &RemotingCommand) -> (i32, i64) {
    let field = |name: &str| answer.ext(name).unwrap().parse::<i64>().unwrap();
    (
        i32::try_from(field("queueId")).unwrap(),
        field("queueOffset"),
    )
}

/// Senders that go on until told to stop; what was acknowledged with code 0.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Acknowledged>>,
    tasks: Vec<tokio::task::JoinHandle<BTreeMap<i32, u32>>>,
}

impl Load {
    fn start(pair: &Pair) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::<Mutex<Acknowledged>>::default();
        let task = |sender: usize| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let (client, address) = (pair.client.clone(), pair.master.address().to_owned());
            tokio::spawn(async move {
                let mut codes = BTreeMap::new();
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let body = format!("{sender}-{n}-{}", "z".repeat(n % 700));
                    let answer = send(&client, &address, &body).await;
                    *codes.entry(answer.code).or_default() += 1;
                    if answer.code == response_code::SUCCESS {
                        acknowledged.lock().unwrap().insert(body, place(&answer));
                    }
                    // Enough for many chunks, and little enough for a slow machine.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                codes
            })
        };
        let tasks = (0..SENDERS).map(task).collect();
        Self {
            stop,
            acknowledged,
            tasks,
        }
    }

    /// What was acknowledged, and how often each code was the answer.
    async fn end(self) -> (Acknowledged, BTreeMap<i32, u32>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut codes = BTreeMap::new();
        for task in self.tasks {
            for (code, count) in task.await.unwrap() {
                *codes.entry(code).or_default() += count;
            }
        }
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        (acknowledged, codes)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_master_cut_off_from_its_slave_says_so_and_recovers() {
    let pair = Pair::start(BrokerRole::SyncMaster).await;
    let mut acknowledged = Acknowledged::new();
    let first = pair.send("first").await;
    assert_eq!(first.code, response_code::SUCCESS);
    acknowledged.insert("first".to_owned(), place(&first));
    pair.partition();
    let begun = Instant::now();
    let answer = pair.send("nobody answers").await;
    assert_eq!(answer.code, response_code::FLUSH_SLAVE_TIMEOUT);
    assert!(begun.elapsed() >= Duration::from_millis(SLAVE_TIMEOUT_MS.unsigned_abs().into()));
    until("the silent slave is given up", || !pair.has_slave()).await;
    let answer = pair.send("nobody is there").await;
    assert_eq!(answer.code, response_code::SLAVE_NOT_AVAILABLE);
    pair.heal();
    until("it is back", || pair.has_slave()).await;
    let last = pair.send("last").await;
    assert_eq!(last.code, response_code::SUCCESS, "{:?}", last.remark);
    acknowledged.insert("last".to_owned(), place(&last));
    pair.agree(&acknowledged).await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asynchronous_master_does_not_notice_that_its_slave_is_away() {
    let pair = Pair::start(BrokerRole::AsyncMaster).await;
    let mut acknowledged = Acknowledged::new();
    pair.partition();
    for n in 0..50 {
        let body = format!("{n}");
        let answer = pair.send(&body).await;
        assert_eq!(answer.code, response_code::SUCCESS);
        acknowledged.insert(body, place(&answer));
    }
    pair.heal();
    pair.agree(&acknowledged).await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_long_link_many_senders_wait_at_once_and_on_a_narrow_one_nobody_is_lost() {
    let pair = Pair::start(BrokerRole::SyncMaster).await;
    // The topic's registration is no part of this.
    pair.send("first").await;
    let delay = Duration::from_millis(40);
    pair.stream.set_both(Faults {
        delay,
        ..Faults::default()
    });
    let begun = Instant::now();
    let sends = (0..64).map(|n| {
        let (client, address) = (pair.client.clone(), pair.master.address().to_owned());
        tokio::spawn(async move { send(&client, &address, &format!("long-{n}")).await })
    });
    let sends: Vec<_> = sends.collect();
    let mut acknowledged = Acknowledged::new();
    for (n, answer) in sends.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        assert_eq!(answer.code, response_code::SUCCESS);
        acknowledged.insert(format!("long-{n}"), place(&answer));
    }
    let took = begun.elapsed();
    assert!(took >= delay * 2, "a copy takes a round trip: {took:?}");
    assert!(took < delay * 2 * 16, "one after the other: {took:?}");

    pair.stream.set_both(Faults {
        bytes_per_second: 100_000,
        ..Faults::default()
    });
    for n in 0..20 {
        let body = format!("narrow-{n}-{}", "w".repeat(2_000));
        let answer = pair.send(&body).await;
        assert_eq!(answer.code, response_code::SUCCESS, "{n}");
        acknowledged.insert(body, place(&answer));
    }
    pair.agree(&acknowledged).await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_deaf_in_one_direction_acknowledges_nothing_it_did_not_hear() {
    for direction in [Direction::ToServer, Direction::ToClient] {
        let pair = Pair::start(BrokerRole::SyncMaster).await;
        assert_eq!(pair.send("first").await.code, response_code::SUCCESS);
        pair.stream.set(
            direction,
            Faults {
                hold: true,
                ..Faults::default()
            },
        );
        let code = pair.send("one way").await.code;
        assert_eq!(code, response_code::FLUSH_SLAVE_TIMEOUT, "{direction:?}");
        pair.heal();
        until("it is back", || pair.has_slave()).await;
        let last = pair.send("last").await;
        assert_eq!(last.code, response_code::SUCCESS, "{direction:?}");
        let acknowledged = Acknowledged::from([("last".to_owned(), place(&last))]);
        pair.agree(&acknowledged).await;
        pair.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_torn_anywhere_goes_on_without_a_gap() {
    let pair = Pair::start(BrokerRole::AsyncMaster).await;
    let load = Load::start(&pair);
    // Within the header, at its end, within the first record, within a later one, within a chunk far on.
    for tear_after in [1, 8, 12, 13, 40, 777, 33_333] {
        let before = pair.stream.connections();
        pair.stream.set(
            Direction::ToClient,
            Faults {
                tear_after: Some(tear_after),
                ..Faults::default()
            },
        );
        pair.stream.drop_connections();
        until("torn again", || pair.stream.connections() > before + 1).await;
        pair.heal();
        until("the slave follows", || pair.has_slave()).await;
    }
    let (acknowledged, codes) = load.end().await;
    assert_eq!(codes.len(), 1, "{codes:?}");
    pair.agree(&acknowledged).await;
    pair.stop().await;
}

/// xorshift; what it draws decides faults, nothing else.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn faults(&mut self) -> Faults {
        let mut faults = Faults::default();
        match self.below(5) {
            0 => faults.delay = Duration::from_millis(self.below(80)),
            1 => faults.bytes_per_second = 20_000 + self.below(500_000),
            2 => faults.hold = true,
            3 => faults.tear_after = Some(1 + self.below(5_000)),
            _ => {}
        }
        faults
    }
}

async fn storm(role: BrokerRole) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seconds = number("ROCKETCLUSTER_FAULT_SECONDS").unwrap_or(3);
    let seed = number("ROCKETCLUSTER_SEED").unwrap_or_else(|| SystemClock.now_ms().unsigned_abs());
    println!("ROCKETCLUSTER_SEED={seed}");
    let mut draw = Draw(seed | 1);
    let pair = Pair::start(role).await;
    let load = Load::start(&pair);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for proxy in [&pair.stream, &pair.main] {
            proxy.set(Direction::ToServer, draw.faults());
            proxy.set(Direction::ToClient, draw.faults());
            if draw.below(4) == 0 {
                proxy.drop_connections();
            }
        }
        tokio::time::sleep(Duration::from_millis(50 + draw.below(400))).await;
    }
    pair.heal();
    until("the slave follows", || pair.has_slave()).await;
    let (acknowledged, codes) = load.end().await;
    println!(
        "{role:?}: {} acknowledged, answers {codes:?}, {} connections",
        acknowledged.len(),
        pair.stream.connections()
    );
    assert!(!acknowledged.is_empty());
    pair.agree(&acknowledged).await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_faults_under_a_synchronous_master_loses_nothing() {
    storm(BrokerRole::SyncMaster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_faults_under_an_asynchronous_master_loses_nothing() {
    storm(BrokerRole::AsyncMaster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_disturbs_neither_the_stream_nor_who_waits_for_it() {
    const HOUR_MS: i64 = 3_600_000;
    let pair = Pair::start(BrokerRole::SyncMaster).await;
    let mut acknowledged = Acknowledged::new();
    for (n, step) in [2 * HOUR_MS, -HOUR_MS, 0].into_iter().enumerate() {
        pair.clock.0.store(step, Ordering::Relaxed);
        for m in 0..20 {
            let body = format!("{n}-{m}");
            let begun = Instant::now();
            let answer = pair.send(&body).await;
            assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
            assert!(begun.elapsed() < PATIENCE / 4);
            acknowledged.insert(body, place(&answer));
        }
        assert!(pair.has_slave() && pair.slave.slave.master_answers());
    }
    pair.agree(&acknowledged).await;
    pair.stop().await;
}
