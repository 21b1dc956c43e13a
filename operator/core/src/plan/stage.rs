//! Sizes on the way to the one asked for, and who belongs to a group that elects its master.
//!
//! Slaves come at once and go one by one, and only when nobody counts on them any more: the master of the group runs as asked, and those that stay have
//! caught up. Members of a group that elects come and go one at a time, because each changes what a majority is: a new one is started, taken in, and
//! has caught up before the next; one that goes hands the leadership over, is let go by the others, and only then stopped. A member that lost its volume
//! stays a member: it catches up by itself, and its word does not count until it has.

use super::group::{Elected, Group, behind};
use super::{MemberChange, MemberStep, Observed, Refusal, outdated, settled_revision};
use crate::api::Mode;
use crate::build::{build, names, raft_address};
use crate::validate::ValidatedCluster;

/// What is decided about sizes.
#[derive(Default)]
pub(super) struct Staged {
    pub(super) step: Option<MemberStep>,
    pub(super) waiting: Option<String>,
    pub(super) refusals: Vec<Refusal>,
}

/// Decides how many brokers every group has for now, and writes it into the cluster.
pub(super) fn stage(cluster: &mut ValidatedCluster, observed: &Observed) -> Staged {
    let mut staged = Staged::default();
    let wanted = cluster.broker.replicas_per_group;
    for group in 0..cluster.broker.groups {
        let Some(live) = observed.replicas_of(&names::broker_group(&cluster.name, group)) else {
            continue;
        };
        cluster.broker.staged.insert(group, live);
        let size = if cluster.mode == Mode::DLedger {
            members(cluster, observed, group, live, &mut staged)
        } else if wanted >= live {
            wanted
        } else {
            fewer_slaves(cluster, observed, group, live, &mut staged)
        };
        if size == wanted {
            cluster.broker.staged.remove(&group);
        } else {
            cluster.broker.staged.insert(group, size);
        }
    }
    staged
}

fn wait(staged: &mut Staged, why: String) {
    staged.waiting.get_or_insert(why);
}

/// The pod that a StatefulSet has just let go, while it is still there.
fn leaving(
    cluster: &ValidatedCluster,
    observed: &Observed,
    group: i32,
    live: i32,
) -> Option<String> {
    (live..=crate::api::MAX_REPLICAS_PER_GROUP)
        .map(|ordinal| names::broker_pod(&cluster.name, group, ordinal))
        .find(|pod| observed.pod(pod).is_some())
}

fn fewer_slaves(
    cluster: &ValidatedCluster,
    observed: &Observed,
    group: i32,
    live: i32,
    staged: &mut Staged,
) -> i32 {
    if let Some(pod) = leaving(cluster, observed, group, live) {
        wait(staged, format!("{pod} is being removed"));
        return live;
    }
    let set = names::broker_group(&cluster.name, group);
    let master = names::broker_pod(&cluster.name, group, 0);
    let goes = names::broker_pod(&cluster.name, group, live - 1);
    let hold = |why: String| format!("{goes} goes when {why}");
    let (Some(pod), Some(revision)) = (
        observed.pod(&master).filter(|pod| !pod.terminating),
        settled_revision(observed.stateful_set(&set)),
    ) else {
        wait(staged, hold(format!("{master} is there")));
        return live;
    };
    // A master that promises a copy must not lose the last broker that could hold it.
    let objects = build(cluster);
    if pod.server.is_none() || outdated(&objects, pod, &revision).is_some() {
        wait(staged, hold(format!("{master} runs with its new settings")));
        return live;
    }
    let seen = Group::of(cluster, observed, group);
    let stays = seen.brokers.iter().filter(|b| b.ordinal < live - 1);
    if let Some(behind) = stays
        .filter(|b| b.ordinal > 0)
        .find(|b| b.in_sync != Some(true))
    {
        wait(staged, hold(format!("{} has caught up", behind.pod)));
        return live;
    }
    live - 1
}

/// One step towards the members asked for. Returns how many pods there are to be now.
fn members(
    cluster: &ValidatedCluster,
    observed: &Observed,
    group: i32,
    live: i32,
    staged: &mut Staged,
) -> i32 {
    let wanted = cluster.broker.replicas_per_group;
    let seen = Group::of(cluster, observed, group);
    if let Some(pod) = leaving(cluster, observed, group, live) {
        if live != wanted {
            wait(staged, format!("{pod} is being removed"));
        }
        return live;
    }
    let Some(elected) = &seen.elected else {
        if live != wanted {
            wait(
                staged,
                format!("{} changes its size when it has a leader", seen.name),
            );
        }
        return live;
    };
    if staged.step.is_some() {
        return live;
    }
    let step = |change: MemberChange, why: String| {
        seen.master.clone().map(|leader| MemberStep {
            group: seen.name.clone(),
            leader,
            change,
            why,
        })
    };
    // Who should be a member: pods that are there and stay. The one that goes is still one until the others have let it go.
    let stays = live.min(wanted.max(live - 1));
    for ordinal in 0..stays {
        let id = names::member_id(ordinal);
        let Some(broker) = seen.broker(ordinal) else {
            continue;
        };
        let is_member = elected.members.contains(&id);
        let answers = observed
            .pod(&broker.pod)
            .is_some_and(|pod| pod.server.is_some() && !pod.terminating);
        if !is_member && answers {
            staged.step = step(
                MemberChange::Add {
                    address: raft_address(cluster, group, ordinal),
                    id,
                },
                format!("{} joins", broker.pod),
            );
            return live;
        }
        // A group grows only while it is whole.
        if live < wanted && broker.in_sync != Some(true) {
            let how = broker.lag_bytes.map_or_else(
                || "is a member".to_owned(),
                |lag| format!("has caught up, it is {}", behind(lag)),
            );
            wait(
                staged,
                format!("{} grows further when {} {how}", seen.name, broker.pod),
            );
            return live;
        }
        if live != wanted && broker.voter != Some(true) {
            wait(
                staged,
                format!("{} changes further when {} votes", seen.name, broker.pod),
            );
            return live;
        }
    }
    // Members without a pod: a removal that was cut short.
    let stray = elected
        .members
        .iter()
        .find(|id| names::member_ordinal(id).is_none_or(|ordinal| ordinal >= live));
    let goes = match stray {
        Some(id) => Some(id.clone()),
        None if live > wanted => {
            Some(names::member_id(live - 1)).filter(|id| elected.members.contains(id))
        }
        None => None,
    };
    if let Some(id) = goes {
        if let Some(refusal) = breaks(&seen.name, elected, &id) {
            staged.refusals.push(refusal);
        } else if elected.leader_id == id {
            let heir = elected
                .active
                .iter()
                .find(|voter| **voter != id)
                .cloned()
                .unwrap_or_default();
            staged.step = step(
                MemberChange::Transfer { to: heir },
                format!("{id} of {} leads and is to go", seen.name),
            );
        } else {
            staged.step = step(
                MemberChange::Remove { id: id.clone() },
                format!("{wanted} members are asked for"),
            );
        }
        return live;
    }
    match live.cmp(&wanted) {
        std::cmp::Ordering::Less => live + 1,
        std::cmp::Ordering::Greater => live - 1,
        std::cmp::Ordering::Equal => live,
    }
}

/// Why a member cannot be let go: too few of the others could go on without it.
fn breaks(name: &str, elected: &Elected, id: &str) -> Option<Refusal> {
    let (left, needed) = elected.after_removal(id);
    (left < needed).then(|| Refusal {
        reason: QUORUM_AT_RISK,
        message: format!(
            "{id} of {name} is not removed: {left} of the {} other members are up and caught up, and {needed} are needed",
            elected.voters.iter().filter(|voter| *voter != id).count()
        ),
    })
}

/// Something would leave a group that elects without a majority.
pub const QUORUM_AT_RISK: &str = "QuorumAtRisk";
