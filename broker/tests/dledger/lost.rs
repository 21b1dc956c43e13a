//! Members that may have lost what they acknowledged.

use std::fs;

use store::SlotFile;

use crate::common::until;
use crate::group::Cluster;

/// Where the run of the kernel stands in a member's state.
const BOOT_ID: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_under_async_flush_is_one_also_when_the_member_starts_under_sync_flush() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), 3, "ASYNC_FLUSH", "").await;
    let load = cluster.load();
    cluster.all_sure().await;
    load.acknowledged(100).await;
    let acknowledged = load.stop().await;
    for node in &mut cluster.nodes {
        node.kill();
        // Its machine was started anew since, and the store has not noted anything yet.
        let state = node.store.join(format!("dledger-{}/state", node.name));
        let mut bytes = SlotFile::read(&state).unwrap().unwrap();
        bytes[BOOT_ID] ^= 1;
        SlotFile::new(state).save(&bytes).unwrap();
        let conf = fs::read_to_string(&node.conf).unwrap();
        fs::write(&node.conf, conf.replace("ASYNC_FLUSH", "SYNC_FLUSH")).unwrap();
    }
    // Two of three might lack what the third has, and elect one another.
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    for at in [0, 1] {
        until("a member says that its word does not count", async || {
            let own = cluster.status(at).await;
            own.is_some_and(|s| s.members.iter().any(|m| m.id == s.self_id && !m.sure))
        })
        .await;
    }
    cluster.nodes[2].start();
    cluster.all_sure().await;
    cluster.check(0..3, &acknowledged).await;
    cluster.end().await;
}
