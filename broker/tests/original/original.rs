//! Master and slave of different kinds.

use crate::rig::*;

/// What is in the master before a slave comes; some two files of the log.
const BEFORE: i32 = 1_000;
const AFTER: i32 = 200;

/// Our slave begins with the oldest file of the original's master and keeps up with it.
pub(crate) async fn ours_follows(scene: Scene, version: &'static str) -> String {
    let names = scene.name_server().await;
    let (master, slave) = (scene.java_address(), scene.our_address(30911));
    let role = "brokerId=0\nbrokerRole=ASYNC_MASTER\n";
    let ha = master.rsplit_once(':').unwrap().1.parse::<u16>().unwrap() + 1;
    let conf = scene.conf(
        "master",
        "mixed-a",
        &master,
        &names,
        &format!("{role}haListenPort={ha}\n"),
    );
    let original = scene.start_java(version, &conf);
    scene.fill(&master, "before", BEFORE).await;
    let more = format!("brokerId=1\nbrokerRole=SLAVE\n{}", scene.only_ours());
    let conf = scene.conf("slave", "mixed-a", &slave, &names, &more);
    let ours = scene.start_ours(&conf);
    let copied = scene.same(&master, &slave).await;
    assert!(
        copied >= BEFORE as usize,
        "also what lay in older files: {copied}"
    );

    scene.fill(&master, "after", AFTER).await;
    // A slave that was away goes on where it was.
    ours.stop().await;
    scene.fill(&master, "away", AFTER).await;
    let ours = scene.start_ours(&conf);
    until("what was delayed", async || {
        let max = scene.admin.max_offset(&master, TOPIC, 0).await.unwrap();
        max >= i64::from((BEFORE + AFTER + AFTER) / QUEUES + 3)
    })
    .await;
    let all = scene.same(&master, &slave).await;
    assert_eq!(all, (BEFORE + AFTER + AFTER + 3) as usize);

    // The master is gone: everything can still be read.
    original.stop().await;
    assert_eq!(scene.messages(&slave).await.len(), all);
    ours.stop().await;
    names.shutdown().await;
    format!("{all} messages the same")
}

/// The original's slave gets from our master what it expects: from the last file on when it is new, everything from then on.
pub(crate) async fn ours_leads(scene: Scene, version: &'static str) -> String {
    let names = scene.name_server().await;
    let (master, slave) = (scene.our_address(30911), scene.java_address());
    let role = "brokerId=0\nbrokerRole=SYNC_MASTER\nslaveTimeout=60000\n";
    let conf = scene.conf(
        "master",
        "mixed-a",
        &master,
        &names,
        &format!("{role}{}", scene.only_ours()),
    );
    let ours = scene.start_ours(&conf);
    let ha = slave.rsplit_once(':').unwrap().1.parse::<u16>().unwrap() + 1;
    let more = format!("brokerId=1\nbrokerRole=SLAVE\nhaListenPort={ha}\n");
    let conf = scene.conf("slave", "mixed-a", &slave, &names, &more);
    let original = scene.start_java(version, &conf);
    until("the original follows", async || {
        let status = scene.admin.ha_status(&master).await;
        status.is_ok_and(|s| s.in_sync_slave_nums == 1)
    })
    .await;
    // Each of these waits until the original acknowledged it.
    scene.fill(&master, "sync", AFTER).await;
    until("what was delayed", async || {
        let max = scene.admin.max_offset(&master, TOPIC, 0).await.unwrap();
        max > i64::from(AFTER / QUEUES)
    })
    .await;
    let first = scene.same(&master, &slave).await;
    assert_eq!(first, (AFTER + 1) as usize);
    // Our master is gone: everything can be read from the original, and it goes on when ours is back.
    ours.stop().await;
    assert_eq!(scene.messages(&slave).await.len(), first);
    let conf = scene.folder.path().join("master.conf");
    let ours = scene.start_ours(&conf);
    until("the original follows", async || {
        let status = scene.admin.ha_status(&master).await;
        status.is_ok_and(|s| s.in_sync_slave_nums == 1)
    })
    .await;
    scene.fill(&master, "back", AFTER).await;
    let all = scene.same(&master, &slave).await;
    original.stop().await;
    ours.stop().await;
    names.shutdown().await;
    format!("{all} messages the same")
}
