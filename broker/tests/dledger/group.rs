//! A name server and the members of one group.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::{Broker, BrokerConfig};
use namesrv::NameServer;
use remoting::admin::Admin;
use remoting::client::RemotingClient;
use remoting::protocol::body::{DLedgerState, DLedgerStatus};
use store::{Disk, SystemClock};

use crate::common::load::{Acknowledged, Load, QUEUES, TOPIC, check, read_all};
use crate::common::process::{BrokerProcess, free_ports, name_server};
use crate::common::{LIMIT, until};

pub(crate) const SENDERS: u64 = 4;

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) conf: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) address: String,
    /// Where this one finds the others.
    pub(crate) hosts: Option<PathBuf>,
    process: Option<BrokerProcess>,
    /// In this process instead, where its disk can be made to fail.
    pub(crate) here: Option<Arc<Broker>>,
}

impl Node {
    pub(crate) fn start(&mut self) {
        self.process = Some(BrokerProcess::start(&self.conf, self.hosts.as_deref()));
    }

    pub(crate) async fn start_here(&mut self, disk: Arc<dyn Disk>) {
        let mut config = BrokerConfig::default();
        let text = fs::read(&self.conf).unwrap();
        config.apply_file(&self.conf, &text).unwrap();
        let settings = config.validate().unwrap();
        let broker = Broker::start_on_disk(settings, Arc::new(SystemClock), disk).await;
        self.here = Some(broker.unwrap());
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some() || self.here.is_some()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().unwrap().0.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Whether SIGSTOP reached every thread: until then they may take what comes.
    pub(crate) fn is_stopped(&self) -> bool {
        let pid = self.process.as_ref().unwrap().0.id();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        threads.map(Result::unwrap).all(|thread| {
            // `id (name) state …`.
            let stat = fs::read_to_string(thread.path().join("stat"));
            stat.is_ok_and(|stat| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, s)| s.starts_with('T'))
            })
        })
    }

    /// Whether the process ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        let process = self.process.as_mut();
        process.is_none_or(|p| p.0.try_wait().unwrap().is_some())
    }

    /// Waits for an end that comes by itself.
    pub(crate) fn wait(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.0.wait();
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}

pub(crate) struct Cluster {
    names: NameServer,
    pub(crate) admin: Admin,
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    pub(crate) async fn start(dir: &Path, members: usize, flush: &str, more: &str) -> Self {
        let mut cluster = Self::prepare(dir, members, flush, more).await;
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster
    }

    /// Members that do not run yet.
    pub(crate) async fn prepare(dir: &Path, members: usize, flush: &str, more: &str) -> Self {
        let names = name_server(dir).await;
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
                Node { name, conf, store, address, hosts: None, process: None, here: None }
            })
            .collect();
        let admin = Admin::new(RemotingClient::default(), names.address().to_string());
        Self {
            names,
            admin,
            nodes,
        }
    }

    pub(crate) async fn status(&self, at: usize) -> Option<DLedgerStatus> {
        if !self.nodes[at].runs() {
            return None;
        }
        self.admin
            .dledger_status(&self.nodes[at].address)
            .await
            .ok()
    }

    /// Waits for a leader that says so itself, and for what `also` asks of it.
    pub(crate) async fn leader(&self, also: impl Fn(&DLedgerStatus) -> bool) -> usize {
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

    pub(crate) async fn all_level(&self) -> usize {
        self.leader(|s| {
            s.members.len() == self.nodes.iter().filter(|n| n.runs()).count()
                && s.members.iter().all(|m| m.lag_bytes == 0 && m.sure)
        })
        .await
    }

    /// Waits until everybody's word counts, as everybody says of itself: what the leader heard may be older than a restart.
    pub(crate) async fn all_sure(&self) {
        for at in 0..self.nodes.len() {
            until("everybody's word counts", async || {
                self.status(at).await.is_some_and(|s| {
                    !s.leader_id.is_empty() && s.members.iter().any(|m| m.id == s.self_id && m.sure)
                })
            })
            .await;
        }
        self.leader(|s| s.members.iter().all(|m| m.recently_active && m.sure))
            .await;
    }

    /// Waits until the name server knows this member as the master.
    pub(crate) async fn known_as_master(&self, at: usize) {
        let address = &self.nodes[at].address;
        until("the name server knows the leader", async || {
            let info = self.admin.cluster_info().await.unwrap();
            let group = info.broker_addr_table.get("group");
            group.and_then(|g| g.broker_addrs.get(&0)) == Some(address)
        })
        .await;
    }

    /// Senders to whoever takes it.
    pub(crate) fn load(&self) -> Load {
        let addresses: Vec<String> = self.nodes.iter().map(|n| n.address.clone()).collect();
        Load::start(&addresses, SENDERS)
    }

    /// A follower learns with the next heartbeat what is committed.
    pub(crate) async fn shows_all(&self, at: usize) {
        let address = &self.nodes[at].address;
        let leader = self.leader(|_| true).await;
        let end = self.status(leader).await.unwrap().last_offset;
        until("a member shows all that is committed", async || {
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

    /// Everything acknowledged lies where that was said, on each of these members.
    pub(crate) async fn check(
        &self,
        members: impl IntoIterator<Item = usize>,
        acknowledged: &Acknowledged,
    ) {
        for at in members {
            self.shows_all(at).await;
            let node = &self.nodes[at];
            check(&node.name, acknowledged, &read_all(&node.address).await);
        }
    }

    pub(crate) async fn end(mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        self.names.shutdown().await;
    }
}
