//! Folders of a local cluster, and what its supervisor tells the other commands.
//!
//! `<data>/<namespace>/<name>/`: `cluster.yaml` (what shall run), `addresses.json`, `state.json` (what runs), `lock` (held by the supervisor as long as
//! it lives, so a dead one is never taken for a living one), `hosts`, `logs/`, and a folder a pod with its configuration and its data.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::network::{Addresses, Network};
use super::plan::Duty;

/// Set in the environment of every pod's process, so that it dies with its supervisor and `mqshutdown` leaves it alone.
pub(crate) const SUPERVISED: &str = "ROCKETCTL_SUPERVISED";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataRoot(PathBuf);

impl DataRoot {
    /// `--data-dir`, else XDG's data folder.
    pub(crate) fn new(given: Option<PathBuf>) -> Result<Self> {
        if let Some(path) = given {
            return Ok(Self(std::path::absolute(path)?));
        }
        if let Some(data) = std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
        {
            return Ok(Self(data.join("rocketcluster")));
        }
        let home = std::env::var_os("HOME").context(
            "neither XDG_DATA_HOME nor HOME is set; say where data shall lie with --data-dir",
        )?;
        Ok(Self(PathBuf::from(home).join(".local/share/rocketcluster")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn cluster(&self, namespace: &str, name: &str) -> ClusterFolder {
        ClusterFolder {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            path: self.0.join(namespace).join(name),
        }
    }

    /// Every cluster that was ever started and not deleted.
    pub(crate) fn clusters(&self) -> Vec<ClusterFolder> {
        let names = |path: &Path| -> BTreeSet<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries
                .filter(|e| e.path().is_dir())
                .filter_map(|e| e.file_name().into_string().ok())
                .collect()
        };
        let mut found = Vec::new();
        for namespace in names(&self.0) {
            for name in names(&self.0.join(&namespace)) {
                let folder = self.cluster(&namespace, &name);
                if folder.manifest().exists() {
                    found.push(folder);
                }
            }
        }
        found
    }

    /// The networks that clusters have, running or not.
    pub(crate) fn networks(&self) -> BTreeSet<Network> {
        self.clusters()
            .iter()
            .filter_map(|c| c.addresses().ok().flatten())
            .map(|a| a.network)
            .collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterFolder {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Held by the one supervisor of a cluster.
pub(crate) struct Lock(
    #[expect(dead_code, reason = "the lock lasts as long as the file is open")] File,
);

impl ClusterFolder {
    pub(crate) fn manifest(&self) -> PathBuf {
        self.path.join("cluster.yaml")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// As the user names it.
    pub(crate) fn title(&self) -> String {
        if self.namespace == "default" {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    /// `None` when somebody else has it.
    pub(crate) fn lock(&self) -> Result<Option<Lock>> {
        let path = self.path.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => {
                Err(e).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.path.join("lock").exists() && matches!(self.lock(), Ok(None))
    }

    /// What the supervisor said last; `None` before the first word.
    pub(crate) fn state(&self) -> Option<State> {
        serde_json::from_slice(&std::fs::read(self.path.join("state.json")).ok()?).ok()
    }

    pub(crate) fn write_state(&self, state: &State) -> Result<()> {
        self.replace("state.json", &serde_json::to_vec_pretty(state)?)
    }

    pub(crate) fn addresses(&self) -> Result<Option<Addresses>> {
        let path = self.path.join("addresses.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is damaged", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(crate) fn write_addresses(&self, addresses: &Addresses) -> Result<()> {
        self.replace("addresses.json", &serde_json::to_vec_pretty(addresses)?)
    }

    /// A reader sees the old file or the new one.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        replace(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(&temporary, path)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Starting,
    Running,
    Updating,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PodPhase {
    /// Not started yet.
    Pending,
    /// Runs, and is not ready yet.
    Starting,
    Ready,
    /// Died; starts again after a pause.
    BackOff,
    Stopping,
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodState {
    pub(crate) name: String,
    pub(crate) program: String,
    /// What its file tells a broker to be; who was elected is only to be had from the brokers themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) duty: Option<Duty>,
    pub(crate) address: String,
    pub(crate) phase: PodPhase,
    /// It answers, ready or not.
    #[serde(default)]
    pub(crate) live: bool,
    /// Why it is not ready, or why it died last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    /// Of the manifest it was started with.
    #[serde(default)]
    pub(crate) revision: u64,
    /// When it was started, in milliseconds.
    pub(crate) since: i64,
    /// From its start until it was ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_after_ms: Option<u64>,
    pub(crate) log: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) supervisor: u32,
    pub(crate) phase: Phase,
    /// Counts the manifests that were applied; `up` waits for its own.
    pub(crate) revision: u64,
    /// Why the last manifest could not be applied.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) problem: String,
    pub(crate) name_servers: Vec<String>,
    pub(crate) data: PathBuf,
    pub(crate) pods: Vec<PodState>,
}

impl State {
    pub(crate) fn ready(&self) -> usize {
        self.pods
            .iter()
            .filter(|p| p.phase == PodPhase::Ready)
            .count()
    }
}

/// The running cluster that a command means: the named one, or the only one.
pub(crate) fn running(root: &DataRoot, wanted: Option<&str>) -> Result<(ClusterFolder, State)> {
    let folder = select(
        root.clusters()
            .into_iter()
            .filter(ClusterFolder::is_running)
            .collect(),
        wanted,
        "running",
    )?;
    let state = folder
        .state()
        .with_context(|| format!("{} is just starting; try again", folder.title()))?;
    Ok((folder, state))
}

pub(crate) fn select(
    mut found: Vec<ClusterFolder>,
    wanted: Option<&str>,
    what: &str,
) -> Result<ClusterFolder> {
    if let Some(wanted) = wanted {
        let matches =
            |c: &ClusterFolder| c.name == wanted || format!("{}/{}", c.namespace, c.name) == wanted;
        found.retain(matches);
        if found.is_empty() {
            bail!("no local cluster {wanted} is {what}; `rocketctl status` lists them all");
        }
    }
    match found.len() {
        0 => bail!("no local cluster is {what}; `rocketctl up -f FILE` starts one"),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<String> = found.iter().map(ClusterFolder::title).collect();
            bail!(
                "several local clusters are {what} ({}): say which one",
                names.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_tells_who_lives() {
        let root = DataRoot(tempfile::tempdir().unwrap().keep());
        let folder = root.cluster("default", "demo");
        assert!(!folder.is_running());
        folder.replace("cluster.yaml", b"x").unwrap();
        let lock = folder.lock().unwrap();
        assert!(lock.is_some());
        assert!(folder.is_running());
        assert_eq!(root.clusters(), vec![folder.clone()]);
        drop(lock);
        assert!(!folder.is_running());
        std::fs::remove_dir_all(root.path()).unwrap();
    }

    #[test]
    fn a_command_means_the_only_cluster_or_the_named_one() {
        let root = DataRoot(PathBuf::from("/x"));
        let (a, b) = (root.cluster("default", "a"), root.cluster("shop", "b"));
        let all = || vec![a.clone(), b.clone()];
        assert_eq!(select(vec![a.clone()], None, "running").unwrap(), a);
        assert_eq!(select(all(), Some("b"), "running").unwrap(), b);
        assert_eq!(select(all(), Some("shop/b"), "running").unwrap(), b);
        assert_eq!(
            select(all(), None, "running").unwrap_err().to_string(),
            "several local clusters are running (a, shop/b): say which one"
        );
        assert!(
            select(vec![], None, "running")
                .unwrap_err()
                .to_string()
                .contains("rocketctl up -f FILE")
        );
        assert!(
            select(all(), Some("c"), "running")
                .unwrap_err()
                .to_string()
                .contains("no local cluster c is running")
        );
    }
}
