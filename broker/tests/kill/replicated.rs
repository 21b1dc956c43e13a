//! A master, its slave, and both. Of a synchronous one nothing acknowledged with code 0 is missing afterwards, neither on the
//! master nor on the slave. Of an asynchronous one the slave lacks at most the end of the log, which is measured at the moment of
//! the kill, and gets it when the master is back.
//!
//! `ROCKETCLUSTER_KILLS` says how many of the random kills there are, `ROCKETCLUSTER_SEED` repeats a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use namesrv::NameServer;
use remoting::admin::Admin;
use remoting::client::RemotingClient;

use crate::common::load::{Acknowledged, Found, Load, TOPIC, check, read_all};
use crate::common::process::{BrokerProcess, free_ports, name_server};
use crate::common::{Draw, number, until};

const SENDERS: u64 = 8;
/// Acknowledgements before each kill.
const ACKNOWLEDGED_BEFORE_KILL: u64 = 300;

struct Node {
    conf: PathBuf,
    address: String,
    process: Option<BrokerProcess>,
}

impl Node {
    fn new(dir: &Path, name: &str, names: &NameServer, more: &str) -> Self {
        let port = free_ports(1)[0];
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
        self.process = Some(BrokerProcess::start(&self.conf, None));
    }

    fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_synchronous_master_acknowledged_is_lost_whoever_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_server(dir.path()).await;
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
    let load = Load::start(std::slice::from_ref(&master.address), SENDERS);
    for round in 0..6 {
        load.acknowledged(ACKNOWLEDGED_BEFORE_KILL + round * 37)
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
    load.acknowledged(ACKNOWLEDGED_BEFORE_KILL).await;
    println!("longest gap of a sender: {:?}", load.longest_gap());
    let acknowledged = load.stop().await;
    let admin = Admin::new(RemotingClient::default(), "");
    until("the slave has everything", async || {
        let status = admin.ha_status(&master.address).await.unwrap();
        status.ha_connection_info.iter().any(|c| c.diff == 0)
    })
    .await;
    until("the slave has the topic", async || {
        let topic = admin.topic_config(&slave.address, TOPIC).await;
        topic.is_ok_and(|t| t.is_some())
    })
    .await;
    let on_master = read_all(&master.address).await;
    let on_slave = read_all(&slave.address).await;
    check("master", &acknowledged, &on_master);
    check("slave", &acknowledged, &on_slave);
    assert!(on_master == on_slave, "master and slave differ");
    names.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_asynchronous_slave_lacks_is_the_end_of_the_log_and_comes_when_the_master_is_back()
{
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("ROCKETCLUSTER_SEED").unwrap_or(now.unwrap().as_millis() as u64);
    println!("ROCKETCLUSTER_SEED={seed}");
    let mut draw = Draw::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let names = name_server(dir.path()).await;
    let more = "brokerRole=ASYNC_MASTER\nslaveReadEnable=true\n";
    let mut master = Node::new(dir.path(), "master", &names, more);
    let more = "brokerRole=SLAVE\nbrokerId=1\nslaveReadEnable=true\n";
    let mut slave = Node::new(dir.path(), "slave", &names, more);
    master.start();
    slave.start();
    let load = Load::start(std::slice::from_ref(&master.address), SENDERS);
    let admin = Admin::new(RemotingClient::default(), "");
    let address = slave.address.clone();
    let copied = async || {
        let info = admin.broker_runtime_info(&address).await.ok()?;
        info.get("commitLogMaxOffset")?.parse::<i64>().ok()
    };
    for round in 0..number("ROCKETCLUSTER_KILLS").unwrap_or(4) {
        load.acknowledged(100 + draw.below(400)).await;
        // A slave that follows, or its distance would be that of an earlier kill.
        let begun = Instant::now();
        until("the slave follows", async || {
            let status = admin.ha_status(&master.address).await;
            status.is_ok_and(|s| s.ha_connection_info.iter().any(|c| c.diff < 100_000))
        })
        .await;
        println!("round {round}: it followed after {:?}", begun.elapsed());
        // The first kill is the master's, so that there is one to measure.
        match if round == 0 { 0 } else { draw.below(3) } {
            0 => {
                until("the slave has the topic", async || {
                    let topic = admin.topic_config(&slave.address, TOPIC).await;
                    topic.is_ok_and(|t| t.is_some())
                })
                .await;
                master.kill();
                // What was in the sockets still comes; then the slave stands still.
                let mut end = None;
                until("the slave stands still", async || {
                    let before = std::mem::replace(&mut end, copied().await);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    end.is_some() && before == end
                })
                .await;
                let acknowledged = load.so_far();
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
    let acknowledged = load.stop().await;
    until("the slave has everything", async || {
        let status = admin.ha_status(&master.address).await;
        status.is_ok_and(|s| s.ha_connection_info.iter().any(|c| c.diff == 0))
    })
    .await;
    let (on_master, on_slave) = (
        read_all(&master.address).await,
        read_all(&slave.address).await,
    );
    check("master", &acknowledged, &on_master);
    check("slave", &acknowledged, &on_slave);
    assert!(on_master == on_slave, "master and slave differ");
    names.shutdown().await;
}

/// How many of the acknowledged are not found; in each queue these are the last ones, with nothing after them.
fn lost_tail(seen: &Acknowledged, found: &Found) -> usize {
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
