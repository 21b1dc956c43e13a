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
        let elects = cluster.mode == Mode::DLedger;
        let size = if !elects && wanted >= live {
            wanted
        } else if let Some(pod) = leaving(cluster, observed, group, live) {
            if live != wanted {
                wait(&mut staged, format!("{pod} is being removed"));
            }
            live
        } else {
            let sizing = Sizing {
                cluster,
                observed,
                seen: Group::of(cluster, observed, group),
                live,
            };
            if elects {
                sizing.members(&mut staged)
            } else {
                sizing.fewer_slaves(&mut staged)
            }
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

/// A group whose size is not the one asked for, or that elects.
struct Sizing<'a> {
    cluster: &'a ValidatedCluster,
    observed: &'a Observed,
    seen: Group,
    /// Pods that there are to be by now.
    live: i32,
}

impl Sizing<'_> {
    fn pod(&self, ordinal: i32) -> String {
        names::broker_pod(&self.cluster.name, self.seen.group, ordinal)
    }

    /// One slave less, if nobody counts on it. Returns how many pods there are to be now.
    fn fewer_slaves(&self, staged: &mut Staged) -> i32 {
        match self.counts_on_the_last() {
            Some(why) => {
                wait(
                    staged,
                    format!("{} goes when {why}", self.pod(self.live - 1)),
                );
                self.live
            }
            None => self.live - 1,
        }
    }

    /// What has to be so before the last slave may go.
    fn counts_on_the_last(&self) -> Option<String> {
        let set = names::broker_group(&self.cluster.name, self.seen.group);
        let master = self.pod(0);
        let (Some(pod), Some(revision)) = (
            self.observed.pod(&master).filter(|pod| !pod.terminating),
            settled_revision(self.observed.stateful_set(&set)),
        ) else {
            return Some(format!("{master} is there"));
        };
        // A master that promises a copy must not lose the last broker that could hold it.
        let objects = build(self.cluster);
        if pod.server.is_none() || outdated(&objects, pod, &revision).is_some() {
            return Some(format!("{master} runs with its new settings"));
        }
        let mut slaves_that_stay = self.seen.brokers.iter();
        let behind = slaves_that_stay
            .find(|b| b.ordinal > 0 && b.ordinal < self.live - 1 && b.in_sync != Some(true))?;
        Some(format!("{} has caught up", behind.pod))
    }

    /// One step towards the members asked for. Returns how many pods there are to be now.
    fn members(&self, staged: &mut Staged) -> i32 {
        let (seen, live) = (&self.seen, self.live);
        let wanted = self.cluster.broker.replicas_per_group;
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
            let answers = self
                .observed
                .pod(&broker.pod)
                .is_some_and(|pod| pod.server.is_some() && !pod.terminating);
            if !is_member && answers {
                staged.step = step(
                    MemberChange::Add {
                        address: raft_address(self.cluster, seen.group, ordinal),
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
