//! The controller of a local cluster: keeps one task a pod, applies a manifest in order, and stops everything in order.
//!
//! Level-based like the operator: a manifest is compared with what is wanted of each pod now, so that applying it again, or a newer one half-way, is
//! safe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::manifest::{self, Manifest};
use super::members;
use super::network::{self, Addresses};
use super::plan::{self, Duty, Plan, Pod, Program};
use super::pod::{Desired, keep};
use super::standing;
use super::state::{ClusterFolder, DataRoot, Lock, Phase, PodPhase, PodState, State};

/// What is known of the pods, for everybody who waits for it; every change also goes to `state.json`.
pub(crate) struct Board {
    folder: ClusterFolder,
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

impl Board {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        let before = state.clone();
        change(&mut state);
        if *state == before {
            return;
        }
        if let Err(e) = self.folder.write_state(&state) {
            tracing::warn!("{e:#}");
        }
        drop(state);
        self.version.send_modify(|v| *v += 1);
    }

    pub(crate) fn update(&self, pod: &str, change: impl FnOnce(&mut PodState)) {
        self.change(|state| {
            if let Some(found) = state.pods.iter_mut().find(|p| p.name == pod) {
                change(found);
            }
        });
    }

    pub(crate) fn state(&self) -> State {
        self.state.lock().clone()
    }

    async fn until(&self, mut done: impl FnMut(&State) -> bool) {
        let mut version = self.version.subscribe();
        while !done(&self.state.lock()) {
            // The sender is `self`, so this cannot fail.
            let _ = version.changed().await;
        }
    }

    async fn until_pod(&self, name: &str, mut done: impl FnMut(&PodState) -> bool) {
        self.until(|s| s.pods.iter().find(|p| p.name == name).is_none_or(&mut done))
            .await;
    }
}

struct Kept {
    desired: watch::Sender<Desired>,
    pod: Arc<Pod>,
    task: JoinHandle<()>,
}

pub(crate) struct Supervisor {
    folder: ClusterFolder,
    board: Arc<Board>,
    pods: BTreeMap<String, Kept>,
    /// What was applied last, for the rules about changes.
    applied: Option<Value>,
    _lock: Lock,
}

/// Everything is prepared that can fail because of the user, before anything starts.
pub(crate) fn prepare(
    root: &DataRoot,
    folder: &ClusterFolder,
    manifest: &Manifest,
    single_address: bool,
) -> Result<Plan> {
    let mut addresses = match folder.addresses()? {
        Some(addresses) => addresses,
        None => {
            let many = !single_address && network::many_addresses();
            let seed = format!(
                "{}/{}/{}",
                root.path().display(),
                folder.namespace,
                folder.name
            );
            Addresses::new(network::choose(
                &seed,
                &root.networks(),
                many,
                network::is_free,
            )?)
        }
    };
    let plan = plan::plan(&manifest.objects, &mut addresses, &folder.path)?;
    std::fs::create_dir_all(folder.logs())
        .with_context(|| format!("cannot make the folder {}", folder.logs().display()))?;
    folder.write_addresses(&addresses)?;
    Ok(plan)
}

impl Supervisor {
    pub(crate) fn new(folder: ClusterFolder, lock: Lock) -> Result<Self> {
        let state = State {
            namespace: folder.namespace.clone(),
            name: folder.name.clone(),
            supervisor: std::process::id(),
            phase: Phase::Starting,
            revision: 0,
            problem: String::new(),
            name_servers: Vec::new(),
            data: folder.path.clone(),
            pods: Vec::new(),
        };
        folder.write_state(&state)?;
        let board = Arc::new(Board {
            folder: folder.clone(),
            state: Mutex::new(state),
            version: watch::Sender::new(0),
        });
        Ok(Self {
            folder,
            board,
            pods: BTreeMap::new(),
            applied: None,
            _lock: lock,
        })
    }

    /// Runs until told to stop. `show` is called with every change.
    pub(crate) async fn run(
        mut self,
        manifest: Manifest,
        plan: Plan,
        mut show: impl FnMut(&State),
    ) -> Result<()> {
        let mut signals = Signals::new()?;
        let mut version = self.board.version.subscribe();
        let board = self.board.clone();
        let mut next = Some((manifest.value, plan));
        loop {
            let told = {
                let applying = async {
                    if let Some((value, plan)) = next.take() {
                        self.apply(value, &plan).await;
                    }
                };
                tokio::pin!(applying);
                let mut applied = false;
                loop {
                    tokio::select! {
                        () = &mut applying, if !applied => applied = true,
                        told = signals.next() => break told,
                        _ = version.changed() => show(&board.state()),
                    }
                }
            };
            match told {
                Told::Stop => break,
                Told::Apply => next = self.read_again(),
            }
        }
        self.stop(&mut signals, &mut show).await;
        Ok(())
    }

    /// A manifest that cannot be used is told to whoever gave it, and nothing changes.
    fn read_again(&self) -> Option<(Value, Plan)> {
        let read = || -> Result<(Value, Plan)> {
            let path = self.folder.manifest();
            let manifest = manifest::check(&path, &manifest::read(&path)?, self.applied.as_ref())?;
            let mut addresses = self
                .folder
                .addresses()?
                .context("addresses.json is missing")?;
            let plan = plan::plan(&manifest.objects, &mut addresses, &self.folder.path)?;
            self.folder.write_addresses(&addresses)?;
            Ok((manifest.value, plan))
        };
        match read() {
            Ok(read) => Some(read),
            Err(e) => {
                self.board.change(|s| {
                    s.revision += 1;
                    s.problem = format!("{e:#}");
                    s.phase = Phase::Running;
                });
                None
            }
        }
    }

    async fn apply(&mut self, value: Value, plan: &Plan) {
        self.applied = Some(value);
        let mut revision = 0;
        self.board.change(|s| {
            s.revision += 1;
            s.phase = if s.revision == 1 {
                Phase::Starting
            } else {
                Phase::Updating
            };
            s.problem.clear();
            s.name_servers = plan.name_servers.iter().map(ToString::to_string).collect();
            revision = s.revision;
        });
        if let Err(e) = self.folder.replace("hosts", plan.hosts.as_bytes()) {
            self.board.change(|s| s.problem = format!("{e:#}"));
        }
        // Left behind by an application that a newer manifest cut short.
        let stopping = |kept: &Kept| matches!(*kept.desired.borrow(), Desired::Stop);
        let leaving: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, kept)| stopping(kept))
            .map(|(name, _)| name.clone())
            .collect();
        for name in leaving {
            self.remove(&name).await;
        }
        for program in [Program::NameServer, Program::Broker] {
            let pods: Vec<Arc<Pod>> = plan
                .pods
                .iter()
                .filter(|p| p.program == program)
                .cloned()
                .map(Arc::new)
                .collect();
            let (old, new): (Vec<_>, Vec<_>) = pods
                .into_iter()
                .partition(|p| self.pods.contains_key(&p.name));
            for pod in &new {
                self.start(pod, revision);
            }
            let stays = |name: &String| plan.pods.iter().any(|p| p.name == *name);
            let resized = !new.is_empty() || !self.pods.keys().all(stays);
            if program == Program::Broker && resized {
                self.settle_members(plan).await;
            }
            for pod in &new {
                // Brokers look for name servers that listen; those are ready only when brokers have come.
                self.board
                    .until_pod(&pod.name, |p| {
                        if program == Program::NameServer {
                            p.live
                        } else {
                            p.phase == PodPhase::Ready
                        }
                    })
                    .await;
            }
            self.roll(old, plan, revision).await;
        }
        self.settle_members(plan).await;
        let gone: Vec<String> = self
            .pods
            .keys()
            .filter(|name| !plan.pods.iter().any(|p| p.name == **name))
            .cloned()
            .collect();
        for name in gone {
            self.remove(&name).await;
        }
        self.board
            .until(|s| s.pods.iter().all(|p| p.phase == PodPhase::Ready))
            .await;
        self.board.change(|s| s.phase = Phase::Running);
    }

    fn start(&mut self, pod: &Arc<Pod>, revision: u64) {
        self.board.change(|s| {
            s.pods.push(PodState {
                name: pod.name.clone(),
                program: pod.program.command().to_owned(),
                duty: pod.duty,
                address: pod.address.to_string(),
                phase: PodPhase::Pending,
                live: false,
                message: String::new(),
                pid: None,
                restarts: 0,
                revision,
                since: 0,
                ready_after_ms: None,
                log: pod.log.clone(),
            });
            s.pods
                .sort_by_key(|p| (p.program != Program::NameServer.command(), p.name.clone()));
        });
        let (desired, receiver) = watch::channel(Desired::Run {
            pod: pod.clone(),
            revision,
        });
        let task = tokio::spawn(keep(pod.name.clone(), receiver, self.board.clone()));
        self.pods.insert(
            pod.name.clone(),
            Kept {
                desired,
                pod: pod.clone(),
                task,
            },
        );
    }

    /// Waits until every elected group has the members of the plan. A pod that goes is let go by its group before it is stopped.
    async fn settle_members(&self, plan: &Plan) {
        let wanted: BTreeMap<&String, &Pod> = plan
            .pods
            .iter()
            .filter(|pod| pod.duty == Some(Duty::Elected))
            .map(|pod| (&pod.group, pod))
            .collect();
        for (group, one) in wanted {
            let runs = self.pods.values().map(|kept| kept.pod.clone());
            let pods: Vec<Arc<Pod>> = runs.filter(|pod| pod.group == *group).collect();
            members::settle(&pods, &one.members, |why| {
                for pod in &pods {
                    self.board.update(&pod.name, |p| {
                        if p.phase != PodPhase::Ready {
                            p.message = why.to_owned();
                        }
                    });
                }
            })
            .await;
        }
    }

    /// Restarts the pods that have to run with something else, one at a time, each waited for, in the order of their roles: who copies before who is
    /// copied from, so that a master finds its slaves again and an elected group hands over once.
    async fn roll(&mut self, pods: Vec<Arc<Pod>>, plan: &Plan, revision: u64) {
        let mut left = Vec::new();
        for pod in pods {
            let Some(kept) = self.pods.get_mut(&pod.name) else {
                continue;
            };
            if !kept.pod.needs_no_restart(&pod) {
                left.push(pod);
            } else if kept.pod != pod {
                // For its next start.
                kept.pod = pod.clone();
                kept.desired.send_replace(Desired::Run { pod, revision });
            }
        }
        loop {
            // Asked again each time, because a restart can move the lead.
            let masters = if left.iter().any(|pod| pod.duty == Some(Duty::Elected)) {
                standing::masters(&plan.name_servers, &plan.pods).await
            } else {
                BTreeSet::new()
            };
            let Some(pod) = next_to_roll(&left, &masters) else {
                return;
            };
            left.retain(|other| other.name != pod.name);
            let Some(kept) = self.pods.get_mut(&pod.name) else {
                continue;
            };
            kept.pod = pod.clone();
            let name = pod.name.clone();
            kept.desired.send_replace(Desired::Run { pod, revision });
            self.board
                .until_pod(&name, |p| {
                    p.revision == revision && p.phase == PodPhase::Ready
                })
                .await;
        }
    }

    async fn remove(&mut self, name: &str) {
        if let Some(kept) = self.pods.get(name) {
            kept.desired.send_replace(Desired::Stop);
            self.board
                .until_pod(name, |p| p.phase == PodPhase::Stopped)
                .await;
        }
        self.pods.remove(name);
        self.board.change(|s| s.pods.retain(|p| p.name != name));
    }

    /// Masters first, while their slaves can still take what is on its way; name servers last, so that brokers can say goodbye to them. A second signal
    /// waits no longer.
    async fn stop(mut self, signals: &mut Signals, show: &mut impl FnMut(&State)) {
        self.board.change(|s| s.phase = Phase::Stopping);
        for stage in 0..=LAST_TO_STOP {
            let mut going: BTreeMap<String, Kept> = BTreeMap::new();
            let names: Vec<String> = self
                .pods
                .iter()
                .filter(|(_, k)| stage_of_stop(&k.pod) == stage)
                .map(|(n, _)| n.clone())
                .collect();
            for name in names {
                if let Some(kept) = self.pods.remove(&name) {
                    kept.desired.send_replace(Desired::Stop);
                    going.insert(name, kept);
                }
            }
            let mut version = self.board.version.subscribe();
            for (name, kept) in &mut going {
                loop {
                    tokio::select! {
                        ended = &mut kept.task => {
                            if let Err(e) = ended {
                                tracing::error!("{name}: {e}");
                            }
                            break;
                        }
                        _ = signals.next() => {
                            kept.desired.send_replace(Desired::Kill);
                        }
                        _ = version.changed() => show(&self.board.state()),
                    }
                }
            }
            show(&self.board.state());
        }
    }
}

/// Which of the pods is restarted next: group by group, who copies first, then whoever others copy from.
fn next_to_roll(left: &[Arc<Pod>], masters: &BTreeSet<String>) -> Option<Arc<Pod>> {
    let rank = |pod: &Pod| match pod.duty {
        None | Some(Duty::Slave) => 0,
        Some(Duty::Elected) => 1 + i32::from(masters.contains(&pod.name)),
        Some(Duty::Master) => 2,
    };
    left.iter()
        .min_by_key(|pod| (pod.group.clone(), rank(pod), pod.name.clone()))
        .cloned()
}

const LAST_TO_STOP: u8 = 2;

/// Pods of one stage stop together. Nobody knows who leads an elected group a moment later, so its members are told at once.
fn stage_of_stop(pod: &Pod) -> u8 {
    match pod.duty {
        Some(Duty::Master | Duty::Elected) => 0,
        Some(Duty::Slave) => 1,
        None => LAST_TO_STOP,
    }
}

enum Told {
    Stop,
    Apply,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    apply: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let of = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hangup: of(SignalKind::hangup())?,
            apply: of(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Stop,
            _ = self.apply.recv() => Told::Apply,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    fn pod(name: &str, group: &str, duty: Option<Duty>) -> Arc<Pod> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        Arc::new(Pod {
            name: name.to_owned(),
            program: duty.map_or(Program::NameServer, |_| Program::Broker),
            duty,
            group: group.to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
            files: BTreeMap::new(),
            folders: Vec::new(),
            log: "log".into(),
            address,
            http: address,
            grace: Duration::ZERO,
            members: BTreeMap::new(),
        })
    }

    fn order(mut left: Vec<Arc<Pod>>, masters: &[&str]) -> Vec<String> {
        let masters = masters.iter().map(|m| (*m).to_owned()).collect();
        let mut order = Vec::new();
        while let Some(next) = next_to_roll(&left, &masters) {
            left.retain(|pod| pod.name != next.name);
            order.push(next.name.clone());
        }
        order
    }

    #[test]
    fn who_copies_is_restarted_before_who_is_copied_from() {
        let (master, slave) = (Some(Duty::Master), Some(Duty::Slave));
        let pods = vec![
            pod("b-0-0", "b-0", master),
            pod("b-0-1", "b-0", slave),
            pod("b-0-2", "b-0", slave),
            pod("b-1-0", "b-1", master),
            pod("b-1-1", "b-1", slave),
        ];
        assert_eq!(
            order(pods, &[]),
            ["b-0-1", "b-0-2", "b-0-0", "b-1-1", "b-1-0"]
        );
        let elected = Some(Duty::Elected);
        let pods = ["b-0-0", "b-0-1", "b-0-2"]
            .map(|name| pod(name, "b-0", elected))
            .to_vec();
        assert_eq!(order(pods, &["b-0-1"]), ["b-0-0", "b-0-2", "b-0-1"]);
    }

    #[test]
    fn masters_stop_before_slaves_and_these_before_name_servers() {
        let stage = |duty| stage_of_stop(&pod("p", "g", duty));
        assert!(stage(Some(Duty::Master)) < stage(Some(Duty::Slave)));
        assert!(stage(Some(Duty::Slave)) < stage(None));
        assert_eq!(stage(None), LAST_TO_STOP);
    }
}
