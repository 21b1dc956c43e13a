//! Writes: server-side apply of all objects, the restart of one pod, the removal of what nothing asks for.

use std::collections::BTreeSet;
use std::fmt::Debug;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount, ServiceSpec};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::EventType;
use kube::{Api, Resource, ResourceExt};
use operator_core::api::RocketCluster;
use operator_core::build::Objects;
use operator_core::plan::Restart;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::dereference::{Children, Seen};
use super::{reference, warn};
use crate::context::{Context, FIELD_MANAGER, ObjectKey};
use crate::error::{During, Error, is_conflict, is_invalid, is_not_found};

/// Applies everything, and returns the names of the StatefulSets that changed by it. Pods come last, with all that they need: their account, their
/// configuration, and the Services whose names they resolve.
pub(super) async fn apply(
    context: &Context,
    cluster: &RocketCluster,
    objects: &Objects,
    seen: &Seen,
) -> Result<BTreeSet<String>, Error> {
    each(
        context,
        cluster,
        &objects.service_accounts,
        &seen.service_accounts,
    )
    .await?;
    each(context, cluster, &objects.config_maps, &seen.config_maps).await?;
    each(context, cluster, &objects.services, &seen.services).await?;
    each(
        context,
        cluster,
        &objects.pod_disruption_budgets,
        &seen.pod_disruption_budgets,
    )
    .await?;
    each(
        context,
        cluster,
        &objects.stateful_sets,
        &seen.stateful_sets,
    )
    .await
}

async fn each<K>(
    context: &Context,
    cluster: &RocketCluster,
    objects: &[K],
    children: &Children,
) -> Result<BTreeSet<String>, Error>
where
    K: Kind,
{
    let api = api::<K>(context, cluster);
    let mut changed = BTreeSet::new();
    for object in objects {
        let name = object.name_any();
        // Types of k8s-openapi always serialize.
        let text = serde_json::to_string(object).unwrap_or_default();
        let key = key::<K>(cluster, &name);
        let live = children.get(&name);
        let live_version = live.and_then(|meta| meta.resource_version.as_deref());
        if context.applied.still_holds(&key, &text, live_version) {
            continue;
        }
        if live.is_none() {
            refuse_foreign(&api, cluster, &name).await?;
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let mut applied = match api.patch(&name, &params, &Patch::Apply(object)).await {
            // Lists are merged by a key: a port whose number somebody changed stays beside ours, under the same name. A merge patch replaces them.
            Err(error) if is_invalid(&error) && live.is_some() => {
                tracing::info!(namespace = cluster.namespace(), kind = K::NAME, name, %error, "replacing what was changed by hand");
                let spec = serde_json::to_value(object).unwrap_or_default()["spec"].take();
                let patch = serde_json::json!({"spec": spec});
                // Should this fail, so does the next call, which tells.
                let _ = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
                api.patch(&name, &params, &Patch::Apply(object)).await
            }
            other => other,
        }
        .during(|| format!("apply {} {name}", K::NAME))?;
        // And what was added beside ours without being in the way of it stays, unless it is taken out.
        if let Some(patch) = object.without_strays(&applied) {
            applied = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .during(|| format!("put back {} {name}", K::NAME))?;
        }
        let version = applied.resource_version();
        if version.as_deref() != live_version {
            tracing::info!(
                namespace = cluster.namespace(),
                kind = K::NAME,
                name,
                "applied"
            );
            changed.insert(name);
        }
        context.applied.remember(key, text, version);
    }
    Ok(changed)
}

/// Forced apply would take an object over that belongs to somebody else.
async fn refuse_foreign<K: Kind>(
    api: &Api<K>,
    cluster: &RocketCluster,
    name: &str,
) -> Result<(), Error> {
    let there = api
        .get_metadata_opt(name)
        .await
        .during(|| format!("read {} {name}", K::NAME))?;
    let ours = |meta: &kube::core::PartialObjectMeta<K>| {
        meta.owner_references()
            .iter()
            .any(|owner| Some(&owner.uid) == cluster.metadata.uid.as_ref())
    };
    match there {
        Some(meta) if !ours(&meta) => Err(Error::Foreign {
            kind: K::NAME.to_owned(),
            name: name.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Deletes one pod, if it is still the one that was looked at; its StatefulSet makes it anew.
pub(super) async fn restart(
    context: &Context,
    cluster: &RocketCluster,
    restart: &Restart,
) -> Result<(), Error> {
    let api: Api<Pod> = api::<Pod>(context, cluster);
    let only_this = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(restart.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(&restart.pod, &only_this).await {
        Ok(_) => {
            tracing::info!(
                namespace = cluster.namespace(),
                pod = restart.pod,
                why = restart.why,
                "restarting"
            );
            context.metrics.restarted();
            let note = format!("restarting {}: {}", restart.pod, restart.why);
            context
                .tell(
                    &reference(cluster),
                    EventType::Normal,
                    "RestartingPod",
                    "Roll",
                    &note,
                )
                .await;
            Ok(())
        }
        // It went, or was replaced, meanwhile: looked at again at the next turn.
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
        Err(error) => Err(error).during(|| format!("restart {}", restart.pod)),
    }
}

/// Removes children that the plan does not hold. Claims are not among them: volumes go by their retention policy alone.
pub(super) async fn sweep(
    context: &Context,
    cluster: &RocketCluster,
    objects: &Objects,
    seen: &Seen,
) -> Result<(), Error> {
    remove_others(
        context,
        cluster,
        &objects.stateful_sets,
        &seen.stateful_sets,
    )
    .await?;
    remove_others(
        context,
        cluster,
        &objects.pod_disruption_budgets,
        &seen.pod_disruption_budgets,
    )
    .await?;
    remove_others(context, cluster, &objects.services, &seen.services).await?;
    remove_others(context, cluster, &objects.config_maps, &seen.config_maps).await?;
    remove_others(
        context,
        cluster,
        &objects.service_accounts,
        &seen.service_accounts,
    )
    .await
}

async fn remove_others<K: Kind>(
    context: &Context,
    cluster: &RocketCluster,
    wanted: &[K],
    children: &Children,
) -> Result<(), Error> {
    let wanted: BTreeSet<String> = wanted.iter().map(ResourceExt::name_any).collect();
    for (name, meta) in children {
        if wanted.contains(name) || meta.deletion_timestamp.is_some() {
            continue;
        }
        let only_this = DeleteParams {
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match api::<K>(context, cluster).delete(name, &only_this).await {
            Ok(_) => {
                tracing::info!(
                    namespace = cluster.namespace(),
                    kind = K::NAME,
                    name,
                    "removed: nothing asks for it"
                );
                context.metrics.swept();
                context.applied.forget(&key::<K>(cluster, name));
                warn(
                    context,
                    cluster,
                    "Removed",
                    &format!("removed {} {name}: nothing asks for it", K::NAME),
                )
                .await;
            }
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => return Err(error).during(|| format!("remove {} {name}", K::NAME)),
        }
    }
    Ok(())
}

/// A kind of child.
trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Serialize
    + DeserializeOwned
    + Clone
    + Debug
{
    const NAME: &'static str;

    /// Server-side apply leaves in a list or map what somebody else added to it, where it does harm or makes ours invalid. A merge patch that takes
    /// it out, when there is such a thing.
    fn without_strays(&self, _live: &Self) -> Option<Value> {
        None
    }
}

impl Kind for ServiceAccount {
    const NAME: &'static str = "ServiceAccount";
}
impl Kind for ConfigMap {
    const NAME: &'static str = "ConfigMap";
}
impl Kind for Service {
    const NAME: &'static str = "Service";

    fn without_strays(&self, live: &Self) -> Option<Value> {
        let (ours, live) = (self.spec.as_ref()?, live.spec.as_ref()?);
        let keys = |spec: &ServiceSpec| -> BTreeSet<(i32, Option<String>)> {
            let ports = spec.ports.iter().flatten();
            ports.map(|p| (p.port, p.protocol.clone())).collect()
        };
        let wanted = ours.selector.clone().unwrap_or_default();
        let stray_labels: serde_json::Map<String, Value> = live
            .selector
            .iter()
            .flatten()
            .filter(|(label, _)| !wanted.contains_key(*label))
            .map(|(label, _)| (label.clone(), Value::Null))
            .collect();
        let stray_port = !keys(live).is_subset(&keys(ours));
        (stray_port || !stray_labels.is_empty())
            .then(|| json!({"spec": {"ports": ours.ports, "selector": stray_labels}}))
    }
}
impl Kind for PodDisruptionBudget {
    const NAME: &'static str = "PodDisruptionBudget";
}
impl Kind for StatefulSet {
    const NAME: &'static str = "StatefulSet";
}

fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    context: &Context,
    cluster: &RocketCluster,
) -> Api<K> {
    Api::namespaced(
        context.client.clone(),
        &cluster.namespace().unwrap_or_default(),
    )
}

fn key<K: Kind>(cluster: &RocketCluster, name: &str) -> ObjectKey {
    (
        cluster.namespace().unwrap_or_default(),
        K::NAME,
        name.to_owned(),
    )
}
