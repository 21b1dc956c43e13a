//! How name servers and brokers are, asked over the wire: which configuration each runs with, whether every name server lists each broker, and how far
//! the brokers of a group are behind each other. And the two things that are told to brokers: keys that change while they run, and who belongs to a
//! group that elects its master.
//!
//! Pods are asked by their own IP, so that neither the cluster's DNS nor a Service stands between the question and the answer.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use operator_core::keys;
use operator_core::plan::{Member, MemberChange, Peer, Replication, ServerReport, SlaveSeen};
use remoting::admin::Admin;
use remoting::client::{ClientConfig, RemotingClient};
use remoting::protocol::body::{ClusterInfo, DLedgerState, DLedgerStatus, HARuntimeInfo};

/// Whom to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub name_servers: Vec<NameServerTarget>,
    pub brokers: Vec<BrokerTarget>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServerTarget {
    pub pod: String,
    /// `ip:port`
    pub address: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerTarget {
    pub pod: String,
    /// `ip:port`
    pub address: String,
    pub broker_name: String,
    /// The id that its place gives it; none where groups elect.
    pub broker_id: Option<i64>,
    pub copies: Copies,
    /// What the name servers should list; unknown until its Service has an IP.
    pub registered_address: Option<String>,
}

/// What else there is to ask a broker for, by the kind of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// One broker.
    #[default]
    None,
    /// A master and its slaves.
    Slaves,
    /// Members that elect a master.
    Members,
}

/// Asks and tells; a seam for tests. What a server refuses is a sentence.
pub trait Inspect: Send + Sync + 'static {
    /// A report for each pod that answered.
    fn inspect(&self, request: Request) -> BoxFuture<'_, BTreeMap<String, ServerReport>>;

    /// Changes keys of a running broker, given by its `ip:port`: all or none.
    fn configure<'a>(
        &'a self,
        broker: &'a str,
        changes: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<(), String>>;

    /// Asks the leader of a group, given by its `ip:port`, for a change of its members.
    fn change_members<'a>(
        &'a self,
        leader: &'a str,
        change: &'a MemberChange,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// Time for one question; a server that takes longer counts as silent.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Servers of one cluster asked at the same time.
const IN_FLIGHT: usize = 32;

/// Asks over remoting.
pub struct Wire {
    admin: Admin,
}

impl Default for Wire {
    fn default() -> Self {
        let client = RemotingClient::new(ClientConfig {
            connect_timeout: TIMEOUT,
            ..ClientConfig::default()
        });
        Self {
            admin: Admin::new(client, "").with_timeout(TIMEOUT),
        }
    }
}

impl Inspect for Wire {
    fn inspect(&self, request: Request) -> BoxFuture<'_, BTreeMap<String, ServerReport>> {
        Box::pin(async move {
            let asked = stream::iter(request.name_servers).map(|target| async move {
                let report = self.name_server(&target).await;
                if report.is_none() {
                    self.admin.client().disconnect(&target.address);
                }
                (target.pod, report)
            });
            let mut reports = BTreeMap::new();
            let mut tables = Vec::new();
            for (pod, answer) in asked.buffer_unordered(IN_FLIGHT).collect::<Vec<_>>().await {
                if let Some((report, table)) = answer {
                    reports.insert(pod, report);
                    tables.push(table);
                }
            }
            let tables = &tables;
            let asked = stream::iter(request.brokers).map(|target| async move {
                let report = self.broker(&target, tables).await;
                if report.is_none() {
                    self.admin.client().disconnect(&target.address);
                }
                Some((target.pod, report?))
            });
            reports.extend(
                asked
                    .buffer_unordered(IN_FLIGHT)
                    .filter_map(std::future::ready)
                    .collect::<Vec<_>>()
                    .await,
            );
            reports
        })
    }

    fn configure<'a>(
        &'a self,
        broker: &'a str,
        changes: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let told = self.admin.update_broker_config(broker, changes).await;
            told.map(drop).map_err(sentence)
        })
    }

    fn change_members<'a>(
        &'a self,
        leader: &'a str,
        change: &'a MemberChange,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let asked = match change {
                MemberChange::Transfer { to } => {
                    let to = Some(to.as_str()).filter(|to| !to.is_empty());
                    self.admin.dledger_transfer_leadership(leader, to).await
                }
                MemberChange::Add { id, address } => {
                    self.admin.dledger_add_member(leader, id, address).await
                }
                MemberChange::Remove { id } => self.admin.dledger_remove_member(leader, id).await,
            };
            asked.map_err(sentence)
        })
    }
}

/// What the server said, or what kept it from saying anything.
fn sentence(error: remoting::admin::Error) -> String {
    match error {
        remoting::admin::Error::Refused { remark, .. } if !remark.is_empty() => remark,
        other => other.to_string(),
    }
}

impl Wire {
    async fn name_server(&self, target: &NameServerTarget) -> Option<(ServerReport, ClusterInfo)> {
        let config = self.admin.name_server_config(&target.address).await.ok()?;
        let table = self.admin.cluster_info_of(&target.address).await.ok()?;
        let config_hash = config
            .get("configHash")
            .filter(|hash| !hash.is_empty())
            .cloned();
        Some((
            ServerReport {
                config_hash,
                ..ServerReport::default()
            },
            table,
        ))
    }

    async fn broker(&self, target: &BrokerTarget, tables: &[ClusterInfo]) -> Option<ServerReport> {
        let config = self.admin.broker_config(&target.address).await.ok()?;
        let runtime = self.admin.broker_runtime_info(&target.address).await.ok()?;
        let replication = match target.copies {
            Copies::None => Replication::Unknown,
            Copies::Slaves => {
                let status = self.admin.ha_status(&target.address).await.ok();
                status.map_or(Replication::Unknown, |status| of_slaves(&status))
            }
            Copies::Members => {
                let status = self.admin.dledger_status(&target.address).await.ok();
                status.map_or(Replication::Unknown, |status| {
                    Replication::Member(of_member(&status))
                })
            }
        };
        let listed: Vec<Option<i64>> = tables.iter().map(|table| lists(table, target)).collect();
        let expected = |id: &Option<i64>| match target.broker_id {
            Some(wanted) => *id == Some(wanted),
            None => id.is_some(),
        };
        Some(ServerReport {
            config_hash: config.config_hash.filter(|hash| !hash.is_empty()),
            version: runtime.get("brokerVersionDesc").cloned(),
            registered: !listed.is_empty() && listed.iter().all(expected),
            broker_id: listed.first().copied().flatten(),
            not_ready: runtime.get("notReady").cloned(),
            values: config
                .values
                .into_iter()
                .filter(|(key, _)| keys::is_dynamic(key))
                .collect(),
            replication,
        })
    }
}

/// The id under which a name server lists the broker's address.
fn lists(table: &ClusterInfo, target: &BrokerTarget) -> Option<i64> {
    let address = target.registered_address.as_ref()?;
    let group = table.broker_addr_table.get(&target.broker_name)?;
    let mut ids = group.broker_addrs.iter();
    ids.find(|(_, listed)| *listed == address)
        .map(|(id, _)| *id)
}

fn of_slaves(status: &HARuntimeInfo) -> Replication {
    if !status.master {
        return Replication::Slave {
            end: status.ha_client_runtime_info.max_offset,
        };
    }
    let slaves = status.ha_connection_info.iter().map(|slave| SlaveSeen {
        ip: ip_of(&slave.addr).to_owned(),
        in_sync: slave.in_sync,
    });
    Replication::Master {
        end: status.master_commit_log_max_offset,
        slaves: slaves.collect(),
    }
}

/// `10.0.0.1:80` and `[::1]:80` without port and brackets.
fn ip_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    // Java prints addresses with a slash before them.
    let host = host.rsplit_once('/').map_or(host, |(_, host)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn of_member(status: &DLedgerStatus) -> Member {
    Member {
        id: status.self_id.clone(),
        leads: status.state == DLedgerState::Leader && status.leader_id == status.self_id,
        term: status.term,
        commit_index: status.commit_index,
        applied_index: status.applied_index,
        commit_offset: status.commit_offset,
        peers: status
            .members
            .iter()
            .map(|member| Peer {
                id: member.id.clone(),
                lag_bytes: member.lag_bytes,
                voter: member.voter,
                active: member.recently_active,
                sure: member.sure,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use remoting::protocol::body::{DLedgerMember, HAConnectionRuntimeInfo};

    use super::*;

    #[test]
    fn what_a_master_says_of_its_slaves() {
        let status = HARuntimeInfo {
            master: true,
            master_commit_log_max_offset: 100,
            ha_connection_info: ["10.0.0.7:4711", "/10.0.0.8:1", "[fd00::1]:2"]
                .map(|addr| HAConnectionRuntimeInfo {
                    addr: addr.to_owned(),
                    in_sync: true,
                    ..HAConnectionRuntimeInfo::default()
                })
                .to_vec(),
            ..HARuntimeInfo::default()
        };
        let Replication::Master { end, slaves } = of_slaves(&status) else {
            panic!("no master");
        };
        let ips: Vec<&str> = slaves.iter().map(|s| s.ip.as_str()).collect();
        assert_eq!((end, ips), (100, vec!["10.0.0.7", "10.0.0.8", "fd00::1"]));
    }

    #[test]
    fn who_leads_says_so_itself() {
        let mut status = DLedgerStatus {
            self_id: "n1".to_owned(),
            leader_id: "n1".to_owned(),
            state: DLedgerState::Leader,
            members: vec![DLedgerMember {
                id: "n1".to_owned(),
                voter: true,
                ..DLedgerMember::default()
            }],
            ..DLedgerStatus::default()
        };
        assert!(of_member(&status).leads);
        assert!(of_member(&status).peers[0].voter);
        status.state = DLedgerState::Follower;
        assert!(!of_member(&status).leads);
    }

    #[test]
    fn a_broker_is_known_by_its_address_under_whatever_id() {
        let mut table = ClusterInfo::default();
        let group = table
            .broker_addr_table
            .entry("broker-0".to_owned())
            .or_default();
        group.broker_addrs.insert(2, "10.96.0.7:10911".to_owned());
        let mut target = BrokerTarget {
            pod: "demo-broker-0-1".to_owned(),
            address: "10.0.0.1:10911".to_owned(),
            broker_name: "broker-0".to_owned(),
            broker_id: None,
            copies: Copies::Members,
            registered_address: Some("10.96.0.7:10911".to_owned()),
        };
        assert_eq!(lists(&table, &target), Some(2));
        target.registered_address = Some("10.96.0.8:10911".to_owned());
        assert_eq!(lists(&table, &target), None);
    }
}
