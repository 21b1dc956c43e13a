//! What brokers are in their groups at this moment: master or slave as the name servers list them, leader or follower as they say themselves, and how
//! far each is behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use remoting::admin::Admin;
use remoting::protocol::body::{ClusterInfo, DLedgerState, DLedgerStatus};
use remoting::{ClientConfig, RemotingClient};
use serde::Serialize;

use super::plan::{Pod, Program};
use crate::admin::MASTER_ID;

/// A broker that takes longer is shown without what it would have said.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What a broker is in its group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Standing {
    /// `master` or `slave`; in a group that elects `leader`, `follower` and what else a member can be.
    pub(crate) role: &'static str,
    /// The id under which it is registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) broker_id: Option<i64>,
    /// The election that counts, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) term: Option<i64>,
    /// Bytes of its master's log that it has not got yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag_bytes: Option<u64>,
}

pub(super) fn admin(name_servers: &str) -> Admin {
    let config = ClientConfig {
        connect_timeout: TIMEOUT,
        ..ClientConfig::default()
    };
    Admin::new(RemotingClient::new(config), name_servers).with_timeout(TIMEOUT)
}

/// By address, for every broker that is registered or one of the given members of groups that elect.
pub(crate) async fn standings(name_servers: &str, members: &[&str]) -> BTreeMap<String, Standing> {
    let admin = &admin(name_servers);
    // Empty when no name server answers.
    let table = admin.cluster_info().await.unwrap_or_default();
    let addresses: Vec<&String> = table
        .broker_addr_table
        .values()
        .flat_map(|data| data.broker_addrs.values())
        .collect();
    let ends = join_all(addresses.into_iter().map(async |address| {
        let figures = admin.broker_runtime_info(address).await.ok()?;
        let end: u64 = figures.get("commitLogMaxOffset")?.parse().ok()?;
        Some((address.clone(), end))
    }));
    let said = join_all(members.iter().map(async |address| {
        let status = admin.dledger_status(address).await.ok()?;
        Some(((*address).to_owned(), status))
    }));
    let (ends, said) = futures::join!(ends, said);
    let mut found = combine(&table, &ends.into_iter().flatten().collect());
    elect(&mut found, &said.into_iter().flatten().collect());
    found
}

/// What members say of themselves, and their leader of how far they are.
fn elect(found: &mut BTreeMap<String, Standing>, said: &BTreeMap<String, DLedgerStatus>) {
    for (address, own) in said {
        let of_group = said.values().filter(|other| other.group == own.group);
        let leader = of_group
            .filter(|other| other.state == DLedgerState::Leader)
            .max_by_key(|other| other.term);
        let seen = leader.and_then(|l| l.members.iter().find(|m| m.id == own.self_id));
        let standing = found.entry(address.clone()).or_default();
        standing.role = match own.state {
            DLedgerState::Leader => "leader",
            DLedgerState::Candidate => "candidate",
            DLedgerState::Learner => "learner",
            DLedgerState::Removed => "removed",
            DLedgerState::Follower => "follower",
            DLedgerState::Unknown => "unknown",
        };
        standing.term = Some(own.term);
        standing.lag_bytes = seen
            .filter(|_| own.state != DLedgerState::Leader)
            .map(|m| u64::try_from(m.lag_bytes).unwrap_or(0));
    }
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
                    broker_id: Some(*id),
                    term: None,
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

    #[test]
    fn members_say_what_they_are_and_the_leader_how_far_they_are() {
        use remoting::protocol::body::DLedgerMember;

        let says = |id: &str, state: DLedgerState, term: i64, lags: &[(&str, i64)]| {
            let status = DLedgerStatus {
                group: "b".to_owned(),
                self_id: id.to_owned(),
                state,
                term,
                members: lags
                    .iter()
                    .map(|(id, lag)| DLedgerMember {
                        id: (*id).to_owned(),
                        lag_bytes: *lag,
                        ..DLedgerMember::default()
                    })
                    .collect(),
                ..DLedgerStatus::default()
            };
            (format!("{id}:1"), status)
        };
        // n0 led and has not heard yet that it does not any more.
        let said = BTreeMap::from([
            says("n0", DLedgerState::Leader, 3, &[("n2", 9)]),
            says("n1", DLedgerState::Leader, 4, &[("n0", 5), ("n2", 7)]),
            says("n2", DLedgerState::Follower, 4, &[]),
        ]);
        let mut found = BTreeMap::from([(
            "n1:1".to_owned(),
            Standing {
                role: "master",
                broker_id: Some(0),
                ..Standing::default()
            },
        )]);
        elect(&mut found, &said);
        let of = |address: &str| {
            let standing = &found[address];
            (
                standing.role,
                standing.broker_id,
                standing.term,
                standing.lag_bytes,
            )
        };
        assert_eq!(of("n1:1"), ("leader", Some(0), Some(4), None));
        assert_eq!(of("n2:1"), ("follower", None, Some(4), Some(7)));
        assert_eq!(of("n0:1"), ("leader", None, Some(3), None));
    }
}
