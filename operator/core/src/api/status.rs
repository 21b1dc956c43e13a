//! What the operator tells about a RocketCluster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator tells about a RocketCluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RocketClusterStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing, Degraded.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The name servers and how clients reach them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_servers: Option<NameServersStatus>,
    /// One row a broker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub brokers: Vec<BrokerStatus>,
    /// One row a group, where groups have more than one broker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broker_groups: Vec<BrokerGroupStatus>,
    /// The pods that take writes, the first few of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masters: Option<String>,
    /// The elections that they won (dledger), in the same order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<String>,
    /// `4/4`: brokers that have what their master has, of all in groups with copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_sync: Option<String>,
    /// Broker groups there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<i32>,
    /// Selects the broker pods (for the scale subresource).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// `4/4`: brokers registered and ready, of those wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_brokers: Option<String>,
    /// `2/2`: name servers ready, of those wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_name_servers: Option<String>,
}

/// The name servers and how clients reach them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NameServersStatus {
    /// Name servers that are ready.
    pub ready: i32,
    /// Name servers that are wanted.
    pub replicas: i32,
    /// `name:port`, for Java clients.
    pub address: String,
    /// `ip:port`, for any client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ip_address: Option<String>,
    /// `http://name:port`, for Go clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_address: Option<String>,
    /// One address a name server, separated by `;`, for tools that must reach all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
}

/// A group with more than one broker. Figures of a busy cluster are some seconds old.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerGroupStatus {
    /// Broker name.
    pub name: String,
    /// The pod that takes writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// `3/3`: brokers that have what the master has, of those wanted.
    pub in_sync: String,
    /// Where the part of the log that every reader may see ends, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_offset: Option<i64>,
    /// The election that the master won (dledger).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<i64>,
    /// The last entry that a majority has (dledger).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_index: Option<i64>,
    /// The last entry that the master has applied (dledger).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<i64>,
}

/// What a broker does in its group.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Master,
    Slave,
}

/// One broker.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerStatus {
    /// Broker name, the same for all brokers of a group.
    pub name: String,
    /// Its pod.
    pub pod: String,
    /// Master or slave; absent while its group elects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The id that clients know it by; 0 is the master.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_id: Option<i64>,
    /// The address given to clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether the pod is ready and every name server knows the broker.
    pub ready: bool,
    /// Whether every name server knows the broker under its address.
    pub registered: bool,
    /// Whether it runs with the configuration, image and pod settings asked for.
    pub up_to_date: bool,
    /// Bytes that it is behind its master. Figures of a busy cluster are some seconds old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<i64>,
    /// Whether it follows its master and has caught up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_sync: Option<bool>,
    /// Version of the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Hash of the configuration file it started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,
}
