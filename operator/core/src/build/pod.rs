//! The pod template: one container, restricted in every way that Kubernetes knows.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
    HTTPGetAction, ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity, PodSecurityContext,
    PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext,
    TopologySpreadConstraint, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{CLAIM, CONFIG_FOLDER, Component, DATA_FOLDER, labels, names, selector};
use crate::api::{self, AntiAffinity};
use crate::validate::ValidatedCluster;

/// User and group of the processes; any number but 0 would do.
const USER_ID: i64 = 10_001;
/// Seconds a start may take: a large log is read again after a crash.
const STARTUP_SECONDS: i32 = 3_600;

pub(super) struct Pod<'a> {
    pub(super) cluster: &'a ValidatedCluster,
    pub(super) component: Component,
    pub(super) group: Option<i32>,
    pub(super) config_map: String,
    pub(super) image: &'a str,
    pub(super) ports: &'a [(&'a str, i32)],
    pub(super) grace_seconds: i64,
    pub(super) resources: ResourceRequirements,
    pub(super) overrides: &'a api::PodSpec,
}

pub(super) fn template(pod: &Pod<'_>) -> PodTemplateSpec {
    let overrides = pod.overrides;
    let mut all_labels = overrides.labels.clone();
    all_labels.extend(labels(pod.cluster, Some(pod.component), pod.group));
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all_labels),
            annotations: some(overrides.annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(
                overrides
                    .service_account_name
                    .clone()
                    .unwrap_or_else(|| names::service_account(&pod.cluster.name)),
            ),
            automount_service_account_token: Some(false),
            // A Service called rocketmq would otherwise put ROCKETMQ_… into the environment, where the servers look for configuration.
            enable_service_links: Some(false),
            security_context: Some(pod_security()),
            termination_grace_period_seconds: Some(pod.grace_seconds),
            affinity: Some(
                overrides
                    .affinity
                    .clone()
                    .unwrap_or_else(|| default_affinity(pod)),
            ),
            topology_spread_constraints: Some(
                overrides
                    .topology_spread_constraints
                    .clone()
                    .unwrap_or_else(|| default_spread(pod)),
            ),
            node_selector: some(overrides.node_selector.clone()),
            tolerations: Some(overrides.tolerations.clone()).filter(|list| !list.is_empty()),
            priority_class_name: overrides.priority_class_name.clone(),
            image_pull_secrets: Some(overrides.image_pull_secrets.clone())
                .filter(|list| !list.is_empty()),
            containers: vec![container(pod)],
            volumes: Some(volumes(pod)),
            ..PodSpec::default()
        }),
    }
}

fn some(map: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    Some(map).filter(|map| !map.is_empty())
}

/// Small requests when none are given, so that the scheduler knows of the pod at all.
pub(super) fn requests(cpu: &str, memory: &str) -> ResourceRequirements {
    ResourceRequirements {
        requests: Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ])),
        ..ResourceRequirements::default()
    }
}

fn container(pod: &Pod<'_>) -> Container {
    let mut env = vec![EnvVar {
        name: "POD_NAME".to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: "metadata.name".to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        value: None,
    }];
    env.extend(pod.overrides.env.iter().cloned());
    let mut mounts = vec![
        VolumeMount {
            name: "config".to_owned(),
            mount_path: CONFIG_FOLDER.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        },
        VolumeMount {
            name: CLAIM.to_owned(),
            mount_path: DATA_FOLDER.to_owned(),
            ..VolumeMount::default()
        },
    ];
    mounts.extend(pod.overrides.volume_mounts.iter().map(|mount| VolumeMount {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        sub_path: mount.sub_path.clone(),
        read_only: Some(mount.read_only),
        ..VolumeMount::default()
    }));
    Container {
        name: pod.component.as_str().to_owned(),
        image: Some(pod.image.to_owned()),
        image_pull_policy: Some(pod.cluster.pull_policy.as_str().to_owned()),
        args: Some(vec![
            "-c".to_owned(),
            format!("{CONFIG_FOLDER}/$(POD_NAME).conf"),
        ]),
        env: Some(env),
        ports: Some(
            pod.ports
                .iter()
                .map(|(name, port)| ContainerPort {
                    name: Some((*name).to_owned()),
                    container_port: *port,
                    protocol: Some("TCP".to_owned()),
                    ..ContainerPort::default()
                })
                .collect(),
        ),
        resources: Some(pod.resources.clone()),
        // What a process said last before it failed becomes part of the pod's status, and so of a condition: a bad value of `config` above all.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        // Liveness never depends on name servers, disk space or lag, or a shared trouble would restart every broker at once.
        startup_probe: Some(probe("/startupz", 1, STARTUP_SECONDS)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER_ID),
        run_as_group: Some(USER_ID),
        fs_group: Some(USER_ID),
        // Walking a full store to change its owner can take minutes.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..PodSecurityContext::default()
    }
}

/// Pods whose loss together would hurt keep apart: those of a group (or the name servers) above all, where that is asked for even when they find no
/// place then; and all of the same kind as far as nodes allow it.
fn default_affinity(pod: &Pod<'_>) -> Affinity {
    let apart = |group: Option<i32>| PodAffinityTerm {
        label_selector: Some(LabelSelector {
            match_labels: Some(selector(&pod.cluster.name, Some(pod.component), group)),
            ..LabelSelector::default()
        }),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    let weighted = |weight: i32, group: Option<i32>| WeightedPodAffinityTerm {
        weight,
        pod_affinity_term: apart(group),
    };
    let required = pod.overrides.anti_affinity == AntiAffinity::Required;
    // What is required need not be preferred as well.
    let mut preferred = Vec::new();
    if pod.group.is_some() && !required {
        preferred.push(weighted(100, pod.group));
    }
    if pod.group.is_some() || !required {
        preferred.push(weighted(50, None));
    }
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(preferred)
                .filter(|terms| !terms.is_empty()),
            required_during_scheduling_ignored_during_execution: required
                .then(|| vec![apart(pod.group)]),
        }),
        ..Affinity::default()
    }
}

fn default_spread(pod: &Pod<'_>) -> Vec<TopologySpreadConstraint> {
    vec![TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "topology.kubernetes.io/zone".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(selector(&pod.cluster.name, Some(pod.component), pod.group)),
            ..LabelSelector::default()
        }),
        ..TopologySpreadConstraint::default()
    }]
}

fn volumes(pod: &Pod<'_>) -> Vec<Volume> {
    let mut volumes = vec![Volume {
        name: "config".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: pod.config_map.clone(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }];
    volumes.extend(pod.overrides.volumes.iter().map(|volume| Volume {
        name: volume.name.clone(),
        config_map: volume.config_map.clone(),
        secret: volume.secret.clone(),
        empty_dir: volume.empty_dir.clone(),
        persistent_volume_claim: volume.persistent_volume_claim.clone(),
        ..Volume::default()
    }));
    volumes
}
