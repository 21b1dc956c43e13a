//! Leaders that are stopped in their tracks, and leaders that are told to go.

use remoting::client::RemotingClient;
use remoting::protocol::body::DLedgerState;

use crate::common::load::{CALL_LIMIT, message, place, read_all};
use crate::common::{LIMIT, until};
use crate::group::Cluster;

/// Sends that lie in the sockets of the stopped leader.
const WAITING: usize = 4;

/// Waits until one of these, and not by way of anybody else, says that it leads.
async fn led_by_one_of(cluster: &Cluster, members: &[usize]) -> usize {
    let mut leader = None;
    until("one of the others leads", async || {
        for &at in members {
            let status = cluster.status(at).await;
            if status.is_some_and(|s| s.state == DLedgerState::Leader) {
                leader = Some(at);
            }
        }
        leader.is_some()
    })
    .await;
    leader.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_in_the_sockets_of_a_stopped_leader_is_not_acknowledged_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), 3, "SYNC_FLUSH", "").await;
    cluster.all_sure().await;
    let load = cluster.load();
    load.acknowledged(100).await;
    let old = cluster.leader(|_| true).await;
    let others: Vec<usize> = (0..3).filter(|at| *at != old).collect();
    let address = cluster.nodes[old].address.clone();
    let clients: Vec<RemotingClient> = (0..WAITING).map(|_| RemotingClient::default()).collect();
    for client in &clients {
        let answer = client.invoke(&address, message("in time"), CALL_LIMIT);
        assert!(place(&answer.await.unwrap()).is_some());
    }
    cluster.nodes[old].signal("-STOP");
    until("it is stopped", async || cluster.nodes[old].is_stopped()).await;
    let late: Vec<_> = clients
        .into_iter()
        .map(|client| {
            let address = address.clone();
            tokio::spawn(async move { client.invoke(&address, message("late"), LIMIT).await })
        })
        .collect();
    led_by_one_of(&cluster, &others).await;
    load.acknowledged(100).await;
    cluster.nodes[old].signal("-CONT");
    for answer in late {
        let acknowledged = answer.await.unwrap().ok().as_ref().and_then(place);
        assert_eq!(acknowledged, None);
    }
    until("the one that was stopped follows", async || {
        let status = cluster.status(old).await;
        status.is_some_and(|s| s.state == DLedgerState::Follower)
    })
    .await;
    let leader = cluster
        .leader(|s| s.members.iter().all(|m| m.recently_active && m.sure))
        .await;
    cluster.known_as_master(leader).await;
    load.acknowledged(100).await;
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    for node in &cluster.nodes {
        let found = read_all(&node.address).await;
        assert!(!found.values().any(|body| body == "late"));
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_leader_that_goes_is_not_made_leader_again_while_it_drains() {
    let dir = tempfile::tempdir().unwrap();
    // Longer than a new leader waits before it offers the leadership to the preferred member.
    let more = "preferredLeaderId=n0\nshutdownDrainMs=3000\n";
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", more).await;
    let load = cluster.load();
    cluster
        .leader(|s| s.self_id == "n0" && s.members.iter().all(|m| m.recently_active && m.sure))
        .await;
    load.acknowledged(100).await;
    let connected = RemotingClient::default();
    let answer = connected.invoke(&cluster.nodes[0].address, message("kept open"), CALL_LIMIT);
    assert!(place(&answer.await.unwrap()).is_some());
    cluster.nodes[0].signal("-TERM");
    led_by_one_of(&cluster, &[1, 2]).await;
    until("the one that was told to go has gone", async || {
        for at in 1..3 {
            let status = cluster.status(at).await;
            assert!(status.is_none_or(|s| s.leader_id != "n0"));
        }
        cluster.nodes[0].has_ended()
    })
    .await;
    load.acknowledged(100).await;
    cluster.nodes[0].start();
    cluster.leader(|s| s.self_id == "n0").await;
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    cluster.end().await;
}
