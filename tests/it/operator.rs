//! What the operator asks and tells brokers, against brokers that run.

use std::collections::BTreeMap;

use broker::Broker;
use broker::config::{BrokerConfig, BrokerRole};
use operator::inspect::{BrokerTarget, Copies, Inspect, NameServerTarget, Request, Wire};
use operator_core::plan::{Replication, ServerReport};

use crate::rig::{PATIENCE, Rig, broker_config};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_sees_a_slave_follow_and_tells_a_broker_its_keys() {
    let rig = Rig::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        broker_id: 1,
        broker_role: BrokerRole::Slave,
        ..broker_config(&rig.name_server, folder.path())
    };
    let slave = Broker::start(config.validate().unwrap()).await.unwrap();
    let target = |pod: &str, id: i64, address: String| BrokerTarget {
        pod: pod.to_owned(),
        registered_address: Some(address.clone()),
        address,
        broker_name: "broker-a".to_owned(),
        broker_id: Some(id),
        copies: Copies::Slaves,
    };
    let request = Request {
        name_servers: vec![NameServerTarget {
            pod: "namesrv".to_owned(),
            address: rig.name_server.address().to_string(),
        }],
        brokers: vec![
            target("master", 0, rig.broker_address()),
            target("slave", 1, slave.listen_address().to_string()),
        ],
    };
    let wire = Wire::default();
    let follows = |reports: &BTreeMap<String, ServerReport>| {
        let (Some(master), Some(slave)) = (reports.get("master"), reports.get("slave")) else {
            return false;
        };
        let sees = matches!(&master.replication, Replication::Master { slaves, .. }
            if slaves.iter().any(|s| s.ip == "127.0.0.1" && s.in_sync));
        sees && matches!(slave.replication, Replication::Slave { .. })
            && master.registered
            && slave.registered
            && slave.not_ready.is_none()
    };
    let reports = tokio::time::timeout(PATIENCE, async {
        loop {
            let reports = wire.inspect(request.clone()).await;
            if follows(&reports) {
                return reports;
            }
        }
    });
    let reports = reports.await.unwrap();
    assert_eq!(reports["slave"].broker_id, Some(1));
    assert!(reports.contains_key("namesrv"));

    let broker = rig.broker_address();
    let change = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    assert_eq!(reports["master"].values["fileReservedTime"], "72");
    wire.configure(&broker, &change("fileReservedTime", "48"))
        .await
        .unwrap();
    let again = wire.inspect(request.clone()).await;
    assert_eq!(again["master"].values["fileReservedTime"], "48");
    let refused = wire
        .configure(&broker, &change("fileReservedTime", "soon"))
        .await
        .unwrap_err();
    assert!(refused.contains("fileReservedTime"), "{refused}");

    // Without its master a slave is not ready, and says why.
    rig.broker.shutdown().await;
    let reason = tokio::time::timeout(PATIENCE, async {
        loop {
            let reports = wire.inspect(request.clone()).await;
            if let Some(reason) = reports.get("slave").and_then(|r| r.not_ready.clone()) {
                return reason;
            }
        }
    });
    assert!(reason.await.unwrap().contains("master"));
    slave.shutdown().await;
    rig.stop().await;
}
