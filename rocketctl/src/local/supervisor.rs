//! The controller of a local cluster: keeps one task a pod, applies a manifest in order, and stops everything in order.
//!
//! Level-based like the operator: a manifest is compared with what is wanted of each pod now, so that applying it again, or a newer one half-way, is
//! safe.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::manifest::{self, Manifest};
use super::network::{self, Addresses};
use super::plan::{self, Plan, Pod, Program};
use super::pod::{Desired, keep};
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
            for pod in old {
                self.roll(pod, revision).await;
            }
        }
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

    /// Restarts a pod if it has to run with something else, and waits until it is ready again: one at a time.
    async fn roll(&mut self, pod: Arc<Pod>, revision: u64) {
        let Some(kept) = self.pods.get_mut(&pod.name) else {
            return;
        };
        if *kept.pod == *pod {
            return;
        }
        kept.pod = pod.clone();
        let name = pod.name.clone();
        kept.desired.send_replace(Desired::Run { pod, revision });
        self.board
            .until_pod(&name, |p| {
                p.revision == revision && p.phase == PodPhase::Ready
            })
            .await;
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

    /// Brokers first, so that they can say goodbye to the name servers. A second signal waits no longer.
    async fn stop(mut self, signals: &mut Signals, show: &mut impl FnMut(&State)) {
        self.board.change(|s| s.phase = Phase::Stopping);
        for program in [Program::Broker, Program::NameServer] {
            let mut going: BTreeMap<String, Kept> = BTreeMap::new();
            let names: Vec<String> = self
                .pods
                .iter()
                .filter(|(_, k)| k.pod.program == program)
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
