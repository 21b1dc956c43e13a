//! What brokers are in their groups at this moment: master or slave as the name servers list them, and how far a slave is behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use remoting::admin::Admin;
use remoting::protocol::body::ClusterInfo;
use remoting::{ClientConfig, RemotingClient};
use serde::Serialize;

use super::plan::{Pod, Program};
use crate::admin::MASTER_ID;

/// A broker that takes longer is shown without what it would have said.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What a broker is in its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Standing {
    /// `master` or `slave`.
    pub(crate) role: &'static str,
    pub(crate) broker_id: i64,
    /// Bytes of the master's log that a slave has not got yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag_bytes: Option<u64>,
}

fn admin(name_servers: &str) -> Admin {
    let config = ClientConfig {
        connect_timeout: TIMEOUT,
        ..ClientConfig::default()
    };
    Admin::new(RemotingClient::new(config), name_servers).with_timeout(TIMEOUT)
}

/// By address, for every broker that is registered. Empty when no name server answers.
pub(crate) async fn standings(name_servers: &str) -> BTreeMap<String, Standing> {
    let admin = &admin(name_servers);
    let Ok(table) = admin.cluster_info().await else {
        return BTreeMap::new();
    };
    let addresses: Vec<&String> = table
        .broker_addr_table
        .values()
        .flat_map(|data| data.broker_addrs.values())
        .collect();
    let ends = join_all(addresses.into_iter().map(async |address| {
        let figures = admin.broker_runtime_info(address).await.ok()?;
        let end: u64 = figures.get("commitLogMaxOffset")?.parse().ok()?;
        Some((address.clone(), end))
    }))
    .await
    .into_iter()
    .flatten()
    .collect();
    combine(&table, &ends)
}

/// `ends`: where each broker's log ends.
fn combine(table: &ClusterInfo, ends: &BTreeMap<String, u64>) -> BTreeMap<String, Standing> {
    let mut found = BTreeMap::new();
    for data in table.broker_addr_table.values() {
        let master = data
            .broker_addrs
            .get(&MASTER_ID)
            .and_then(|address| ends.get(address));
        for (id, address) in &data.broker_addrs {
            let slave = *id != MASTER_ID;
            let behind = master
                .zip(ends.get(address))
                // They are asked one after the other, so a slave may seem to be ahead.
                .map(|(master, own)| master.saturating_sub(*own));
            found.insert(
                address.clone(),
                Standing {
                    role: if slave { "slave" } else { "master" },
                    broker_id: *id,
                    lag_bytes: behind.filter(|_| slave),
                },
            );
        }
    }
    found
}

/// The pods that are masters now.
pub(crate) async fn masters(name_servers: &[SocketAddr], pods: &[Pod]) -> BTreeSet<String> {
    let list: Vec<String> = name_servers.iter().map(ToString::to_string).collect();
    let Ok(table) = admin(&list.join(";")).cluster_info().await else {
        return BTreeSet::new();
    };
    let masters: BTreeSet<&String> = table
        .broker_addr_table
        .values()
        .filter_map(|data| data.broker_addrs.get(&MASTER_ID))
        .collect();
    pods.iter()
        .filter(|pod| pod.program == Program::Broker)
        .filter(|pod| masters.contains(&pod.address.to_string()))
        .map(|pod| pod.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slave_is_behind_by_what_its_master_has_more() {
        let table: ClusterInfo = serde_json::from_str(
            r#"{"brokerAddrTable": {"b": {"brokerName": "b", "cluster": "c", "brokerAddrs": {"0": "m:1", "1": "s:1", "2": "t:1"}}}, "clusterAddrTable": {"c": ["b"]}}"#,
        )
        .unwrap();
        let end = |address: &str, end: u64| (address.to_owned(), end);
        let ends = BTreeMap::from([end("m:1", 1_000), end("s:1", 400)]);
        let found = combine(&table, &ends);
        let of = |address: &str| (found[address].role, found[address].lag_bytes);
        assert_eq!(of("m:1"), ("master", None));
        assert_eq!(of("s:1"), ("slave", Some(600)));
        assert_eq!(of("t:1"), ("slave", None), "it did not answer");
        let ahead = BTreeMap::from([end("m:1", 1_000), end("s:1", 1_001)]);
        assert_eq!(combine(&table, &ahead)["s:1"].lag_bytes, Some(0));
    }
}
