//! Every Kubernetes object of a cluster, made from a [`ValidatedCluster`] alone: the same input gives the same objects, byte for byte.
//!
//! Four things can never change on a StatefulSet that exists and are therefore fixed here: `podManagementPolicy: Parallel`, the service name, the
//! selector labels and the claim's name `data`. `updateStrategy: OnDelete` leaves the order of restarts to [`crate::plan`]. The role of a broker is
//! in no name, because it can move.

mod config;
pub mod names;
mod pod;
mod stateful_set;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::{GROUP, Mode, Role, VERSION};
use crate::validate::ValidatedCluster;

pub use config::{
    DYNAMIC_MARK, broker_conf, broker_dynamic, config_hash, name_server_conf, raft_address,
    write_properties,
};

/// Port of the name servers.
pub const NAME_SERVER_PORT: i32 = 9876;
/// Main port of a broker.
pub const BROKER_PORT: i32 = 10911;
/// Port of a broker for everything but pulls.
pub const BROKER_FAST_PORT: i32 = 10909;
/// Port for slaves.
pub const BROKER_HA_PORT: i32 = 10912;
/// Port for the other members of a group that elects its own master.
pub const BROKER_RAFT_PORT: i32 = 40911;
/// Probes and metrics of a name server.
pub const NAME_SERVER_HTTP_PORT: i32 = 9877;
/// Probes and metrics of a broker.
pub const BROKER_HTTP_PORT: i32 = 10913;

/// Which cluster an object belongs to; what the operator's watches select.
pub const LABEL_CLUSTER: &str = "rocketcluster.io/cluster";
/// Which broker group.
pub const LABEL_GROUP: &str = "rocketcluster.io/group";
/// `namesrv` or `broker`.
pub const LABEL_COMPONENT: &str = "rocketcluster.io/component";
/// Says that the operator may sweep the object.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "rocketcluster-operator";
/// Hash of what a ConfigMap holds, for people; the roller compares what processes report.
pub const ANNOTATION_CONFIG_HASH: &str = "rocketcluster.io/config-hash";

/// The keys, separated by commas, that the brokers of a group were given while they ran: those to put back when nothing asks for them any more.
pub const ANNOTATION_DYNAMIC_KEYS: &str = "rocketcluster.io/dynamic-keys";

/// Folder of the rendered configuration in a pod.
pub const CONFIG_FOLDER: &str = "/etc/rocketmq";
/// Folder of the volume in a pod.
pub const DATA_FOLDER: &str = "/data";
/// Name of the claim template.
pub const CLAIM: &str = "data";

/// Which kind of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    NameServer,
    Broker,
}

impl Component {
    /// As in [`LABEL_COMPONENT`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NameServer => "namesrv",
            Self::Broker => "broker",
        }
    }
}

/// Everything a cluster is made of, in the order in which it is applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    pub service_accounts: Vec<ServiceAccount>,
    pub config_maps: Vec<ConfigMap>,
    pub services: Vec<Service>,
    pub pod_disruption_budgets: Vec<PodDisruptionBudget>,
    /// Last, because their pods need the others.
    pub stateful_sets: Vec<StatefulSet>,
}

impl Objects {
    /// The file a pod is meant to run with.
    pub fn config_of(&self, pod: &str) -> Option<&str> {
        let key = format!("{pod}.conf");
        self.config_maps
            .iter()
            .find_map(|map| map.data.as_ref()?.get(&key))
            .map(String::as_str)
    }
}

/// Makes every object of a cluster.
pub fn build(cluster: &ValidatedCluster) -> Objects {
    let mut objects = Objects {
        service_accounts: service_accounts(cluster),
        config_maps: vec![name_server_config_map(cluster)],
        services: vec![
            name_server_service(cluster),
            name_server_nodes_service(cluster),
        ],
        pod_disruption_budgets: vec![disruption_budget(
            cluster,
            names::name_server(&cluster.name),
            Component::NameServer,
            None,
        )],
        stateful_sets: vec![stateful_set::name_server(cluster)],
    };
    for group in 0..cluster.broker.groups {
        objects.config_maps.push(broker_config_map(cluster, group));
        objects.services.push(broker_group_service(cluster, group));
        for ordinal in 0..cluster.broker.replicas(group) {
            objects
                .services
                .push(broker_service(cluster, group, ordinal));
        }
        objects.pod_disruption_budgets.push(disruption_budget(
            cluster,
            names::broker_group(&cluster.name, group),
            Component::Broker,
            Some(group),
        ));
        objects
            .stateful_sets
            .push(stateful_set::broker(cluster, group));
    }
    objects
}

/// What a broker is by its place in the group; `None` where the group elects its master, which only the brokers themselves can tell.
pub fn configured_role(mode: Mode, ordinal: i32) -> Option<Role> {
    match (mode, ordinal) {
        (Mode::DLedger, _) => None,
        (_, 0) => Some(Role::Master),
        _ => Some(Role::Slave),
    }
}

/// The port on which the brokers of a group reach each other, with its name.
pub(crate) fn replication_port(mode: Mode) -> (&'static str, i32) {
    match mode {
        Mode::DLedger => ("raft", BROKER_RAFT_PORT),
        _ => ("ha", BROKER_HA_PORT),
    }
}

/// Labels that say whose an object is and what it is for.
pub fn labels(
    cluster: &ValidatedCluster,
    component: Option<Component>,
    group: Option<i32>,
) -> BTreeMap<String, String> {
    let mut labels = selector(&cluster.name, component, group);
    labels.insert(
        "app.kubernetes.io/name".to_owned(),
        "rocketcluster".to_owned(),
    );
    labels.insert(
        "app.kubernetes.io/instance".to_owned(),
        cluster.name.clone(),
    );
    labels.insert(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned());
    if let Some(component) = component {
        labels.insert(
            "app.kubernetes.io/component".to_owned(),
            component.as_str().to_owned(),
        );
    }
    labels
}

/// The few labels that pods are selected by. Part of every StatefulSet for ever.
pub fn selector(
    cluster: &str,
    component: Option<Component>,
    group: Option<i32>,
) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([(LABEL_CLUSTER.to_owned(), cluster.to_owned())]);
    if let Some(component) = component {
        labels.insert(LABEL_COMPONENT.to_owned(), component.as_str().to_owned());
    }
    if let Some(group) = group {
        labels.insert(LABEL_GROUP.to_owned(), group.to_string());
    }
    labels
}

/// Name, namespace, labels and owner of an object. Kubernetes removes it with its RocketCluster.
fn meta(
    cluster: &ValidatedCluster,
    name: String,
    component: Option<Component>,
    group: Option<i32>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels(cluster, component, group)),
        owner_references: cluster.uid.as_ref().map(|uid| {
            vec![OwnerReference {
                api_version: format!("{GROUP}/{VERSION}"),
                kind: "RocketCluster".to_owned(),
                name: cluster.name.clone(),
                uid: uid.clone(),
                controller: Some(true),
                // Would need the right to set finalizers on RocketClusters, and nothing here waits for it.
                block_owner_deletion: None,
            }]
        }),
        ..ObjectMeta::default()
    }
}

fn service_accounts(cluster: &ValidatedCluster) -> Vec<ServiceAccount> {
    if cluster.broker.pod.service_account_name.is_some()
        && cluster.name_server.pod.service_account_name.is_some()
    {
        return Vec::new();
    }
    vec![ServiceAccount {
        metadata: meta(cluster, names::service_account(&cluster.name), None, None),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }]
}

fn config_map(
    cluster: &ValidatedCluster,
    name: String,
    component: Component,
    group: Option<i32>,
    data: BTreeMap<String, String>,
) -> ConfigMap {
    let whole: String = data
        .iter()
        .flat_map(|(file, text)| [file.as_str(), "\n", text.as_str()])
        .collect();
    let mut metadata = meta(cluster, name, Some(component), group);
    metadata.annotations = Some(BTreeMap::from([(
        ANNOTATION_CONFIG_HASH.to_owned(),
        config_hash(whole.as_bytes()),
    )]));
    ConfigMap {
        metadata,
        data: Some(data),
        ..ConfigMap::default()
    }
}

fn name_server_config_map(cluster: &ValidatedCluster) -> ConfigMap {
    let files = (0..cluster.name_server.replicas)
        .map(|ordinal| {
            (
                format!("{}.conf", names::name_server_pod(&cluster.name, ordinal)),
                name_server_conf(cluster),
            )
        })
        .collect();
    config_map(
        cluster,
        names::name_server(&cluster.name),
        Component::NameServer,
        None,
        files,
    )
}

fn broker_config_map(cluster: &ValidatedCluster, group: i32) -> ConfigMap {
    let files = (0..cluster.broker.replicas(group))
        .map(|ordinal| {
            (
                format!("{}.conf", names::broker_pod(&cluster.name, group, ordinal)),
                broker_conf(cluster, group, ordinal),
            )
        })
        .collect();
    let mut map = config_map(
        cluster,
        names::broker_group(&cluster.name, group),
        Component::Broker,
        Some(group),
        files,
    );
    set_dynamic_keys(&mut map, broker_dynamic(cluster).into_keys());
    map
}

/// Notes in a group's ConfigMap which keys its brokers are given while they run.
pub(crate) fn set_dynamic_keys(map: &mut ConfigMap, keys: impl Iterator<Item = String>) {
    let keys: Vec<String> = keys.collect();
    let annotations = map.metadata.annotations.get_or_insert_default();
    if keys.is_empty() {
        annotations.remove(ANNOTATION_DYNAMIC_KEYS);
    } else {
        annotations.insert(ANNOTATION_DYNAMIC_KEYS.to_owned(), keys.join(","));
    }
}

fn ports(ports: &[(&str, i32)]) -> Vec<ServicePort> {
    ports
        .iter()
        .map(|(name, port)| ServicePort {
            name: Some((*name).to_owned()),
            port: *port,
            protocol: Some("TCP".to_owned()),
            target_port: Some(IntOrString::Int(*port)),
            ..ServicePort::default()
        })
        .collect()
}

/// What clients are given: one name that never changes.
fn name_server_service(cluster: &ValidatedCluster) -> Service {
    Service {
        metadata: meta(
            cluster,
            names::name_server(&cluster.name),
            Some(Component::NameServer),
            None,
        ),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector(&cluster.name, Some(Component::NameServer), None)),
            ports: Some(ports(&[("remoting", NAME_SERVER_PORT)])),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// What brokers resolve. With the name servers that are not ready, because those wait for the brokers to register.
fn name_server_nodes_service(cluster: &ValidatedCluster) -> Service {
    Service {
        metadata: meta(
            cluster,
            names::name_server_nodes(&cluster.name),
            Some(Component::NameServer),
            None,
        ),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(&cluster.name, Some(Component::NameServer), None)),
            ports: Some(ports(&[
                ("remoting", NAME_SERVER_PORT),
                ("http", NAME_SERVER_HTTP_PORT),
            ])),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Names for the pods of a group, for replication.
fn broker_group_service(cluster: &ValidatedCluster, group: i32) -> Service {
    Service {
        metadata: meta(
            cluster,
            names::broker_group(&cluster.name, group),
            Some(Component::Broker),
            Some(group),
        ),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(
                &cluster.name,
                Some(Component::Broker),
                Some(group),
            )),
            ports: Some(ports(&[
                ("remoting", BROKER_PORT),
                replication_port(cluster.mode),
                ("http", BROKER_HTTP_PORT),
            ])),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The address of one broker, which it keeps through restarts and moves. Traffic goes to it whether it is ready or not: clients know which broker
/// they want, and a broker that drains still serves pulls.
fn broker_service(cluster: &ValidatedCluster, group: i32, ordinal: i32) -> Service {
    let mut open = vec![("remoting", BROKER_PORT), ("fast", BROKER_FAST_PORT)];
    // The name servers announce a master's replication port under this address, for slaves that are told no other: the original's above all.
    if cluster.mode != Mode::DLedger {
        open.push(("ha", BROKER_HA_PORT));
    }
    let pod = names::broker_pod(&cluster.name, group, ordinal);
    let mut selects = selector(&cluster.name, Some(Component::Broker), Some(group));
    selects.insert("statefulset.kubernetes.io/pod-name".to_owned(), pod.clone());
    Service {
        metadata: meta(cluster, pod, Some(Component::Broker), Some(group)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selects),
            ports: Some(ports(&open)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// At most one pod of a group leaves its node at a time. A pod that has not caught up is not ready, so it counts as away: of three members that elect
/// a master two are always there with the whole log, and a master's node is not drained before its slave could take the readers.
fn disruption_budget(
    cluster: &ValidatedCluster,
    name: String,
    component: Component,
    group: Option<i32>,
) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta(cluster, name, Some(component), group),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(selector(&cluster.name, Some(component), group)),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

#[cfg(test)]
mod tests;
