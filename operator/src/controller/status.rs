//! Writes the status, when it differs from the one that is there, and an event when a condition turns.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::EventType;
use kube::{Api, Resource, ResourceExt};
use operator_core::api::{RocketCluster, RocketClusterStatus};
use operator_core::plan::{Observed, Plan};
use operator_core::status::{self, DEGRADED, READY};
use operator_core::validate::Invalid;
use serde_json::json;

use super::{Guarded, reference, warn};
use crate::context::{Context, FIELD_MANAGER};
use crate::error::{During, Error, is_not_found};

/// Now, in whole seconds, as the API server keeps times.
pub(super) fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// After a plan was carried out. Returns the status as it is now.
pub(super) async fn of(
    context: &Context,
    cluster: &RocketCluster,
    plan: &Plan,
    observed: &Observed,
) -> Result<Option<RocketClusterStatus>, Error> {
    let status = status::status(plan, observed, cluster.status.as_ref(), &now());
    let before = cluster.status.as_ref();
    // Each write makes another look, so figures that always move would keep the operator running in circles.
    let same_but_figures =
        before.is_some_and(|b| status::without_figures(b) == status::without_figures(&status));
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    if same_but_figures && !context.figures_due(&namespace, &name) {
        return Ok(Some(status));
    }
    context.figures_written(&namespace, &name);
    tell_turns(context, cluster, cluster.status.as_ref(), &status).await;
    write(context, cluster, cluster.status.as_ref(), &status).await?;
    Ok(Some(status))
}

/// The spec cannot be used.
pub(super) async fn invalid(
    context: &Context,
    cluster: &RocketCluster,
    invalid: &Invalid,
) -> Result<(), Error> {
    let status = status::refused(
        cluster.metadata.generation,
        "InvalidSpec",
        &invalid.to_string(),
        cluster.status.as_ref(),
        &now(),
    );
    tell_turns(context, cluster, cluster.status.as_ref(), &status).await;
    write(context, cluster, cluster.status.as_ref(), &status).await
}

/// A step failed; with a plan, all else is told as it is.
pub(super) async fn failed(
    context: &Context,
    cluster: &RocketCluster,
    seen: Option<(&Plan, &Observed)>,
    error: &Error,
) -> Result<(), Error> {
    let (before, now) = (cluster.status.as_ref(), now());
    let known = match seen {
        Some((plan, observed)) => status::status(plan, observed, before, &now),
        None => before.cloned().unwrap_or_default(),
    };
    let generation = cluster.metadata.generation;
    let status = status::failed(
        known,
        generation,
        error.reason(),
        &error.to_string(),
        before,
        &now,
    );
    tell_turns(context, cluster, before, &status).await;
    write(context, cluster, before, &status).await
}

/// The object cannot even be read as a RocketCluster: an older or damaged definition let it in. Its own status cannot be read either.
pub(super) async fn unreadable(
    context: &Context,
    object: &Guarded,
    error: &str,
) -> Result<(), Error> {
    let message = format!("this object cannot be read as a RocketCluster: {error}");
    tracing::warn!(
        namespace = object.namespace(),
        name = object.name_any(),
        error,
        "not readable"
    );
    let status = status::refused(
        object.meta().generation,
        "NotReadable",
        &message,
        None,
        &now(),
    );
    warn(context, object, "NotReadable", &message).await;
    match write(context, object, None, &status).await {
        // The API server may refuse any write to such an object; the event has told.
        Err(refused) => {
            tracing::debug!(%refused, "status not written");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn write(
    context: &Context,
    object: &(impl Resource<DynamicType = ()> + Debug),
    before: Option<&RocketClusterStatus>,
    status: &RocketClusterStatus,
) -> Result<(), Error> {
    if before == Some(status) {
        return Ok(());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let api: Api<Guarded> = Api::namespaced(context.client.clone(), &namespace);
    let patch = json!({
        "apiVersion": RocketCluster::api_version(&()),
        "kind": RocketCluster::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    match api
        .patch_status(
            &name,
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(patch),
        )
        .await
    {
        Ok(_) => Ok(()),
        // Deleted meanwhile.
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error).during(|| format!("write the status of {name}")),
    }
}

/// An event for each turn of Ready, and for whatever newly needs the user.
async fn tell_turns(
    context: &Context,
    cluster: &RocketCluster,
    before: Option<&RocketClusterStatus>,
    after: &RocketClusterStatus,
) {
    for condition in &after.conditions {
        let old = before.and_then(|status| {
            status
                .conditions
                .iter()
                .find(|c| c.type_ == condition.type_)
        });
        let turned = old.map(|c| &c.status) != Some(&condition.status);
        let (type_, tell) = match condition.type_.as_str() {
            READY if condition.status == "True" => (EventType::Normal, turned),
            READY => (EventType::Warning, turned && old.is_some()),
            DEGRADED if condition.status == "True" => (
                EventType::Warning,
                turned || says_something_else(old, condition),
            ),
            _ => continue,
        };
        if tell {
            context
                .tell(
                    &reference(cluster),
                    type_,
                    &condition.reason,
                    "Reconcile",
                    &condition.message,
                )
                .await;
        }
    }
}

fn says_something_else(old: Option<&Condition>, new: &Condition) -> bool {
    old.is_none_or(|old| old.reason != new.reason || old.message != new.message)
}
