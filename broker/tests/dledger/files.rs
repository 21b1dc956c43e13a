//! The property files that come with the original's distribution.

use std::fs;
use std::path::Path;

use crate::group::Cluster;

/// What has to differ where three machines are one; of the keys that come twice the last one counts.
const OF_THIS_MACHINE: [&str; 9] = [
    "namesrvAddr",
    "brokerIP1",
    "bindAddress",
    "listenPort",
    "httpPort",
    "storePathRootDir",
    "mappedFileSizeCommitLog",
    "dLegerPeers",
    // Not of the machine: so that each member can be asked for what it has.
    "slaveReadEnable",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_the_distribution_make_a_group_that_outlives_its_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::prepare(dir.path(), 3, "SYNC_FLUSH", "").await;
    for node in &mut cluster.nodes {
        let file = format!("tests/fixtures/conf/dledger-{}.properties", node.name);
        let file = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let own = fs::read_to_string(&node.conf).unwrap();
        let of_this_machine = own.lines().filter(|line| {
            let key = line.split_once('=').map(|(key, _)| key);
            key.is_some_and(|key| OF_THIS_MACHINE.contains(&key))
        });
        let lines: Vec<&str> = file.lines().chain(of_this_machine).collect();
        let log = node.store.join("elsewhere");
        let log = format!("\nstorePathDLedgerCommitLog={}\n", log.display());
        fs::write(&node.conf, lines.join("\n") + &log).unwrap();
        node.start();
    }
    let leader = cluster.all_level().await;
    let status = cluster.status(leader).await.unwrap();
    assert_eq!(status.group, "broker-m1");
    let table = cluster.admin.cluster_info().await.unwrap();
    let group = &table.broker_addr_table["broker-m1"];
    assert_eq!(group.cluster, "rocketmq-dledger-cluster");
    assert_eq!(group.broker_addrs[&0], cluster.nodes[leader].address);
    let load = cluster.load();
    load.acknowledged(50).await;
    cluster.nodes[leader].kill();
    load.acknowledged(50).await;
    cluster.nodes[leader].start();
    let acknowledged = load.stop().await;
    cluster.all_level().await;
    cluster.check(0..3, &acknowledged).await;
    for node in &cluster.nodes {
        assert!(node.store.join("elsewhere/state").exists(), "{}", node.name);
        let beside = node.store.join(format!("dledger-{}", node.name));
        assert!(!beside.exists(), "{}", node.name);
    }
    cluster.end().await;
}
