//! Reads everything that a decision rests on: the children in Kubernetes, and how the processes in the pods are.

use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use operator_core::api::Mode;
use operator_core::build::{
    BROKER_PORT, Component, LABEL_CLUSTER, LABEL_MANAGED_BY, MANAGED_BY, NAME_SERVER_PORT,
    configured_role, names,
};
use operator_core::plan::{Observed, ObservedPod, noted_keys, wanted_pods};
use operator_core::status::host_port;
use operator_core::validate::ValidatedCluster;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::error::{During, Error};
use crate::inspect::{BrokerTarget, Copies, NameServerTarget, Request};

/// What was read.
pub(super) struct Seen {
    pub(super) observed: Observed,
    pub(super) service_accounts: Children,
    pub(super) config_maps: Children,
    pub(super) services: Children,
    pub(super) pod_disruption_budgets: Children,
    pub(super) stateful_sets: Children,
}

/// Children of one kind that this very RocketCluster owns, by name.
pub(super) type Children = BTreeMap<String, ObjectMeta>;

/// A node gets some time to appear before "no node fits" counts as trouble.
const UNSCHEDULABLE_AFTER_SECONDS: i64 = 30;

pub(super) async fn dereference(
    context: &Context,
    cluster: &ValidatedCluster,
) -> Result<Seen, Error> {
    let (service_accounts, config_maps, pod_disruption_budgets, services, stateful_sets, pods) = futures::try_join!(
        metadata::<ServiceAccount>(context, cluster),
        metadata::<ConfigMap>(context, cluster),
        metadata::<PodDisruptionBudget>(context, cluster),
        list::<Service>(context, cluster),
        list::<StatefulSet>(context, cluster),
        list::<Pod>(context, cluster),
    )?;
    let services: Vec<Service> = services
        .into_iter()
        .filter(|o| is_ours(cluster, &o.metadata))
        .collect();
    let stateful_sets: Vec<StatefulSet> = stateful_sets
        .into_iter()
        .filter(|o| is_ours(cluster, &o.metadata))
        .collect();

    let broker_ips: BTreeMap<String, String> = services
        .iter()
        .filter_map(|service| Some((service.name_any(), cluster_ip(service)?)))
        .collect();
    let dynamic_keys = config_maps
        .iter()
        .map(|(name, meta)| (name.clone(), noted_keys(meta.annotations.as_ref())))
        .collect();
    let mut observed = Observed {
        name_server_ip: broker_ips.get(&names::name_server(&cluster.name)).cloned(),
        pods: pods
            .iter()
            .filter(|pod| belongs_to(pod, &stateful_sets))
            .map(observed_pod)
            .collect(),
        broker_ips,
        dynamic_keys,
        stateful_sets,
    };
    ask_servers(context, cluster, &pods, &mut observed).await;
    let seen = Seen {
        service_accounts,
        config_maps,
        pod_disruption_budgets,
        services: services
            .iter()
            .map(|o| (o.name_any(), o.metadata.clone()))
            .collect(),
        stateful_sets: observed
            .stateful_sets
            .iter()
            .map(|o| (o.name_any(), o.metadata.clone()))
            .collect(),
        observed,
    };
    Ok(seen)
}

fn selector(cluster: &ValidatedCluster) -> ListParams {
    ListParams::default().labels(&format!(
        "{LABEL_CLUSTER}={},{LABEL_MANAGED_BY}={MANAGED_BY}",
        cluster.name
    ))
}

async fn list<K>(context: &Context, cluster: &ValidatedCluster) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &cluster.namespace);
    let found = api
        .list(&selector(cluster))
        .await
        .during(|| format!("list {}", K::plural(&())))?;
    Ok(found.items)
}

async fn metadata<K>(context: &Context, cluster: &ValidatedCluster) -> Result<Children, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), &cluster.namespace);
    let found = api
        .list_metadata(&selector(cluster))
        .await
        .during(|| format!("list {}", K::plural(&())))?;
    Ok(found
        .items
        .into_iter()
        .filter(|o| is_ours(cluster, &o.metadata))
        .map(|o| (o.name_any(), o.metadata))
        .collect())
}

/// Whether an object was made for this RocketCluster, and not for an earlier one of the same name that is still being cleared away.
pub(super) fn is_ours(cluster: &ValidatedCluster, meta: &ObjectMeta) -> bool {
    let Some(uid) = &cluster.uid else { return true };
    meta.owner_references
        .iter()
        .flatten()
        .any(|owner| owner.uid == *uid)
}

fn belongs_to(pod: &Pod, sets: &[StatefulSet]) -> bool {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| {
        sets.iter()
            .any(|set| set.metadata.uid.as_deref() == Some(&owner.uid))
    })
}

fn cluster_ip(service: &Service) -> Option<String> {
    service
        .spec
        .as_ref()?
        .cluster_ip
        .clone()
        .filter(|ip| !ip.is_empty() && ip != "None")
}

fn observed_pod(pod: &Pod) -> ObservedPod {
    ObservedPod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        ip: ip_of(pod),
        revision: pod.labels().get("controller-revision-hash").cloned(),
        ready: condition(pod, "Ready").is_some_and(|c| c.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        trouble: trouble(pod),
        server: None,
    }
}

fn ip_of(pod: &Pod) -> Option<String> {
    let ip = pod.status.as_ref()?.pod_ip.clone()?;
    (!ip.is_empty()).then_some(ip)
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

/// What Kubernetes says when a container cannot run. Other reasons to wait pass by themselves.
const TROUBLES: [&str; 8] = [
    "CrashLoopBackOff",
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

fn trouble(pod: &Pod) -> Option<String> {
    let statuses = pod.status.iter();
    let waiting = statuses
        .flat_map(|status| status.container_statuses.iter().flatten())
        .find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.clone()?;
            TROUBLES
                .contains(&reason.as_str())
                .then_some((container, waiting, reason))
        });
    if let Some((container, waiting, reason)) = waiting {
        // What the process said last is worth more than how long Kubernetes waits before it tries again.
        let said = last_words(container).or_else(|| waiting.message.clone());
        return Some(match said {
            Some(message) => format!("{reason}: {message}"),
            None => reason,
        });
    }
    let scheduled = condition(pod, "PodScheduled")?;
    let since = scheduled.last_transition_time.as_ref().map_or(0, |time| {
        super::status::now().0.as_second() - time.0.as_second()
    });
    (scheduled.status == "False"
        && scheduled.reason.as_deref() == Some("Unschedulable")
        && since >= UNSCHEDULABLE_AFTER_SECONDS)
        .then(|| {
            format!(
                "Unschedulable: {}",
                scheduled.message.clone().unwrap_or_default()
            )
        })
}

/// Letters of a process's last line that a message takes.
const MAX_LAST_WORDS: usize = 500;

/// The last line that a process wrote before it failed.
fn last_words(container: &ContainerStatus) -> Option<String> {
    let ended = container.last_state.as_ref()?.terminated.as_ref()?;
    let line = ended
        .message
        .as_ref()?
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(MAX_LAST_WORDS).collect())
}

/// Asks every process that can answer how it is.
async fn ask_servers(
    context: &Context,
    cluster: &ValidatedCluster,
    pods: &[Pod],
    observed: &mut Observed,
) {
    let mut request = Request::default();
    let all = with_all_that_is_there(cluster, observed);
    let copies = match cluster.mode {
        Mode::DLedger => Copies::Members,
        // A single master may have slaves that it is about to lose.
        _ => Copies::Slaves,
    };
    for wanted in wanted_pods(&all) {
        let Some(pod) = pods
            .iter()
            .find(|pod| pod.name_any() == wanted.pod && pod.metadata.deletion_timestamp.is_none())
        else {
            continue;
        };
        let Some(ip) = ip_of(pod) else {
            continue;
        };
        let ip = ip.as_str();
        match wanted.component {
            Component::NameServer => {
                request.name_servers.push(NameServerTarget {
                    address: host_port(ip, NAME_SERVER_PORT),
                    pod: wanted.pod,
                });
            }
            Component::Broker => request.brokers.push(BrokerTarget {
                address: host_port(ip, BROKER_PORT),
                broker_name: names::broker_name(&cluster.broker.name_prefix, wanted.group),
                broker_id: configured_role(cluster.mode, wanted.ordinal)
                    .map(|_| i64::from(wanted.ordinal)),
                copies,
                registered_address: observed
                    .broker_ips
                    .get(&wanted.pod)
                    .map(|ip| host_port(ip, BROKER_PORT)),
                pod: wanted.pod,
            }),
        }
    }
    let mut reports = context.inspect.inspect(request).await;
    for pod in &mut observed.pods {
        pod.server = reports.remove(&pod.name);
    }
}

/// Groups and brokers that are there but no longer asked for may be kept by the plan for now, so they are asked too.
fn with_all_that_is_there(cluster: &ValidatedCluster, observed: &Observed) -> ValidatedCluster {
    let mut all = cluster.clone();
    let groups = observed.groups().map(|group| group + 1);
    all.broker.groups = groups
        .fold(all.broker.groups, i32::max)
        .min(operator_core::api::MAX_GROUPS);
    for group in 0..all.broker.groups {
        let there = (0..operator_core::api::MAX_REPLICAS_PER_GROUP)
            .filter(|ordinal| {
                let pod = names::broker_pod(&cluster.name, group, *ordinal);
                observed.pod(&pod).is_some()
            })
            .max();
        let size = there.map_or(0, |ordinal| ordinal + 1);
        if size > all.broker.replicas_per_group {
            all.broker.staged.insert(group, size);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "demo-broker-0-0", "uid": "u", "labels": {"controller-revision-hash": "r1"}},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn what_is_seen_of_a_pod() {
        let well = observed_pod(&pod(
            json!({"conditions": [{"type": "Ready", "status": "True"}]}),
        ));
        assert!(well.ready && !well.terminating && well.trouble.is_none());
        assert_eq!(
            (well.uid.as_str(), well.revision.as_deref()),
            ("u", Some("r1"))
        );
        assert!(!observed_pod(&pod(json!({}))).ready);
    }

    #[test]
    fn what_counts_as_trouble() {
        let waiting = |reason: &str, message: Value| {
            pod(json!({"containerStatuses": [{
                "name": "broker", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": reason, "message": message}},
            }]}))
        };
        assert_eq!(trouble(&waiting("ContainerCreating", json!(null))), None);
        assert_eq!(
            trouble(&waiting("CrashLoopBackOff", json!(null))).unwrap(),
            "CrashLoopBackOff"
        );
        assert_eq!(
            trouble(&waiting("ErrImagePull", json!("not found"))).unwrap(),
            "ErrImagePull: not found"
        );
        let mut crashed = waiting(
            "CrashLoopBackOff",
            json!("back-off 10s restarting failed container"),
        );
        let mut status = serde_json::to_value(&crashed.status).unwrap();
        status["containerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": 1,
            "message": "boot\n/etc/rocketmq/x.conf:3: fileReservedTime=soon: takes a whole number\n"}});
        crashed.status = serde_json::from_value(status).unwrap();
        assert_eq!(
            trouble(&crashed).unwrap(),
            "CrashLoopBackOff: /etc/rocketmq/x.conf:3: fileReservedTime=soon: takes a whole number"
        );
        let unscheduled = |since: &str| {
            pod(json!({"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes", "lastTransitionTime": since,
            }]}))
        };
        assert_eq!(
            trouble(&unscheduled("2020-01-01T00:00:00Z")).unwrap(),
            "Unschedulable: 0/3 nodes"
        );
        assert_eq!(trouble(&unscheduled("2999-01-01T00:00:00Z")), None);
    }

    #[test]
    fn a_headless_service_has_no_address() {
        let service = |ip: Value| {
            serde_json::from_value(json!({"metadata": {}, "spec": {"clusterIP": ip}})).unwrap()
        };
        assert_eq!(cluster_ip(&service(json!("None"))), None);
        assert_eq!(cluster_ip(&service(json!(null))), None);
        assert_eq!(
            cluster_ip(&service(json!("10.96.0.7"))).as_deref(),
            Some("10.96.0.7")
        );
    }
}
