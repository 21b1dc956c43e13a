//! What a synchronous master's answers wait for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::{Broker, BrokerConfig};
use remoting::protocol::response_code::{FLUSH_SLAVE_TIMEOUT, SLAVE_NOT_AVAILABLE, SUCCESS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::support::*;
use crate::support::*;

/// A slave that takes everything and reports it after a while, or not at all.
struct Puppet {
    reading: JoinHandle<()>,
    reports: watch::Sender<bool>,
}

impl Puppet {
    async fn follow(master: &Broker, delay: Duration) -> Self {
        let (reports, allowed) = watch::channel(true);
        let before = master.ha.replicas.list().len();
        let stream = TcpStream::connect(master.ha_address()).await.unwrap();
        let end = master.store.written();
        let (mut reader, mut writer) = stream.into_split();
        writer.write_all(&end.to_be_bytes()).await.unwrap();
        let reading = tokio::spawn(async move {
            let (seen, mut latest) = watch::channel(end);
            let telling = async {
                loop {
                    let end = *latest.borrow_and_update();
                    tokio::time::sleep(delay).await;
                    if *allowed.borrow() && writer.write_all(&end.to_be_bytes()).await.is_err() {
                        return;
                    }
                    if latest.changed().await.is_err() {
                        return;
                    }
                }
            };
            let taking = async {
                let mut chunks = broker::ha::protocol::ChunkReader::default();
                let mut input = vec![0; 64 << 10];
                while let Ok(n @ 1..) = reader.read(&mut input).await {
                    let mut bytes = &input[..n];
                    while let Some(piece) = chunks.next(&mut bytes).unwrap() {
                        if let broker::ha::protocol::Piece::Data {
                            position, bytes, ..
                        } = piece
                        {
                            seen.send_replace(position + bytes.len() as u64);
                        }
                    }
                }
            };
            tokio::select! {
                () = telling => {}
                () = taking => {}
            }
        });
        let puppet = Self { reading, reports };
        until("the slave is known", || {
            master.ha.replicas.list().len() == before + 1
        })
        .await;
        puppet
    }

    fn falls_silent(&self) {
        self.reports.send_replace(false);
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

async fn sync_master(dir: &std::path::Path, change: impl FnOnce(&mut BrokerConfig)) -> Arc<Broker> {
    let mut config = master(dir, "SYNC_MASTER");
    change(&mut config);
    start(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_slave_a_send_is_stored_and_answered_so_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let master = sync_master(dir.path(), |_| {}).await;
    let client = Client::of(&master);
    let begun = Instant::now();
    client.sent("alone", SLAVE_NOT_AVAILABLE).await;
    let no_wait = client
        .call(send("T", "WAIT\u{1}false\u{2}", b"no copy asked for"))
        .await;
    assert_eq!(no_wait.code, SUCCESS);
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(client.bodies(0).await, ["alone", "no copy asked for"]);
    master.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_send_is_on_a_real_slave() {
    for flush in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let disk = match flush {
            false => broker::config::FlushDiskType::AsyncFlush,
            true => broker::config::FlushDiskType::SyncFlush,
        };
        let master = sync_master(dir.path(), |c| c.flush_disk_type = disk).await;
        let config = BrokerConfig {
            ha_slave_ack_after_flush: flush,
            ..slave(dir.path(), 1)
        };
        let slave = start(config).await;
        points_at(&slave, &master);
        until("the slave follows", || {
            !master.ha.replicas.list().is_empty()
        })
        .await;
        let client = Client::of(&master);
        for n in 0..100 {
            client.sent(&format!("{n}"), SUCCESS).await;
            let end = master.store.confirm_offset();
            assert!(slave.store.written() >= end);
            if flush {
                assert!(slave.store.flushed() >= end && master.store.flushed() >= end);
            }
        }
        slave.shutdown().await;
        until("the slave is gone", || master.ha.replicas.list().is_empty()).await;
        client.sent("alone again", SLAVE_NOT_AVAILABLE).await;
        master.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_slave_costs_slave_timeout_and_one_too_far_behind_none() {
    let dir = tempfile::tempdir().unwrap();
    let master = sync_master(dir.path(), |c| {
        c.slave_timeout = 300;
        c.ha_max_gap_not_in_sync = 10_000;
    })
    .await;
    let slave = Puppet::follow(&master, Duration::ZERO).await;
    until("the slave counts", || has_slave(&master)).await;
    let client = Client::of(&master);
    client.sent("replicated", SUCCESS).await;
    slave.falls_silent();
    let begun = Instant::now();
    client.sent("waited for", FLUSH_SLAVE_TIMEOUT).await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // The gap grows past the bound: nobody waits for such a slave.
    client.sent(&"x".repeat(10_000), SLAVE_NOT_AVAILABLE).await;
    drop(slave);
    until("the slave is gone", || master.ha.replicas.list().is_empty()).await;
    assert_eq!(client.bodies(0).await.len(), 3, "all are stored");
    master.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_elsewhere_when_three_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let master = sync_master(dir.path(), |c| c.in_sync_replicas = 3).await;
    let client = Client::of(&master);
    let _one = Puppet::follow(&master, Duration::ZERO).await;
    client.sent("one is too few", SLAVE_NOT_AVAILABLE).await;
    let _two = Puppet::follow(&master, Duration::from_millis(20)).await;
    until("both count", || has_slave(&master)).await;
    client.sent("two", SUCCESS).await;
    master.update_config(|c| {
        c.in_sync_replicas = 1;
        c.all_ack_in_sync_state_set = true;
    });
    let begun = Instant::now();
    client.sent("all", SUCCESS).await;
    assert!(begun.elapsed() >= Duration::from_millis(20));
    master.shutdown().await;
}

/// Senders whose messages a slow slave acknowledges: none holds a thread, so all wait at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_wait_for_a_slow_slave_at_once() {
    const CLIENTS: usize = 512;
    let dir = tempfile::tempdir().unwrap();
    let master = sync_master(dir.path(), |_| {}).await;
    let client = Arc::new(Client::of(&master));
    client.sent("the topic", SLAVE_NOT_AVAILABLE).await;
    let _slave = Puppet::follow(&master, Duration::from_millis(50)).await;
    until("the slave counts", || has_slave(&master)).await;
    let round = async || {
        let begun = Instant::now();
        let mut sends = tokio::task::JoinSet::new();
        for n in 0..CLIENTS {
            let client = Arc::clone(&client);
            sends.spawn(async move { client.sent(&format!("{n}"), SUCCESS).await });
        }
        let most = async {
            let mut most = 0;
            loop {
                most = most.max(master.acks.waiting());
                if most == CLIENTS {
                    return most;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let most = tokio::time::timeout(PATIENCE, most).await;
        while let Some(sent) = sends.join_next().await {
            sent.unwrap();
        }
        (most.ok(), begun.elapsed())
    };
    let (most, took) = round().await;
    assert_eq!(most, Some(CLIENTS), "took {took:?}");
    assert_eq!(master.acks.waiting(), 0);
    master.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_answers_everybody_who_waits_for_a_slave() {
    let dir = tempfile::tempdir().unwrap();
    let master = sync_master(dir.path(), |c| {
        c.slave_timeout = 60_000;
        c.shutdown_drain_ms = 100;
    })
    .await;
    let slave = Puppet::follow(&master, Duration::ZERO).await;
    until("the slave counts", || has_slave(&master)).await;
    let client = Arc::new(Client::of(&master));
    client.sent("first", SUCCESS).await;
    slave.falls_silent();
    let waiting = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.call(send("T", "", b"waits")).await.code })
    };
    until("it waits", || master.acks.waiting() == 1).await;
    master.shutdown().await;
    assert_eq!(waiting.await.unwrap(), FLUSH_SLAVE_TIMEOUT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ha_status_tells_each_slave_and_a_slave_its_master() {
    let dir = tempfile::tempdir().unwrap();
    let master = sync_master(dir.path(), |_| {}).await;
    let slave = start(slave(dir.path(), 1)).await;
    points_at(&slave, &master);
    until("the slave follows", || {
        !master.ha.replicas.list().is_empty()
    })
    .await;
    Client::of(&master).sent("x", SUCCESS).await;
    let admin = remoting::admin::Admin::new(remoting::RemotingClient::default(), "");
    let status = admin
        .ha_status(&master.listen_address().to_string())
        .await
        .unwrap();
    let end = i64::try_from(master.store.written()).unwrap();
    assert!(status.master);
    assert_eq!(status.in_sync_slave_nums, 1);
    assert_eq!(status.master_commit_log_max_offset, end);
    let connection = &status.ha_connection_info[0];
    assert_eq!((connection.diff, connection.in_sync), (0, true));
    assert_eq!(connection.slave_ack_offset, end);
    assert_eq!(connection.transfer_from_where, end);
    until("the link told what came", || {
        slave.ha.link.now().received > 0
    })
    .await;
    let status = admin
        .ha_status(&slave.listen_address().to_string())
        .await
        .unwrap();
    assert!(!status.master);
    let client = status.ha_client_runtime_info;
    assert_eq!(client.max_offset, end);
    assert_eq!(client.master_addr.as_deref(), Some(master.ha_address()));
    assert!(client.last_read_timestamp > 0 && client.last_write_timestamp > 0);
    slave.shutdown().await;
    master.shutdown().await;
}
