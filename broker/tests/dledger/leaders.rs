//! Leaders that die, stop, hang and come back.

use std::fs;
use std::time::Instant;

use remoting::protocol::body::{DLedgerState, DLedgerStatus};

use crate::common::LIMIT;
use crate::group::{Cluster, SENDERS};

async fn leaders_die(flush: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, flush, "").await;
    cluster.all_sure().await;
    let load = cluster.load();
    for _ in 0..3 {
        load.acknowledged(200).await;
        let leader = cluster.leader(|_| true).await;
        cluster.nodes[leader].kill();
        let died = Instant::now();
        load.acknowledged(SENDERS + 1).await;
        println!(
            "{flush}: the first send was taken {:?} after the leader died",
            died.elapsed()
        );
        load.acknowledged(100).await;
        let acknowledged = load.so_far();
        let new = cluster.leader(|_| true).await;
        cluster.check([new], &acknowledged).await;
        cluster.nodes[leader].start();
        cluster.all_sure().await;
    }
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
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
    let load = cluster.load();
    load.acknowledged(200).await;
    let leader = cluster.leader(|_| true).await;
    load.longest_gap();
    cluster.nodes[leader].signal("-TERM");
    cluster.nodes[leader].wait();
    load.acknowledged(200).await;
    println!(
        "longest gap of a planned hand-over: {:?}",
        load.longest_gap()
    );
    cluster.nodes[leader].start();
    load.acknowledged(100).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    let acknowledged = load.stop().await;
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_in_its_tracks_takes_no_late_writes_and_an_empty_volume_fills_again()
 {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    cluster.leader(|_| true).await;
    let load = cluster.load();
    load.acknowledged(200).await;
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
    load.acknowledged(100).await;
    cluster.nodes[old].signal("-CONT");
    cluster
        .leader(|s| s.term > before && s.members.iter().all(|m| m.recently_active))
        .await;
    // A follower loses its volume.
    let leader = cluster.leader(|_| true).await;
    let lost = (leader + 1) % 3;
    cluster.nodes[lost].kill();
    fs::remove_dir_all(&cluster.nodes[lost].store).unwrap();
    load.acknowledged(50).await;
    cluster.nodes[lost].start();
    load.acknowledged(50).await;
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_leader_takes_the_leadership_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "preferredLeaderId=n1\n").await;
    let load = cluster.load();
    cluster.leader(|s| s.self_id == "n1").await;
    load.acknowledged(50).await;
    cluster.nodes[1].kill();
    cluster.leader(|s| s.self_id != "n1").await;
    load.acknowledged(50).await;
    cluster.nodes[1].start();
    cluster.leader(|s| s.self_id == "n1").await;
    load.acknowledged(50).await;
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    cluster.end().await;
}
