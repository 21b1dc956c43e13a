//! Members with a bad network between them: each goes to each other through a proxy of its own, so that every direction of every
//! link can be cut, held up, slowed down and torn by itself, while senders and readers write down what they see.
//!
//! `ROCKETCLUSTER_FAULT_SECONDS` makes the storm longer, `ROCKETCLUSTER_SEED` repeats one.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use fault_proxy::{Direction, Faults, Proxy};
use remoting::client::RemotingClient;
use remoting::protocol::body::DLedgerState;
use remoting::protocol::response_code;

use crate::common::load::{CALL_LIMIT, message, read_all};
use crate::common::{Draw, number, until};
use crate::group::Cluster;
use crate::history::History;

const MEMBERS: usize = 3;
/// Elections that a busy machine may cost in a test in which there should be none; a member that disturbs the others costs more.
const ELECTIONS_OF_A_BUSY_MACHINE: i64 = 3;
/// Some election time-outs: who would disturb the others has done it by then.
const A_WHILE: Duration = Duration::from_millis(1200);
/// A leader that was cut off knows it by then, and another leads: two election time-outs, and what a busy machine adds.
const STEPS_DOWN_WITHIN: Duration = Duration::from_secs(15);
/// When everything works again, sends are taken by then, on a busy machine too.
const WRITABLE_WITHIN: Duration = Duration::from_secs(20);

/// The ways from each member to each other.
struct Network(BTreeMap<(usize, usize), Proxy>);

impl Network {
    /// Leads the members of a group, that do not run yet, through proxies: each finds the others by names of its own.
    async fn between(dir: &Path, cluster: &mut Cluster) -> Self {
        let text = fs::read_to_string(&cluster.nodes[0].conf).unwrap();
        let peers = text
            .lines()
            .find_map(|l| l.strip_prefix("dLegerPeers="))
            .unwrap();
        let ports: Vec<u16> = peers
            .split(';')
            .map(|peer| peer.rsplit_once(':').unwrap().1.parse().unwrap())
            .collect();
        let named: Vec<String> = (0..)
            .zip(&ports)
            .map(|(k, port)| format!("n{k}-member{k}:{port}"))
            .collect();
        let mut ways = BTreeMap::new();
        for from in 0..ports.len() {
            let mut hosts = String::new();
            for (to, port) in ports.iter().enumerate() {
                let mut ip = Ipv4Addr::LOCALHOST;
                let member = SocketAddr::from((ip, *port));
                if to != from {
                    ip = Ipv4Addr::new(127, 0, 10 + from as u8, 1 + to as u8);
                    let way = Proxy::start_at(SocketAddr::from((ip, *port)), member);
                    ways.insert((from, to), way.await.unwrap());
                }
                hosts.push_str(&format!("{ip} member{to}\n"));
            }
            let file = dir.join(format!("hosts-{from}"));
            fs::write(&file, hosts).unwrap();
            let node = &mut cluster.nodes[from];
            let text = fs::read_to_string(&node.conf).unwrap();
            fs::write(&node.conf, text.replace(peers, &named.join(";"))).unwrap();
            node.hosts = Some(file);
        }
        Self(ways)
    }

    fn set(&self, from: usize, to: usize, faults: Faults) {
        self.0[&(from, to)].set(Direction::ToServer, faults);
    }

    /// Nothing that one says arrives at the other, and nobody is told.
    fn cut(&self, from: usize, to: usize) {
        self.0[&(from, to)].partition();
    }

    fn cut_both(&self, one: usize, other: usize) {
        self.cut(one, other);
        self.cut(other, one);
    }

    fn isolate(&self, who: usize) {
        for other in (0..MEMBERS).filter(|other| *other != who) {
            self.cut_both(who, other);
        }
    }

    /// What was held arrives now, late.
    fn heal(&self) {
        for way in self.0.values() {
            way.heal();
        }
    }
}

struct Group {
    cluster: Cluster,
    network: Network,
    history: History,
    _folder: tempfile::TempDir,
}

impl Group {
    /// Level and under load.
    async fn start(flush: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::prepare(folder.path(), MEMBERS, flush, "").await;
        let network = Network::between(folder.path(), &mut cluster).await;
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.all_sure().await;
        let members: Vec<String> = cluster.nodes.iter().map(|n| n.address.clone()).collect();
        let history = History::begin(&members);
        history.acknowledged(100).await;
        Self {
            cluster,
            network,
            history,
            _folder: folder,
        }
    }

    async fn leader(&self) -> usize {
        self.cluster.leader(|_| true).await
    }

    /// The newest term that anybody knows.
    async fn term(&self) -> i64 {
        let mut term = 0;
        for at in 0..MEMBERS {
            term = term.max(self.cluster.status(at).await.map_or(0, |s| s.term));
        }
        term
    }

    async fn leads(&self, at: usize) -> bool {
        let status = self.cluster.status(at).await;
        status.is_some_and(|s| s.state == DLedgerState::Leader)
    }

    /// Waits until another than this one leads, and this one knows that it does not.
    async fn another_than(&self, old: usize) -> usize {
        let begun = Instant::now();
        let mut new = old;
        until("another leads, and only that one", async || {
            for at in (0..MEMBERS).filter(|at| *at != old) {
                if self.leads(at).await {
                    new = at;
                }
            }
            new != old && !self.leads(old).await
        })
        .await;
        let took = begun.elapsed();
        println!("another leads after {took:?}");
        assert!(took < STEPS_DOWN_WITHIN);
        new
    }

    /// Whoever was killed or stopped runs again.
    fn go_on(&mut self, dead: &mut Option<usize>, stopped: &mut Option<usize>) {
        if let Some(at) = dead.take() {
            self.history.died(at);
            self.cluster.nodes[at].start();
        }
        if let Some(at) = stopped.take() {
            self.cluster.nodes[at].signal("-CONT");
        }
    }

    /// Everybody is heard of and has nearly everything.
    async fn whole(&self) {
        self.cluster
            .leader(|s| {
                s.members.len() == MEMBERS
                    && s.members
                        .iter()
                        .all(|m| m.recently_active && m.sure && m.lag_bytes < 100_000)
            })
            .await;
    }

    /// Everything works again: records are taken, all have the same bytes, and what was seen meanwhile fits them.
    async fn end(self) {
        self.network.heal();
        let healed = Instant::now();
        self.history.acknowledged(50).await;
        let took = healed.elapsed();
        println!("writable {took:?} after the last fault");
        assert!(took < WRITABLE_WITHIN);
        let cluster = self.cluster;
        self.history
            .check(async || {
                cluster.all_level().await;
                let mut all = None;
                for at in 0..MEMBERS {
                    cluster.shows_all(at).await;
                    let found = read_all(&cluster.nodes[at].address).await;
                    let first = all.get_or_insert_with(|| found.clone());
                    assert!(*first == found, "n{at} shows something else than n0");
                }
                all.unwrap()
            })
            .await;
        let mut end = u64::MAX;
        for at in 0..MEMBERS {
            let status = cluster.status(at).await.unwrap();
            end = end.min(status.commit_offset as u64);
        }
        let logs: Vec<Vec<u8>> = cluster
            .nodes
            .iter()
            .map(|node| log(&node.store.join(format!("dledger-{}", node.name)), end))
            .collect();
        assert_eq!(logs[0].len() as u64, end);
        assert!(logs.iter().all(|log| *log == logs[0]), "the logs differ");
        cluster.end().await;
    }
}

/// The log up to there.
fn log(folder: &Path, end: u64) -> Vec<u8> {
    let mut segments: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // The state lies beside them.
        .filter(|path| path.file_name().is_some_and(|name| name.len() == 20))
        .collect();
    segments.sort();
    let mut bytes: Vec<u8> = segments.iter().flat_map(|s| fs::read(s).unwrap()).collect();
    bytes.truncate(end as usize);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_steps_down_and_takes_nothing_while_another_leads() {
    let group = Group::start("SYNC_FLUSH").await;
    let old = group.leader().await;
    group.network.isolate(old);
    group.another_than(old).await;
    let stepped_down = Instant::now();
    group.history.acknowledged(200).await;
    let client = RemotingClient::default();
    let address = &group.cluster.nodes[old].address;
    let answer = client
        .invoke(address, message("too late"), CALL_LIMIT)
        .await;
    let code = answer.unwrap().code;
    assert_eq!(code, response_code::SERVICE_NOT_AVAILABLE);
    assert_eq!(group.history.acknowledged_by(old, stepped_down), 0);
    assert!(!group.leads(old).await);
    group.network.heal();
    group.whole().await;
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hears_nobody_or_whom_nobody_hears_makes_room_for_another() {
    let group = Group::start("ASYNC_FLUSH").await;
    for deaf in [true, false] {
        let old = group.leader().await;
        for other in (0..MEMBERS).filter(|other| *other != old) {
            if deaf {
                group.network.cut(other, old);
            } else {
                group.network.cut(old, other);
            }
        }
        group.another_than(old).await;
        group.history.acknowledged(100).await;
        group.network.heal();
        group.whole().await;
    }
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_cut_off_in_whole_or_in_part_disturbs_nobody() {
    let group = Group::start("ASYNC_FLUSH").await;
    let before = group.term().await;
    for kind in 0..5 {
        let leader = group.leader().await;
        let (follower, other) = ((leader + 1) % MEMBERS, (leader + 2) % MEMBERS);
        match kind {
            0 => group.network.isolate(follower),
            1 => group.network.cut(leader, follower),
            2 => group.network.cut(follower, leader),
            // The third sees both.
            3 => group.network.cut_both(leader, follower),
            _ => group.network.cut_both(follower, other),
        }
        let cut = Instant::now();
        until("a while is over", async || cut.elapsed() >= A_WHILE).await;
        group.history.acknowledged(50).await;
        group.network.heal();
        group.whole().await;
    }
    let elections = group.term().await - before;
    assert!(
        elections <= ELECTIONS_OF_A_BUSY_MACHINE,
        "{elections} elections"
    );
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_link_to_one_follower_does_not_slow_the_group_down_and_torn_ones_do_not_stop_it() {
    /// Half a minute for all of the messages: a busy machine is quicker.
    const BYTES_PER_SECOND: u64 = 2 * 1024;
    const MESSAGES: u64 = 500;
    /// Bytes of one of them, at least.
    const MESSAGE: u64 = 200;
    let group = Group::start("ASYNC_FLUSH").await;
    let leader = group.leader().await;
    let slow = (leader + 1) % MEMBERS;
    let way = &group.network.0[&(leader, slow)];
    let passed = way.passed(Direction::ToServer);
    group.network.set(
        leader,
        slow,
        Faults {
            delay: Duration::from_millis(50),
            bytes_per_second: BYTES_PER_SECOND,
            ..Faults::default()
        },
    );
    group.history.acknowledged(MESSAGES).await;
    let passed = way.passed(Direction::ToServer) - passed;
    assert!(
        passed < MESSAGES * MESSAGE,
        "{passed} bytes went over the slow link"
    );
    group.network.heal();
    group.whole().await;
    for (n, (from, to)) in group.network.0.keys().enumerate() {
        let tear_after = Some(30_000 + 10_000 * n as u64);
        let faults = Faults {
            tear_after,
            ..Faults::default()
        };
        group.network.set(*from, *to, faults);
    }
    let connections = way.connections();
    group.history.acknowledged(MESSAGES).await;
    until("connections are torn", async || {
        way.connections() > connections
    })
    .await;
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_network_and_members_nothing_acknowledged_is_lost_and_no_reader_is_deceived()
 {
    let seed = number("ROCKETCLUSTER_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let seconds = number("ROCKETCLUSTER_FAULT_SECONDS").unwrap_or(5);
    println!("ROCKETCLUSTER_SEED={seed}");
    let mut draw = Draw::new(seed);
    let mut group = Group::start(["SYNC_FLUSH", "ASYNC_FLUSH"][draw.below(2) as usize]).await;
    let (mut dead, mut stopped) = (None, None);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let one = draw.below(MEMBERS as u64) as usize;
        let other = (one + 1 + draw.below(2) as usize) % MEMBERS;
        let network = &group.network;
        let fault = draw.below(12);
        match fault {
            0 => network.isolate(one),
            1 => {
                let leads = async |at| group.leads(at).await;
                let leader = if leads(other).await { other } else { one };
                network.isolate(leader);
            }
            2 => network.cut(one, other),
            3 => network.cut_both(one, other),
            4 => network.set(
                one,
                other,
                Faults {
                    delay: Duration::from_millis(draw.below(400)),
                    ..Faults::default()
                },
            ),
            5 => network.set(
                one,
                other,
                Faults {
                    bytes_per_second: 2_000 + draw.below(50_000),
                    ..Faults::default()
                },
            ),
            6 => network.set(
                one,
                other,
                Faults {
                    tear_after: Some(1 + draw.below(50_000)),
                    ..Faults::default()
                },
            ),
            7 => network.0[&(one, other)].drop_connections(),
            8 if dead.is_none() && stopped != Some(one) => {
                group.cluster.nodes[one].kill();
                dead = Some(one);
            }
            9 if stopped.is_none() && dead != Some(one) => {
                group.cluster.nodes[one].signal("-STOP");
                stopped = Some(one);
            }
            _ => network.heal(),
        }
        println!("{fault}: n{one}, n{other}");
        let next = Instant::now() + Duration::from_millis(50 + draw.below(1000));
        until("the next fault is due", async || Instant::now() >= next).await;
        if draw.below(2) == 0 {
            group.go_on(&mut dead, &mut stopped);
        }
        // Where three cannot reach each other nothing goes on, and nothing is learnt.
        if draw.below(3) == 0 {
            group.network.heal();
        }
    }
    group.go_on(&mut dead, &mut stopped);
    group.end().await;
}
