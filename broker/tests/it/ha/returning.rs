//! A synchronous master that comes back without the end of its log takes it back from its slaves before it serves.

use std::path::Path;
use std::sync::Arc;

use broker::role::Role;
use broker::{Broker, BrokerConfig};
use namesrv::NameServer;
use remoting::protocol::response_code::SUCCESS;
use remoting::protocol::{RemotingCommand, request_code};

use super::support::*;
use crate::support::*;

fn with(names: &NameServer, config: BrokerConfig) -> BrokerConfig {
    BrokerConfig {
        namesrv_addr: names.address().to_string(),
        master_catch_up_timeout_ms: 500,
        slave_sync_interval_ms: 50,
        ..config
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
        match path.is_dir() {
            true => copy_folder(&path, &to.join(name)),
            false => {
                std::fs::copy(&path, to.join(name)).unwrap();
            }
        }
    }
}

/// Puts a folder back to what it was, as a power cut does with what was not flushed.
fn lose_power(folder: &Path, earlier: &Path) {
    std::fs::remove_dir_all(folder).unwrap();
    copy_folder(earlier, folder);
    std::fs::write(folder.join("abort"), "1").unwrap();
    let _ = std::fs::remove_file(folder.join("offsets"));
}

async fn pair(names: &NameServer, dir: &Path) -> (Arc<Broker>, Arc<Broker>) {
    let master = start(with(names, master(dir, "SYNC_MASTER"))).await;
    let slave = start(with(names, slave(dir, 1))).await;
    until("the master serves", || master.is_master()).await;
    points_at(&slave, &master);
    until("the slave follows", || {
        has_slave(&master) && slave.ha.link.now().connected
    })
    .await;
    (master, slave)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_power_cut_took_comes_back_from_the_slave() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_server(dir.path()).await;
    let (folder, earlier) = (dir.path().join("master"), dir.path().join("earlier"));
    let (master, slave) = pair(&names, dir.path()).await;
    for n in 0..50 {
        Client::of(&master)
            .sent(&format!("kept {n}"), SUCCESS)
            .await;
    }
    master.shutdown().await;
    copy_folder(&folder, &earlier);
    let config = with(&names, self::master(dir.path(), "SYNC_MASTER"));
    let master = start(config.clone()).await;
    until("the master serves", || master.is_master()).await;
    points_at(&slave, &master);
    until("the slave follows", || {
        !master.ha.replicas.list().is_empty()
    })
    .await;
    for n in 0..50 {
        let body = format!("lost {n} {}", "x".repeat(3_000));
        Client::of(&master).sent(&body, SUCCESS).await;
    }
    let end = master.store.written();
    master.shutdown().await;
    lose_power(&folder, &earlier);

    let master = start(config).await;
    assert!(master.store.written() < end || master.is_master());
    until("the master serves", || master.is_master()).await;
    assert_eq!(master.store.written(), end);
    let client = Client::of(&master);
    assert_eq!(client.bodies(0).await.len(), 100);
    points_at(&slave, &master);
    until("the slave follows", || {
        !master.ha.replicas.list().is_empty()
    })
    .await;
    client.sent("and on it goes", SUCCESS).await;
    same_log(&master, &slave);
    same_queues(&master, &slave);
    assert_eq!(slave.ha.link.now().cut, 0);
    slave.shutdown().await;
    master.shutdown().await;
    names.shutdown().await;
}

fn has_tables(broker: &Broker) -> bool {
    broker.topics.get("T").is_some()
        && broker
            .groups
            .find("G")
            .is_some_and(|g| g.retry_max_times == 3)
        && broker.offsets.query("G", "T", 0) == Some(7)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_lost_is_filled_again_from_the_slave() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_server(dir.path()).await;
    let (master, slave) = pair(&names, dir.path()).await;
    for n in 0..60 {
        let body = format!("{n} {}", "x".repeat(3_000));
        Client::of(&master).sent(&body, SUCCESS).await;
    }
    let end = master.store.written();
    let group = RemotingCommand::request(request_code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP)
        .with_body(r#"{"groupName":"G","retryMaxTimes":3}"#.as_bytes().to_vec());
    assert_eq!(Client::of(&master).call(group).await.code, SUCCESS);
    master.offsets.commit("G", "T", 0, 7);
    until("the slave has the tables", || has_tables(&slave)).await;
    master.shutdown().await;
    std::fs::remove_dir_all(dir.path().join("master")).unwrap();
    let master = start(with(&names, self::master(dir.path(), "SYNC_MASTER"))).await;
    until("the master serves", || master.is_master()).await;
    assert_eq!(master.store.written(), end);
    assert!(has_tables(&master), "the tables did not come back");
    let table = master.topics.table();
    points_at(&slave, &master);
    until("the slave copied again", || {
        slave.topics.table().version() == table.version()
    })
    .await;
    let copied = slave.slave.copied_ms();
    until("another round", || slave.slave.copied_ms() > copied + 100).await;
    assert!(has_tables(&slave) && has_tables(&master));
    same_log(&master, &slave);
    slave.shutdown().await;
    master.shutdown().await;
    names.shutdown().await;
}

/// It waited as long as it should, waits on, and says what would end that.
fn gave_up(master: &Broker) -> bool {
    let reason = master.ready().err().unwrap_or_default();
    reason.contains("masterCatchUpGoOn")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_slave_to_ask_it_stays_unregistered_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_server(dir.path()).await;
    let (folder, earlier) = (dir.path().join("master"), dir.path().join("earlier"));
    let (master, slave) = pair(&names, dir.path()).await;
    Client::of(&master).sent("x", SUCCESS).await;
    slave.shutdown().await;
    master.shutdown().await;
    copy_folder(&folder, &earlier);
    lose_power(&folder, &earlier);
    let config = with(&names, self::master(dir.path(), "SYNC_MASTER"));
    let master = start(config.clone()).await;
    until("it says why it waits", || {
        let reason = master.ready().unwrap_err();
        reason.contains("waiting for a slave")
    })
    .await;
    until("its patience ends", || gave_up(&master)).await;
    assert_eq!(master.role.now().role, Role::Undecided);
    // A stop in between makes nothing whole that was not.
    master.shutdown().await;
    let master = start(config.clone()).await;
    until("its patience ends again", || gave_up(&master)).await;
    assert_eq!(
        master.role.now().role,
        Role::Undecided,
        "an orderly restart forgot what may be missing"
    );
    // The slave comes back: it has nothing that is missing here.
    let slave = start(with(&names, self::slave(dir.path(), 1))).await;
    until("the master serves", || master.is_master()).await;
    slave.shutdown().await;
    master.shutdown().await;

    lose_power(&folder, &earlier);
    let config = BrokerConfig {
        master_catch_up_go_on: true,
        ..config
    };
    let master = start(config).await;
    until("told to go on it does", || master.is_master()).await;
    master.shutdown().await;
    names.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_has_nothing_to_ask_for() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_server(dir.path()).await;
    let slave = start(with(&names, slave(dir.path(), 1))).await;
    let config = BrokerConfig {
        master_catch_up_timeout_ms: 600_000,
        ..with(&names, master(dir.path(), "SYNC_MASTER"))
    };
    let master = start(config).await;
    until("the master serves", || master.ready().is_ok()).await;
    points_at(&slave, &master);
    until("the slave follows", || {
        !master.ha.replicas.list().is_empty()
    })
    .await;
    Client::of(&master).sent("x", SUCCESS).await;
    slave.shutdown().await;
    master.shutdown().await;
    names.shutdown().await;
}

/// The slaves follow before clients can find the master: no send is answered SLAVE_NOT_AVAILABLE for a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_was_restarted_is_not_alone_when_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_server(dir.path()).await;
    let (master, slave) = pair(&names, dir.path()).await;
    Client::of(&master).sent("before", SUCCESS).await;
    master.shutdown().await;
    let master = start(with(&names, self::master(dir.path(), "SYNC_MASTER"))).await;
    until("the master serves", || master.is_master()).await;
    let client = Client::of(&master);
    client.sent("after", SUCCESS).await;
    assert_eq!(client.bodies(0).await, ["before", "after"]);
    slave.shutdown().await;
    master.shutdown().await;
    names.shutdown().await;
}
