//! What is told to running brokers: keys that they take at once, and changes of who belongs to a group.

use kube::ResourceExt;
use kube::runtime::events::EventType;
use operator_core::api::RocketCluster;
use operator_core::build::BROKER_PORT;
use operator_core::plan::{Configure, MemberStep, Observed, Refusal};
use operator_core::status::host_port;

use super::reference;
use crate::context::Context;

fn address(observed: &Observed, pod: &str) -> Option<String> {
    let ip = observed.pod(pod)?.ip.as_ref()?;
    Some(host_port(ip, BROKER_PORT))
}

/// Asks a leader for a change of its group's members. The error is a sentence; whether it took effect is seen at the next look.
pub(super) async fn change_members(
    context: &Context,
    cluster: &RocketCluster,
    step: &MemberStep,
    observed: &Observed,
) -> Result<(), String> {
    let Some(leader) = address(observed, &step.leader) else {
        return Err(format!("{} has no address", step.leader));
    };
    if let Err(said) = context.inspect.change_members(&leader, &step.change).await {
        return Err(format!(
            "{} has not done it yet ({}): {said}",
            step.leader, step.change
        ));
    }
    let note = format!("{} {}: {}", step.group, step.change, step.why);
    tracing::info!(namespace = cluster.namespace(), note, "members change");
    let about = reference(cluster);
    context
        .tell(&about, EventType::Normal, "ChangingMembers", "Scale", &note)
        .await;
    Ok(())
}

/// Tells brokers their keys; what one refuses is returned, and stops no other.
pub(super) async fn configure(
    context: &Context,
    cluster: &RocketCluster,
    told: &[Configure],
    observed: &Observed,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for Configure { pod, changes } in told {
        let Some(broker) = address(observed, pod) else {
            continue;
        };
        let pairs: Vec<String> = changes.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let pairs = pairs.join(", ");
        match context.inspect.configure(&broker, changes).await {
            Ok(()) => {
                tracing::info!(namespace = cluster.namespace(), pod, pairs, "configured");
                let note = format!("{pod} runs with {pairs}, without a restart");
                let about = reference(cluster);
                context
                    .tell(
                        &about,
                        EventType::Normal,
                        "ConfigChanged",
                        "Configure",
                        &note,
                    )
                    .await;
            }
            Err(said) => refusals.push(Refusal {
                reason: "ConfigRefused",
                message: format!("spec.broker.config: {pod} does not take {pairs}: {said}"),
            }),
        }
    }
    refusals
}
