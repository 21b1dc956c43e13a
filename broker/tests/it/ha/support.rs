//! What the replication tests share: brokers on loopback, sends, and the comparison of two logs.

use std::path::Path;
use std::sync::Arc;

use broker::config::BrokerRole;
use broker::role::MasterAddress;
use broker::{Broker, BrokerConfig};
use remoting::protocol::RemotingCommand;

use crate::support::{Client, PATIENCE, message, small, until};

pub(crate) const SEGMENT: i64 = 64 << 10;

/// A broker of the group "g" in a folder of its own.
pub(crate) fn config(folder: &Path) -> BrokerConfig {
    BrokerConfig {
        broker_name: "g".to_owned(),
        mapped_file_size_commit_log: SEGMENT,
        ha_send_heartbeat_interval: 200,
        ..small(folder)
    }
}

pub(crate) fn master(dir: &Path, role: &str) -> BrokerConfig {
    BrokerConfig {
        broker_role: match role {
            "SYNC_MASTER" => BrokerRole::SyncMaster,
            _ => BrokerRole::AsyncMaster,
        },
        ..config(&dir.join("master"))
    }
}

pub(crate) fn slave(dir: &Path, id: i64) -> BrokerConfig {
    BrokerConfig {
        broker_role: BrokerRole::Slave,
        broker_id: id,
        ..config(&dir.join(format!("slave{id}")))
    }
}

/// What a registration tells a slave.
pub(crate) fn points_at(slave: &Broker, master: &Broker) {
    slave.role.update(|role| {
        role.master = MasterAddress {
            address: Some(master.address().to_owned()),
            ha_address: Some(master.ha_address().to_owned()),
        }
    });
}

/// Whether a slave follows this master closely enough to be waited for.
pub(crate) fn has_slave(master: &Broker) -> bool {
    master
        .ha
        .replicas
        .available(master.store.written(), 1 << 20)
}

pub(crate) fn level(a: &Broker, b: &Broker) -> bool {
    a.store.confirm_offset() == b.store.confirm_offset()
}

/// Every byte that both hold is the same.
pub(crate) fn same_log(a: &Broker, b: &Broker) {
    assert_eq!(a.store.written(), b.store.written());
    let from = a.store.min_phy_offset().max(b.store.min_phy_offset());
    assert!(bytes(a, from) == bytes(b, from), "the logs differ");
}

/// Every queue has the same entries.
pub(crate) fn same_queues(a: &Broker, b: &Broker) {
    assert_eq!(a.store.queues(), b.store.queues());
    for (topic, queues) in a.store.queues() {
        for id in queues {
            let [one, other] = [a, b].map(|broker| broker.store.find_queue(&topic, id).unwrap());
            assert_eq!(one.max_offset(), other.max_offset(), "{topic} {id}");
        }
    }
}

pub(crate) fn bytes(broker: &Broker, from: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while from + (out.len() as u64) < broker.store.written() {
        let at = from + out.len() as u64;
        let n = broker.store.read_range(at, 1 << 20, &mut out).unwrap();
        assert!(n > 0);
    }
    out
}

/// The slave gets all that its master has from this position on, and nothing else is there; both stop.
pub(crate) async fn begins_at(oldest: u64, master: &Arc<Broker>, slave: &Arc<Broker>) {
    points_at(slave, master);
    until("the slave has everything", || level(master, slave)).await;
    assert_eq!(slave.store.min_phy_offset(), oldest);
    same_log(master, slave);
    slave.shutdown().await;
    master.shutdown().await;
}

impl Client {
    /// The same to somebody else.
    pub(crate) async fn ask(&self, address: &str, command: RemotingCommand) -> RemotingCommand {
        self.client
            .invoke(address, command, PATIENCE)
            .await
            .unwrap()
    }

    pub(crate) async fn sent(&self, body: &str, code: i32) -> RemotingCommand {
        let answer = self.call(send("T", "", body.as_bytes())).await;
        assert_eq!(answer.code, code, "{body}: {:?}", answer.remark);
        answer
    }

    /// Bodies of a queue of "T".
    pub(crate) async fn bodies(&self, queue: i32) -> Vec<String> {
        let admin = remoting::admin::Admin::new(self.client.clone(), "");
        let (mut bodies, mut offset) = (Vec::new(), 0);
        let max = admin.max_offset(&self.address, "T", queue).await.unwrap();
        while offset < max {
            let (messages, header) = admin
                .pull(&self.address, "T", queue, offset, 32)
                .await
                .unwrap();
            assert!(header.next_begin_offset > offset);
            offset = header.next_begin_offset;
            bodies.extend(
                messages
                    .into_iter()
                    .map(|m| String::from_utf8(m.body).unwrap()),
            );
        }
        bodies
    }
}

pub(crate) fn send(topic: &str, properties: &str, body: &[u8]) -> RemotingCommand {
    message(topic, 0, 1, properties, body)
}
