//! A slave gets all of its master's log, wherever it begins.

use broker::BrokerConfig;
use remoting::protocol::response_code::SUCCESS;

use super::support::*;
use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_copies_the_log_from_its_begin_and_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    let client = Client::of(&master);
    for n in 0..200 {
        client.sent(&format!("before {n}"), SUCCESS).await;
    }
    let slave = start(slave(dir.path(), 1)).await;
    points_at(&slave, &master);
    until("the slave has everything", || level(&master, &slave)).await;
    for n in 0..200 {
        client.sent(&format!("after {n}"), SUCCESS).await;
    }
    until("the slave has the rest", || level(&master, &slave)).await;
    same_log(&master, &slave);
    same_queues(&master, &slave);
    assert_eq!(client.bodies(0).await.len(), 400);
    until("the slave is ready", || slave.ha.ready(&slave).is_ok()).await;
    slave.shutdown().await;
    master.shutdown().await;
}

/// More files than the memory of the master's tail holds: read from disk, at the rate that is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_slave_gets_all_files_from_disk_and_one_that_was_away_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        max_message_size: 65_536,
        ha_catch_up_bytes_per_second: 20 << 20,
        ..master(dir.path(), "ASYNC_MASTER")
    };
    let master = start(config).await;
    let client = Client::of(&master);
    let body = "x".repeat(8_000);
    let fill = async |to: u64| {
        while master.store.written() < to {
            client.sent(&body, SUCCESS).await;
        }
    };
    fill(4 << 20).await;
    assert!(
        master.store.oldest_in_memory() > 0,
        "the begin is on disk only"
    );
    let config = slave(dir.path(), 1);
    let slave = start(config.clone()).await;
    points_at(&slave, &master);
    until("the slave has everything", || level(&master, &slave)).await;
    assert_eq!(slave.store.min_phy_offset(), 0);
    same_log(&master, &slave);
    slave.shutdown().await;

    fill(8 << 20).await;
    let slave = start(config).await;
    points_at(&slave, &master);
    until("the slave has what it missed", || level(&master, &slave)).await;
    same_log(&master, &slave);
    same_queues(&master, &slave);
    assert_eq!(slave.ha.link.now().cut, 0);
    slave.shutdown().await;
    master.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_slave_begins_with_the_oldest_file_that_its_master_still_has() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    let oldest = 3 * SEGMENT as u64;
    master.store.start_at(oldest).unwrap();
    let client = Client::of(&master);
    while master.store.written() < oldest + 2 * SEGMENT as u64 {
        client.sent(&"x".repeat(4_000), SUCCESS).await;
    }
    let slave = start(slave(dir.path(), 1)).await;
    begins_at(oldest, &master, &slave).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_with_files_of_another_size_says_so_and_follows_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    Client::of(&master).sent("x", SUCCESS).await;
    let config = BrokerConfig {
        mapped_file_size_commit_log: 2 * SEGMENT,
        ..slave(dir.path(), 1)
    };
    let slave = start(config).await;
    points_at(&slave, &master);
    until("it says why", || {
        let reason = slave.ha.ready(&slave).unwrap_err();
        reason.contains("mappedFileSizeCommitLog")
    })
    .await;
    assert_eq!(slave.store.appended(), 0);
    slave.shutdown().await;
    master.shutdown().await;
}

/// Two slaves of one master, and a third that copies while traffic goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slaves_come_while_traffic_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    let mut slaves = Vec::new();
    let client = Client::of(&master);
    for n in 0..600 {
        client
            .sent(&format!("{n} {}", "x".repeat(n)), SUCCESS)
            .await;
        if n % 200 == 50 {
            let id = n / 200 + 1;
            let slave = start(slave(dir.path(), id as i64)).await;
            points_at(&slave, &master);
            slaves.push(slave);
        }
    }
    for slave in &slaves {
        until("the slave has everything", || level(&master, slave)).await;
        same_log(&master, slave);
        same_queues(&master, slave);
    }
    assert_eq!(master.ha.replicas.list().len(), 3);
    for slave in slaves {
        slave.shutdown().await;
    }
    master.shutdown().await;
}

/// Name servers restart too: that is no reason to leave a master whose stream flows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_while_nobody_knows_where_the_master_is() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    let slave = start(slave(dir.path(), 1)).await;
    points_at(&slave, &master);
    until("the slave follows", || slave.ha.link.now().connected).await;
    slave.role.update(|role| role.master.address = None);
    Client::of(&master).sent("x", SUCCESS).await;
    until("the slave has it", || {
        level(&master, &slave) && master.store.written() > 0
    })
    .await;
    let link = slave.ha.link.now();
    assert_eq!((link.connected, link.connects), (true, 1));
    // One that is elsewhere is another matter.
    slave
        .role
        .update(|role| role.master.ha_address = Some("127.0.0.1:1".to_owned()));
    until("the stream is left", || !slave.ha.link.now().connected).await;
    slave.shutdown().await;
    master.shutdown().await;
}
