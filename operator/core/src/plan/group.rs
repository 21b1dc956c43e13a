//! A group of brokers as seen now: who takes its writes, and how far behind the others are.

use super::{Member, Observed, ObservedPod, Replication};
use crate::api::{Mode, Role};
use crate::build::{configured_role, names};
use crate::validate::ValidatedCluster;

/// Bytes behind its master up to which a broker counts as caught up: the broker's own bound for its readiness (`haReadyMaxLagBytes`, 8 MiB) and as
/// much again, because the two ends of the log are asked for one after the other. What is missing then flows while the master drains.
pub const MAX_LAG_BYTES: i64 = 16 << 20;

/// One broker of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub pod: String,
    pub ordinal: i32,
    /// Unknown while a group that elects has not, or its pod does not answer.
    pub role: Option<Role>,
    /// The id under which the name servers list it.
    pub broker_id: Option<i64>,
    /// Behind its master, as far as both are known; 0 for the master itself.
    pub lag_bytes: Option<i64>,
    /// Whether it follows and is caught up; unknown without a master to ask. True for the master itself.
    pub in_sync: Option<bool>,
    /// Whether it counts in elections, where there are any and a leader tells.
    pub voter: Option<bool>,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub group: i32,
    /// `brokerName`.
    pub name: String,
    pub brokers: Vec<Standing>,
    /// Who takes the writes.
    pub master: Option<String>,
    /// Where the log that every reader may see ends, at the master.
    pub commit_offset: Option<i64>,
    /// What the leader says, where one is elected.
    pub elected: Option<Elected>,
}

/// A group that elected its master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elected {
    pub leader_id: String,
    pub term: i64,
    pub commit_index: i64,
    pub applied_index: i64,
    /// Every member that the leader knows, pods that are not wanted any more too.
    pub members: Vec<String>,
    pub voters: Vec<String>,
    /// Voters that are there and have the whole log.
    pub active: Vec<String>,
}

impl Elected {
    /// Voters that must agree.
    pub fn quorum(voters: usize) -> usize {
        voters / 2 + 1
    }

    /// How many voters with the whole log remain when a member is away, and how many are needed.
    pub fn without(&self, id: &str) -> (usize, usize) {
        let left = self.active.iter().filter(|voter| *voter != id).count();
        (left, Self::quorum(self.voters.len()))
    }

    /// The same, when the member is no member any more.
    pub fn after_removal(&self, id: &str) -> (usize, usize) {
        let voters = self.voters.iter().filter(|voter| *voter != id).count();
        (self.without(id).0, Self::quorum(voters))
    }
}

impl Group {
    /// Looks at one group, at those of its pods that are asked for now.
    pub fn of(cluster: &ValidatedCluster, observed: &Observed, group: i32) -> Self {
        let name = names::broker_name(&cluster.broker.name_prefix, group);
        let pods: Vec<(i32, Option<&ObservedPod>)> = (0..cluster.broker.replicas(group))
            .map(|ordinal| {
                let pod = names::broker_pod(&cluster.name, group, ordinal);
                (ordinal, observed.pod(&pod))
            })
            .collect();
        let mut seen = Self {
            group,
            name,
            ..Self::default()
        };
        if cluster.mode == Mode::DLedger {
            seen.look_at_members(cluster, &pods);
        } else {
            seen.look_at_slaves(cluster, &pods);
        }
        seen
    }

    /// One of its brokers.
    pub fn broker(&self, ordinal: i32) -> Option<&Standing> {
        self.brokers.iter().find(|b| b.ordinal == ordinal)
    }

    fn standing(&self, cluster: &ValidatedCluster, ordinal: i32) -> Standing {
        Standing {
            pod: names::broker_pod(&cluster.name, self.group, ordinal),
            ordinal,
            ..Standing::default()
        }
    }

    fn look_at_slaves(&mut self, cluster: &ValidatedCluster, pods: &[(i32, Option<&ObservedPod>)]) {
        let replication = |pod: Option<&ObservedPod>| {
            let server = pod.and_then(|pod| pod.server.as_ref());
            server.map_or(Replication::Unknown, |server| server.replication.clone())
        };
        let master = pods
            .first()
            .map_or(Replication::Unknown, |(_, pod)| replication(*pod));
        for (ordinal, pod) in pods {
            let mut broker = self.standing(cluster, *ordinal);
            broker.role = configured_role(cluster.mode, *ordinal);
            broker.broker_id = pod.and_then(|pod| pod.server.as_ref()?.broker_id);
            match (&master, broker.role) {
                (Replication::Master { .. }, Some(Role::Master)) => {
                    broker.lag_bytes = Some(0);
                    broker.in_sync = Some(true);
                }
                (Replication::Master { end, slaves }, _) => {
                    if let Replication::Slave { end: own } = replication(*pod) {
                        broker.lag_bytes = Some((end - own).max(0));
                    }
                    let caught_up = broker.lag_bytes.is_some_and(|lag| lag <= MAX_LAG_BYTES);
                    // A slave that the master does not name may stand behind an address of somebody else: what it says itself counts then.
                    let ip = pod.and_then(|pod| pod.ip.as_deref());
                    let known = slaves.iter().find(|s| Some(s.ip.as_str()) == ip);
                    let follows = known.map_or(pod.is_some_and(|pod| pod.ready), |s| s.in_sync);
                    broker.in_sync = Some(caught_up && follows);
                }
                _ => {}
            }
            self.brokers.push(broker);
        }
        if let Replication::Master { end, .. } = master {
            self.commit_offset = Some(end);
        }
        let serves = |pod: &&ObservedPod| {
            pod.ready && pod.server.as_ref().is_some_and(|server| server.registered)
        };
        let first = pods.first().and_then(|(_, pod)| *pod).filter(serves);
        self.master = first.map(|pod| pod.name.clone());
    }

    fn look_at_members(
        &mut self,
        cluster: &ValidatedCluster,
        pods: &[(i32, Option<&ObservedPod>)],
    ) {
        let member = |pod: Option<&ObservedPod>| -> Option<Member> {
            match &pod?.server.as_ref()?.replication {
                Replication::Member(member) => Some(member.clone()),
                _ => None,
            }
        };
        // Two may believe that they lead while one of them has not heard yet: the later election counts.
        let leader: Option<Member> = pods
            .iter()
            .filter_map(|(_, pod)| member(*pod))
            .filter(|member| member.leads)
            .max_by_key(|member| member.term);
        for (ordinal, pod) in pods {
            let mut broker = self.standing(cluster, *ordinal);
            broker.broker_id = pod.and_then(|pod| pod.server.as_ref()?.broker_id);
            let own = member(*pod);
            if let Some(leader) = &leader {
                let id = names::member_id(*ordinal);
                let leads = leader.id == id;
                let peer = leader.peers.iter().find(|peer| peer.id == id);
                broker.role =
                    own.is_some()
                        .then_some(if leads { Role::Master } else { Role::Slave });
                broker.lag_bytes = peer.map(|peer| if leads { 0 } else { peer.lag_bytes });
                broker.in_sync = Some(peer.is_some_and(|peer| leads || peer.caught_up()));
                broker.voter = Some(peer.is_some_and(|peer| peer.voter));
                if leads {
                    self.master = Some(broker.pod.clone());
                }
            }
            self.brokers.push(broker);
        }
        let Some(leader) = leader else { return };
        self.commit_offset = Some(leader.commit_offset);
        let ids = |wanted: &dyn Fn(&super::Peer) -> bool| -> Vec<String> {
            let peers = leader.peers.iter().filter(|peer| wanted(peer));
            peers.map(|peer| peer.id.clone()).collect()
        };
        self.elected = Some(Elected {
            members: ids(&|_| true),
            voters: ids(&|peer| peer.voter),
            active: ids(&|peer| peer.voter && (peer.id == leader.id || peer.caught_up())),
            leader_id: leader.id.clone(),
            term: leader.term,
            commit_index: leader.commit_index,
            applied_index: leader.applied_index,
        });
    }
}

/// "more than 64 MiB behind": in steps, so that a condition does not change with every byte.
pub fn behind(lag_bytes: i64) -> String {
    let mib = (lag_bytes.max(0) >> 20).max(1);
    let step = 1_i64 << (63 - mib.leading_zeros());
    if step >= 1024 {
        format!("more than {} GiB behind", step >> 10)
    } else {
        format!("more than {step} MiB behind")
    }
}
