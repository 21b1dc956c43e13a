//! What mqadmin does: typed calls ([`remoting::admin`]) and their tables.

pub(crate) mod broker;
pub(crate) mod cluster;
pub(crate) mod consumer;
pub(crate) mod message;
pub(crate) mod mqadmin;
pub(crate) mod topic;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use remoting::admin::Admin;
use remoting::protocol::body::{BrokerData, ClusterInfo, TopicRouteData};
use remoting::{ClientConfig, RemotingClient, Resolver};

pub(crate) const MASTER_ID: i64 = 0;

pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?
        .block_on(work)
}

pub(crate) fn admin(name_servers: &str) -> Admin {
    let config = ClientConfig {
        resolver: Resolver::from_env(),
        ..ClientConfig::default()
    };
    Admin::new(RemotingClient::new(config), name_servers)
}

/// The addresses that serve as master, by broker name.
fn masters(brokers: &BTreeMap<String, BrokerData>) -> BTreeMap<String, String> {
    brokers
        .iter()
        .filter_map(|(name, data)| Some((name.clone(), data.broker_addrs.get(&MASTER_ID)?.clone())))
        .collect()
}

/// The masters of a cluster, or of all where none is named.
pub(crate) async fn masters_of(
    admin: &Admin,
    cluster: Option<&str>,
) -> Result<BTreeMap<String, String>> {
    let info: ClusterInfo = admin.cluster_info().await?;
    if let Some(cluster) = cluster {
        let known: Vec<&str> = info.cluster_addr_table.keys().map(String::as_str).collect();
        let Some(names) = info.cluster_addr_table.get(cluster) else {
            anyhow::bail!(
                "there is no cluster {cluster}; there is {}",
                known.join(", ")
            );
        };
        let mut found = masters(&info.broker_addr_table);
        found.retain(|name, _| names.contains(name));
        return Ok(found);
    }
    Ok(masters(&info.broker_addr_table))
}

/// The masters that hold a topic, or the sentence that it does not exist.
pub(crate) async fn route(admin: &Admin, topic: &str) -> Result<TopicRouteData> {
    admin
        .topic_route(topic)
        .await?
        .with_context(|| format!("no broker has the topic {topic}"))
}

/// An address for a broker name of a route: its master, else any of its replicas.
pub(crate) fn reachable(route: &TopicRouteData, broker_name: &str) -> Option<String> {
    let data = route
        .broker_datas
        .iter()
        .find(|b| b.broker_name == broker_name)?;
    data.broker_addrs
        .get(&MASTER_ID)
        .or_else(|| data.broker_addrs.values().next())
        .cloned()
}
