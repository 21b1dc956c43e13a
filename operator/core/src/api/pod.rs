//! What a user may set on pods: narrow on purpose, so that the definition stays small and nothing the operator depends on can be taken away.

// KubeSchema derives the schema from a copy of each struct inside a function.
#![expect(unreachable_pub)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, ConfigMapVolumeSource, EmptyDirVolumeSource, EnvVar, LocalObjectReference,
    PersistentVolumeClaimVolumeSource, SecretVolumeSource, Toleration, TopologySpreadConstraint,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether pods whose loss together would hurt may share a node when there is no other.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AntiAffinity {
    /// They keep apart where nodes allow it.
    #[default]
    Preferred,
    /// A pod that finds no node of its own waits for one.
    Required,
}

/// What may be set on the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("!has(self.affinity) || !has(self.antiAffinity) || self.antiAffinity == 'Preferred'").message("affinity takes the place of antiAffinity: give one of them"),
)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Further labels. Those under app.kubernetes.io/ and rocketcluster.io/ belong to the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// Further annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
    /// Whether the brokers of a group, and the name servers, may share a node: Preferred (the default) lets them when there is no other node,
    /// Required lets a pod wait for one. Changing it restarts the pods one by one.
    #[serde(default)]
    pub anti_affinity: AntiAffinity,
    /// Takes the place of the default, which keeps the brokers of a group, and the name servers, apart as antiAffinity says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Nodes must have these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,
    /// Takes the place of the default, which spreads the brokers of a group over zones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// A service account of yours. Default: one made by the operator, which may do nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service_account_name: Option<String>,
    /// Secrets for private registries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Further environment variables. Those beginning with ROCKETMQ_, POD_NAME and NAMESRV_ADDR belong to the operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env: Vec<EnvVar>,
    /// Further volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub volumes: Vec<ExtraVolume>,
    /// Where the further volumes are mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub volume_mounts: Vec<ExtraMount>,
}

/// A further volume; one source.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("[has(self.configMap), has(self.secret), has(self.emptyDir), has(self.persistentVolumeClaim)].filter(x, x).size() == 1")
        .message("a volume has exactly one source: configMap, secret, emptyDir or persistentVolumeClaim"),
    validation = Rule::new("!(self.name in ['data', 'config'])").field_path(".name").message("the volume names data and config belong to the operator"),
)]
#[serde(rename_all = "camelCase")]
pub struct ExtraVolume {
    /// Name, as in volumeMounts.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolumeSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolumeSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolumeSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolumeSource>,
}

/// Where a further volume is mounted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("!self.mountPath.startsWith('/etc/rocketmq') && !self.mountPath.startsWith('/data')").field_path(".mountPath").message("the folders /etc/rocketmq and /data belong to the operator"),
)]
#[serde(rename_all = "camelCase")]
pub struct ExtraMount {
    /// Name of the volume.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Folder in the container.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^/"))]
    pub mount_path: String,
    /// A folder within the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub sub_path: Option<String>,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
}
