//! Logs of one group that differ: what is common stays, what only the slave has goes.

use broker::BrokerConfig;
use broker::config::BrokerRole;
use remoting::protocol::response_code::SUCCESS;

use super::support::*;
use crate::support::*;

/// Runs the folder of `config` as a master for a while, all by itself.
async fn alone(config: &BrokerConfig, bodies: impl Iterator<Item = String>) {
    let config = BrokerConfig {
        broker_role: BrokerRole::AsyncMaster,
        broker_id: 0,
        ha_master_address: String::new(),
        ..config.clone()
    };
    let broker = start(config).await;
    let client = Client::of(&broker);
    for body in bodies {
        client.sent(&body, SUCCESS).await;
    }
    broker.shutdown().await;
}

fn bodies(name: &'static str, count: usize, length: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{name} {n} {}", "x".repeat(length)))
}

/// A master and a slave with a common begin and different ends; afterwards the slave has exactly what the master has.
async fn diverge(common: usize, by_master: usize, by_slave: usize, length: usize) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (master_config, slave_config) = (master(dir.path(), "ASYNC_MASTER"), slave(dir.path(), 1));
    {
        let master = start(master_config.clone()).await;
        let slave = start(slave_config.clone()).await;
        points_at(&slave, &master);
        let client = Client::of(&master);
        for body in bodies("common", common, length) {
            client.sent(&body, SUCCESS).await;
        }
        until("the slave has everything", || {
            level(&master, &slave) && slave.ha.link.now().connected
        })
        .await;
        slave.shutdown().await;
        master.shutdown().await;
    }
    alone(&slave_config, bodies("only on the slave", by_slave, length)).await;
    alone(
        &master_config,
        bodies("only on the master", by_master, length),
    )
    .await;

    let master = start(master_config).await;
    let slave = start(slave_config).await;
    points_at(&slave, &master);
    until("the slave follows", || slave.ha.link.now().connected).await;
    Client::of(&master).sent("and on it goes", SUCCESS).await;
    until("the slave has everything", || level(&master, &slave)).await;
    same_log(&master, &slave);
    same_queues(&master, &slave);
    let cut = slave.ha.link.now().cut;
    slave.shutdown().await;
    master.shutdown().await;
    cut
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_that_is_ahead_is_cut_back() {
    assert!(diverge(50, 0, 20, 100).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_that_differ_within_a_file() {
    assert!(diverge(50, 20, 20, 100).await > 0);
    assert!(diverge(1, 1, 1, 10).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_that_differ_by_several_files() {
    assert!(diverge(40, 60, 90, 4_000).await > 2 * SEGMENT as u64);
    assert!(diverge(90, 90, 20, 4_000).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nothing_in_common_a_slave_keeps_what_it_has_and_says_so() {
    // Whichever log is longer: a master that lost its volume may have taken more since.
    for (by_master, by_slave) in [(30, 40), (40, 30), (1, 60)] {
        let dir = tempfile::tempdir().unwrap();
        let (master_config, slave_config) =
            (master(dir.path(), "ASYNC_MASTER"), slave(dir.path(), 1));
        alone(&slave_config, bodies("dear", by_slave, 4_000)).await;
        alone(&master_config, bodies("new", by_master, 4_000)).await;
        let (master, slave) = (start(master_config).await, start(slave_config).await);
        let (begin, end) = (slave.store.min_phy_offset(), slave.store.written());
        points_at(&slave, &master);
        let refuses = || {
            let reason = slave.ha.ready(&slave).err().unwrap_or_default();
            reason.contains("must be emptied by hand")
        };
        until("it says why", refuses).await;
        Client::of(&master).sent("more", SUCCESS).await;
        let tries = slave.ha.link.now().breaks;
        until("it tries again", || slave.ha.link.now().breaks > tries + 1).await;
        assert!(refuses());
        assert_eq!(slave.store.min_phy_offset(), begin);
        assert_eq!(slave.store.written(), end);
        assert_eq!(slave.slave.copied_ms(), 0, "it copied the tables");
        slave.shutdown().await;
        master.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_histories_are_left_as_they_are() {
    assert_eq!(diverge(60, 30, 0, 4_000).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_in_common_is_copied_anew_when_the_masters_log_goes_on_after_the_slaves() {
    let dir = tempfile::tempdir().unwrap();
    let slave_config = slave(dir.path(), 1);
    alone(&slave_config, bodies("long ago", 10, 4_000)).await;
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    let oldest = 4 * SEGMENT as u64;
    master.store.start_at(oldest).unwrap();
    Client::of(&master).sent("young", SUCCESS).await;
    let slave = start(slave_config).await;
    begins_at(oldest, &master, &slave).await;
}

/// Whoever starts a master on an empty volume by mistake does not lose the copy too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_is_not_emptied_for_an_empty_master() {
    let dir = tempfile::tempdir().unwrap();
    let slave_config = slave(dir.path(), 1);
    alone(&slave_config, bodies("dear", 10, 100)).await;
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    let slave = start(slave_config).await;
    let end = slave.store.written();
    points_at(&slave, &master);
    until("it says why", || {
        let reason = slave.ha.ready(&slave).unwrap_err();
        reason.contains("until somebody empties its folder")
    })
    .await;
    assert_eq!(slave.store.written(), end);
    slave.shutdown().await;
    master.shutdown().await;
}
