//! How name servers and brokers are, asked over the wire: which configuration each runs with, and whether every name server lists each broker.
//!
//! Pods are asked by their own IP, so that neither the cluster's DNS nor a Service stands between the question and the answer.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use operator_core::plan::ServerReport;
use remoting::admin::Admin;
use remoting::client::{ClientConfig, RemotingClient};
use remoting::protocol::body::ClusterInfo;

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
    pub broker_id: i64,
    /// What the name servers should list; unknown until its Service has an IP.
    pub registered_address: Option<String>,
}

/// Asks; a seam for tests.
pub trait Inspect: Send + Sync + 'static {
    /// A report for each pod that answered.
    fn inspect(&self, request: Request) -> BoxFuture<'_, BTreeMap<String, ServerReport>>;
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
        Some(ServerReport {
            config_hash: config.config_hash.filter(|hash| !hash.is_empty()),
            version: runtime.get("brokerVersionDesc").cloned(),
            registered: !tables.is_empty() && tables.iter().all(|table| lists(table, target)),
        })
    }
}

fn lists(table: &ClusterInfo, target: &BrokerTarget) -> bool {
    let Some(address) = &target.registered_address else {
        return false;
    };
    table
        .broker_addr_table
        .get(&target.broker_name)
        .and_then(|data| data.broker_addrs.get(&target.broker_id))
        == Some(address)
}
