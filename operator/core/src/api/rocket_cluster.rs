//! `RocketCluster`: name servers and brokers of one cluster.
//!
//! What the API server can check is here, as bounds and CEL rules, each with a sentence. What CEL cannot see (keys of `config`) is checked by
//! [`crate::validate`] and told in a condition.

// KubeSchema derives the schema from a copy of each struct inside a function.
#![expect(unreachable_pub)]

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::pod::PodSpec;
use super::status::RocketClusterStatus;

/// Broker groups at most; bounds the digits of a group's number in names.
pub const MAX_GROUPS: i32 = 999;
/// Brokers of one group at most.
pub const MAX_REPLICAS_PER_GROUP: i32 = 9;
/// Name servers at most; every broker registers with each.
pub const MAX_NAME_SERVERS: i32 = 9;
/// Longest `metadata.name`: `<name>-broker-999` is then at most 52 letters, which leaves room for the revision hash that Kubernetes puts behind a
/// StatefulSet's name in a label of 63.
pub const MAX_NAME_LENGTH: usize = 41;

/// A RocketMQ-compatible cluster: name servers and groups of brokers.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "rocketcluster.io",
    version = "v1alpha1",
    kind = "RocketCluster",
    plural = "rocketclusters",
    shortname = "rmq",
    namespaced,
    doc = "A RocketMQ-compatible cluster: name servers and groups of brokers.",
    status = "RocketClusterStatus",
    derive = "PartialEq",
    cel,
    scale(
        spec_replicas_path = ".spec.broker.groups",
        status_replicas_path = ".status.groups",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.readyBrokers", description = "brokers registered, of those wanted"),
    printcolumn(name = "NameServers", type_ = "string", json_path = ".status.readyNameServers", description = "name servers ready, of those wanted"),
    printcolumn(name = "Masters", type_ = "string", json_path = ".status.masters", priority = 1, description = "pods that take writes"),
    printcolumn(name = "Terms", type_ = "string", json_path = ".status.terms", priority = 1, description = "elections that they won, in dledger"),
    printcolumn(name = "InSync", type_ = "string", json_path = ".status.inSync", priority = 1, description = "brokers that have what their master has"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.nameServers.address", priority = 1, description = "name-server address for clients"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 41").message("metadata.name may have at most 41 letters, so that the names of all objects made from it fit"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name becomes the name of Services: lower-case letters, digits and '-', beginning with a letter"),
    validation = Rule::new("(has(self.spec.clusterName) ? self.spec.clusterName : self.metadata.name) == (has(oldSelf.spec.clusterName) ? oldSelf.spec.clusterName : oldSelf.metadata.name)")
        .message("spec.clusterName cannot be changed: clients, tools and the brokers' stores know the cluster by it"),
)]
#[x_kube(
    validation = Rule::new("(self.mode == 'dledger') == (oldSelf.mode == 'dledger')").field_path(".mode")
        .message("to and from dledger there is no change in place, because the log formats differ: make a second cluster and migrate"),
    validation = Rule::new("self.mode != 'single-master' || !has(self.broker) || !has(self.broker.groups) || self.broker.groups == 1")
        .message("single-master has one broker group; use mode multi-master for more"),
    validation = Rule::new("!(self.mode in ['single-master', 'multi-master']) || !has(self.broker) || !has(self.broker.replicasPerGroup) || self.broker.replicasPerGroup == 1")
        .message("single-master and multi-master have one broker in a group; slaves come with 2m-2s-async and 2m-2s-sync"),
    validation = Rule::new("!(self.mode in ['2m-2s-async', '2m-2s-sync']) || !has(self.broker) || !has(self.broker.replicasPerGroup) || self.broker.replicasPerGroup >= 2")
        .message("2m-2s-async and 2m-2s-sync need a slave: replicasPerGroup of 2 or more"),
    validation = Rule::new("self.mode != 'dledger' || !has(self.broker) || !has(self.broker.replicasPerGroup) || (self.broker.replicasPerGroup >= 3 && self.broker.replicasPerGroup % 2 == 1)")
        .message("a dledger group elects by majority: replicasPerGroup must be odd, 3 or more"),
    validation = Rule::new("(has(self.broker) && has(self.broker.groups) ? self.broker.groups : (self.mode in ['single-master', 'dledger'] ? 1 : 2)) >= (has(oldSelf.broker) && has(oldSelf.broker.groups) ? oldSelf.broker.groups : (oldSelf.mode in ['single-master', 'dledger'] ? 1 : 2))")
        .message("broker groups cannot be removed yet: the messages of a removed group would be lost to its consumers, and draining a group is not served by this version"),
)]
#[serde(rename_all = "camelCase")]
pub struct RocketClusterSpec {
    /// How brokers form the cluster. The numbers in a mode's name are its default size, not its limit.
    pub mode: Mode,
    /// The name by which RocketMQ knows the cluster (brokerClusterName). Default: metadata.name. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[%|a-zA-Z0-9_-]+$"))]
    pub cluster_name: Option<String>,
    /// The name servers.
    #[serde(default)]
    pub name_server: NameServerSpec,
    /// The brokers.
    #[serde(default)]
    pub broker: BrokerSpec,
    /// Where the images of name servers and brokers come from. Default: what the operator was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// The operator leaves everything as it is while this is true.
    #[serde(default)]
    pub paused: bool,
}

/// How brokers form the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One broker.
    #[serde(rename = "single-master")]
    SingleMaster,
    /// Several brokers that share the load; each message is on one of them.
    #[serde(rename = "multi-master")]
    MultiMaster,
    /// Masters with slaves; a send does not wait for the slave.
    #[serde(rename = "2m-2s-async")]
    MasterSlaveAsync,
    /// Masters with slaves; a send waits for the slave.
    #[serde(rename = "2m-2s-sync")]
    MasterSlaveSync,
    /// Groups that elect their own master.
    #[serde(rename = "dledger")]
    DLedger,
}

impl Mode {
    /// Groups when the spec names no number.
    pub fn default_groups(self) -> i32 {
        match self {
            Self::SingleMaster | Self::DLedger => 1,
            Self::MultiMaster | Self::MasterSlaveAsync | Self::MasterSlaveSync => 2,
        }
    }

    /// Brokers a group when the spec names no number.
    pub fn default_replicas_per_group(self) -> i32 {
        match self {
            Self::SingleMaster | Self::MultiMaster => 1,
            Self::MasterSlaveAsync | Self::MasterSlaveSync => 2,
            Self::DLedger => 3,
        }
    }

    /// Name servers when the spec names no number.
    pub fn default_name_servers(self) -> i32 {
        if self == Self::SingleMaster { 1 } else { 2 }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SingleMaster => "single-master",
            Self::MultiMaster => "multi-master",
            Self::MasterSlaveAsync => "2m-2s-async",
            Self::MasterSlaveSync => "2m-2s-sync",
            Self::DLedger => "dledger",
        })
    }
}

/// Keys of a property file (`broker.conf`, `namesrv.conf`) under upstream's names, with text, numbers or truth values.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(transparent)]
pub struct Properties(pub BTreeMap<String, serde_json::Value>);

/// Keys in `config` at most.
const MAX_CONFIG_KEYS: u32 = 256;

impl JsonSchema for Properties {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Properties".into()
    }

    // Values have no type of their own because a structural schema cannot say "text, number or truth value"; `validate` does.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": MAX_CONFIG_KEYS,
            "additionalProperties": { "x-kubernetes-preserve-unknown-fields": true },
        })
    }
}

/// The name servers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NameServerSpec {
    /// Name servers. Default: 1 in single-master, else 2. Brokers follow a change without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    pub replicas: Option<i32>,
    /// Keys of namesrv.conf under upstream's names.
    #[serde(default)]
    pub config: Properties,
    /// The volume of the key-value file.
    #[serde(default = "StorageSpec::name_server")]
    pub storage: StorageSpec,
    /// Requests and limits of a name server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What may be set on the pods.
    #[serde(default)]
    pub pod: PodSpec,
}

/// The brokers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("self.namePrefix == oldSelf.namePrefix").field_path(".namePrefix").message("spec.broker.namePrefix cannot be changed: topics, offsets and clients know brokers by their names"))]
#[serde(rename_all = "camelCase")]
pub struct BrokerSpec {
    /// Broker groups, that is broker names. Default by mode: 1 in single-master and dledger, else 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 999))]
    pub groups: Option<i32>,
    /// Brokers in a group: a master and its slaves, or the members that elect a master. Default by mode: 1 in single-master and multi-master
    /// (which take no other), 2 with slaves, 3 in dledger (where it is odd).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    pub replicas_per_group: Option<i32>,
    /// Brokers of group N are called `<namePrefix>-N`. Cannot be changed.
    #[serde(default = "default_name_prefix")]
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[%|a-zA-Z0-9_-]+$"))]
    pub name_prefix: String,
    /// Keys of broker.conf under upstream's names.
    #[serde(default)]
    pub config: Properties,
    /// The volume of a broker's store.
    #[serde(default = "StorageSpec::broker")]
    pub storage: StorageSpec,
    /// Requests and limits of a broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What may be set on the pods.
    #[serde(default)]
    pub pod: PodSpec,
}

impl Default for BrokerSpec {
    fn default() -> Self {
        Self {
            groups: None,
            replicas_per_group: None,
            name_prefix: default_name_prefix(),
            config: Properties::default(),
            storage: StorageSpec::broker(),
            resources: None,
            pod: PodSpec::default(),
        }
    }
}

fn default_name_prefix() -> String {
    "broker".to_owned()
}

/// A volume claim.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0").field_path(".size").message("a volume cannot shrink"),
    validation = Rule::new("quantity(self.size).compareTo(quantity(oldSelf.size)) <= 0").field_path(".size").message("volumes cannot be grown by this version yet"),
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("storageClassName cannot be changed: the volumes are there already"),
)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Size, as Kubernetes writes it (20Gi). Cannot shrink, and growing is not served yet.
    #[schemars(
        length(min = 1, max = 24),
        regex(pattern = r"^[0-9]{1,15}(\.[0-9]{1,3})?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$")
    )]
    pub size: String,
    /// Storage class. Default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// What happens to the volumes when the RocketCluster is deleted.
    #[serde(default)]
    pub when_deleted: Retention,
    /// What happens to the volumes of brokers or name servers that are scaled away.
    #[serde(default)]
    pub when_scaled: Retention,
}

impl StorageSpec {
    fn of(size: &str) -> Self {
        Self {
            size: size.to_owned(),
            storage_class_name: None,
            when_deleted: Retention::default(),
            when_scaled: Retention::default(),
        }
    }

    fn name_server() -> Self {
        Self::of("1Gi")
    }

    fn broker() -> Self {
        Self::of("20Gi")
    }
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self::name_server()
    }
}

/// Whether volumes outlive what used them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    #[default]
    Retain,
    Delete,
}

/// Where images come from: `<repository>/mqnamesrv:<tag>` and `<repository>/mqbroker:<tag>`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Registry and path without the image's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 400),
        regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9._:/-]*$")
    )]
    pub repository: Option<String>,
    /// Tag of both images. A change rolls the pods one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[a-zA-Z0-9_][a-zA-Z0-9_.-]*$")
    )]
    pub tag: Option<String>,
    /// When a node pulls an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
}

/// When a node pulls an image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    /// As a pod spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
