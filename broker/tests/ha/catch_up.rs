//! A slave gets all of its master's log, wherever it begins.

use remoting::protocol::response_code;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_copies_the_log_from_its_begin_and_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    let client = Client::of(&master);
    for n in 0..200 {
        client
            .sent(&format!("before {n}"), response_code::SUCCESS)
            .await;
    }
    let slave = start(slave_of(dir.path(), 1, &master)).await;
    points_at(&slave, &master);
    until("the slave has everything", || level(&master, &slave)).await;
    for n in 0..200 {
        client
            .sent(&format!("after {n}"), response_code::SUCCESS)
            .await;
    }
    until("the slave has the rest", || level(&master, &slave)).await;
    same_log(&master, &slave);
    assert_eq!(client.bodies(0).await.len(), 400);
    until("the slave is ready", || slave.ha.ready(&slave).is_ok()).await;
    slave.shutdown().await;
    master.shutdown().await;
}
