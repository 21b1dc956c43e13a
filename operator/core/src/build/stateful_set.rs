//! One StatefulSet for the name servers and one for each broker group.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::{
    BROKER_FAST_PORT, BROKER_HTTP_PORT, BROKER_PORT, CLAIM, Component, NAME_SERVER_HTTP_PORT,
    NAME_SERVER_PORT, meta, names, pod, replication_port, selector,
};
use crate::api::{Retention, StorageSpec};
use crate::validate::ValidatedCluster;

/// Seconds a name server has to stop; it only closes connections.
const NAME_SERVER_GRACE_SECONDS: i64 = 30;
/// Seconds a broker has beyond `shutdownDrainMs`: refuse writes until none comes, leave the name servers, flush.
const BROKER_GRACE_EXTRA_SECONDS: i64 = 60;

pub(super) fn name_server(cluster: &ValidatedCluster) -> StatefulSet {
    let spec = &cluster.name_server;
    let template = pod::template(&pod::Pod {
        cluster,
        component: Component::NameServer,
        group: None,
        config_map: names::name_server(&cluster.name),
        image: &spec.image,
        ports: &[
            ("remoting", NAME_SERVER_PORT),
            ("http", NAME_SERVER_HTTP_PORT),
        ],
        grace_seconds: NAME_SERVER_GRACE_SECONDS,
        resources: spec
            .resources
            .clone()
            .unwrap_or_else(|| pod::requests("50m", "32Mi")),
        overrides: &spec.pod,
    });
    stateful_set(
        cluster,
        Component::NameServer,
        None,
        &names::name_server_nodes(&cluster.name),
        spec.replicas,
        template,
        &spec.storage,
    )
}

pub(super) fn broker(cluster: &ValidatedCluster, group: i32) -> StatefulSet {
    let spec = &cluster.broker;
    let template = pod::template(&pod::Pod {
        cluster,
        component: Component::Broker,
        group: Some(group),
        config_map: names::broker_group(&cluster.name, group),
        image: &spec.image,
        ports: &[
            ("remoting", BROKER_PORT),
            ("fast", BROKER_FAST_PORT),
            replication_port(cluster.mode),
            ("http", BROKER_HTTP_PORT),
        ],
        grace_seconds: i64::from(spec.shutdown_drain_ms.div_ceil(1_000))
            + BROKER_GRACE_EXTRA_SECONDS,
        resources: spec
            .resources
            .clone()
            .unwrap_or_else(|| pod::requests("100m", "128Mi")),
        overrides: &spec.pod,
    });
    stateful_set(
        cluster,
        Component::Broker,
        Some(group),
        &names::broker_group(&cluster.name, group),
        spec.replicas(group),
        template,
        &spec.storage,
    )
}

fn stateful_set(
    cluster: &ValidatedCluster,
    component: Component,
    group: Option<i32>,
    service: &str,
    replicas: i32,
    template: k8s_openapi::api::core::v1::PodTemplateSpec,
    storage: &StorageSpec,
) -> StatefulSet {
    let name = match group {
        None => names::name_server(&cluster.name),
        Some(group) => names::broker_group(&cluster.name, group),
    };
    let selects = selector(&cluster.name, Some(component), group);
    StatefulSet {
        metadata: meta(cluster, name, Some(component), group),
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            service_name: Some(service.to_owned()),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            persistent_volume_claim_retention_policy: Some(
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some(retention(storage.when_deleted)),
                    when_scaled: Some(retention(storage.when_scaled)),
                },
            ),
            selector: LabelSelector {
                match_labels: Some(selects.clone()),
                ..LabelSelector::default()
            },
            template,
            volume_claim_templates: Some(vec![claim(selects, storage)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn retention(retention: Retention) -> String {
    match retention {
        Retention::Retain => "Retain",
        Retention::Delete => "Delete",
    }
    .to_owned()
}

fn claim(labels: BTreeMap<String, String>, storage: &StorageSpec) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(CLAIM.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([(
                    "storage".to_owned(),
                    Quantity(storage.size.clone()),
                )])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}
