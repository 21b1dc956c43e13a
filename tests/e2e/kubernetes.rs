//! What the scenarios do with the cluster: namespaces, applying what users apply, waiting, and the diagnosis when something fails.
//!
//! Reads go through the client library; what a user types (`kubectl`, `helm`) is run as that command.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use operator_core::api::RocketCluster;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::figures::Figures;

/// Where the operator is installed.
pub(crate) const OPERATOR_NAMESPACE: &str = "rocketcluster-system";
/// Between two looks at a condition.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Lines of a command's output in a diagnosis.
const DIAGNOSIS_LINES: usize = 150;
/// Label of every namespace made here.
const SCENARIO_LABEL: &str = "rocketcluster-e2e";

/// The cluster and the images under test.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) client: Client,
    /// Images are `<repository>/mqbroker:<tag>` and so on.
    pub(crate) repository: String,
    pub(crate) tag: String,
    /// Folder of the repository.
    pub(crate) root: PathBuf,
    /// Its version and number of nodes.
    version: String,
    nodes: usize,
    /// What rolls and losses cost.
    pub(crate) figures: Figures,
    /// Scripts of the cluster that `run.sh` started, when it did: only there can a node's power be cut.
    pub(crate) scripts: Option<PathBuf>,
}

impl World {
    pub(crate) async fn connect() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the repository's folder")?
            .to_path_buf();
        let variable =
            |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let client = Client::try_default().await.context("KUBECONFIG")?;
        let version = client.apiserver_version().await?;
        println!("on Kubernetes {}", version.git_version);
        let nodes = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await?
            .items
            .len();
        Ok(Self {
            version: version.git_version,
            nodes,
            figures: Figures::default(),
            client,
            repository: variable("REPOSITORY", "localhost/rocketcluster"),
            tag: variable("TAG", "dev"),
            scripts: std::env::var_os("E2E_CLUSTER_SCRIPTS").map(PathBuf::from),
            root,
        })
    }

    pub(crate) fn nodes(&self) -> usize {
        self.nodes
    }

    /// What the figures were measured on.
    pub(crate) fn described(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        format!(
            "Kubernetes {} with {} nodes on a machine with {cores} cores",
            self.version, self.nodes
        )
    }

    /// Installs or upgrades, so that a second run on the same cluster tests the code of now.
    pub(crate) async fn install_operator(&self) -> Result<()> {
        // Helm never updates a CRD.
        run(
            self.command("kubectl").args([
                "apply",
                "--server-side",
                "--force-conflicts",
                "-f",
                "crds/",
            ]),
            None,
        )
        .await?;
        run(
            self.command("helm")
                .args([
                    "upgrade",
                    "--install",
                    "rocketcluster",
                    "charts/rocketcluster-operator",
                ])
                .args([
                    "--namespace",
                    OPERATOR_NAMESPACE,
                    "--create-namespace",
                    "--set",
                    &format!(
                        "image.repository={},image.tag={},log.format=text",
                        self.repository, self.tag
                    ),
                    "--wait",
                    "--timeout",
                    "90s",
                ]),
            None,
        )
        .await
        .map(drop)
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).kill_on_drop(true);
        command
    }

    /// A namespace of its own for a scenario.
    pub(crate) async fn namespace(&self, scenario: &str) -> Result<Space> {
        let name = format!(
            "e2e-{}-{:x}",
            scenario.replace('_', "-"),
            std::process::id()
        );
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {
                SCENARIO_LABEL: scenario,
                "pod-security.kubernetes.io/enforce": "restricted",
            }},
        }))?;
        Api::<Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
        Ok(Space {
            world: self.clone(),
            name,
        })
    }

    async fn namespaces(&self, scenario: &str) -> Vec<String> {
        Api::<Namespace>::all(self.client.clone())
            .list(&ListParams::default().labels(&format!("{SCENARIO_LABEL}={scenario}")))
            .await
            .map(|list| list.items.iter().map(|n| n.name_any()).collect())
            .unwrap_or_default()
    }

    /// Deletes them without waiting; `E2E_KEEP` leaves them for a look.
    pub(crate) async fn forget_namespaces(&self, scenario: &str) {
        if std::env::var_os("E2E_KEEP").is_some() {
            return;
        }
        let api = Api::<Namespace>::all(self.client.clone());
        for name in self.namespaces(scenario).await {
            if let Err(e) = api.delete(&name, &DeleteParams::default()).await {
                eprintln!("namespace {name}: {e}");
            }
        }
    }

    /// All that helps to understand a failure.
    pub(crate) async fn diagnosis(&self, scenario: &str) -> String {
        let mut text = String::new();
        let spaces = self.namespaces(scenario).await;
        let everything = [
            "get",
            "rocketclusters,statefulsets,pods,services,configmaps,pvc,pdb",
            "-o",
            "wide",
        ];
        for space in &spaces {
            let mut commands: Vec<Vec<&str>> = vec![
                everything.to_vec(),
                vec!["get", "rocketclusters", "-o", "yaml"],
                vec!["describe", "pods"],
                vec!["events"],
            ];
            let pods = Api::<Pod>::namespaced(self.client.clone(), space)
                .list(&ListParams::default())
                .await;
            let names: Vec<String> = pods
                .map(|list| list.items.iter().map(|p| p.name_any()).collect())
                .unwrap_or_default();
            for pod in &names {
                commands.push(vec!["logs", "--timestamps", "--tail=60", pod]);
                commands.push(vec!["logs", "--timestamps", "--tail=20", "--previous", pod]);
            }
            for arguments in commands {
                self.append_output(&mut text, space, &arguments).await;
            }
        }
        let operator = [
            "logs",
            "--timestamps",
            "--tail=120",
            "-l",
            "app.kubernetes.io/name=rocketcluster-operator",
        ];
        self.append_output(&mut text, OPERATOR_NAMESPACE, &operator)
            .await;
        self.append_output(
            &mut text,
            OPERATOR_NAMESPACE,
            &["get", "pods,nodes", "-o", "wide"],
        )
        .await;
        text
    }

    async fn append_output(&self, text: &mut String, space: &str, arguments: &[&str]) {
        let output = self
            .command("kubectl")
            .arg("-n")
            .arg(space)
            .args(arguments)
            .output()
            .await;
        let Ok(output) = output else { return };
        if !output.status.success() && arguments.contains(&"--previous") {
            return;
        }
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8_lossy(&all);
        let lines: Vec<&str> = all.lines().collect();
        let _ = writeln!(text, "---- kubectl -n {space} {}", arguments.join(" "));
        for line in &lines[lines.len().saturating_sub(DIAGNOSIS_LINES)..] {
            let _ = writeln!(text, "{line}");
        }
    }

    /// A script of the cluster's own, such as `node-down.sh`.
    pub(crate) async fn script(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let folder = self.scripts.as_ref().context("no cluster of our own")?;
        run(
            self.command("bash").arg(folder.join(name)).args(arguments),
            None,
        )
        .await
        .map(drop)
    }
}

/// Runs a command to its end; its output when it succeeded, an error with what it said when not.
pub(crate) async fn run(command: &mut Command, input: Option<&str>) -> Result<String> {
    let shown = format!("{:?}", command.as_std()).replace('"', "");
    command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| shown.clone())?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{shown}: {}\n{out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(out)
}

/// Looks again and again until `look` is content; says at the limit what it was not content with.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(e) if Instant::now() >= end => {
                return Err(e.context(format!("waited {limit:?} for {what}")));
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// The namespace of a scenario.
#[derive(Clone)]
pub(crate) struct Space {
    pub(crate) world: World,
    pub(crate) name: String,
}

/// Any namespaced kind that the client library can read.
pub(crate) trait Kind:
    kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
{
}
impl<
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
> Kind for K
{
}

impl Space {
    pub(crate) fn api<K: Kind>(&self) -> Api<K> {
        Api::namespaced(self.world.client.clone(), &self.name)
    }

    pub(crate) async fn get<K: Kind>(&self, name: &str) -> Result<K> {
        Ok(self.api::<K>().get(name).await?)
    }

    pub(crate) async fn list<K: Kind>(&self, labels: &str) -> Result<Vec<K>> {
        Ok(self
            .api::<K>()
            .list(&ListParams::default().labels(labels))
            .await?
            .items)
    }

    /// `kubectl` in this namespace.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(
            self.world
                .command("kubectl")
                .arg("-n")
                .arg(&self.name)
                .args(arguments),
            None,
        )
        .await
    }

    /// `kubectl apply` of a manifest.
    pub(crate) async fn apply(&self, manifest: &Value) -> Result<()> {
        let command = &mut self.world.command("kubectl");
        run(
            command.args(["-n", &self.name, "apply", "-f", "-"]),
            Some(&manifest.to_string()),
        )
        .await
        .map(drop)
    }

    /// The API server must refuse the manifest with this sentence.
    pub(crate) async fn refused(&self, manifest: &Value, sentence: &str) -> Result<()> {
        match self.apply(manifest).await {
            Ok(()) => bail!("accepted, instead of refused with \"{sentence}\": {manifest}"),
            Err(e) => says(&e, sentence),
        }
    }

    /// A merge patch on a RocketCluster.
    pub(crate) async fn patch(&self, name: &str, patch: &Value) -> Result<RocketCluster> {
        let api = self.api::<RocketCluster>();
        Ok(api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?)
    }

    /// Waits until the operator has seen the last change and says Ready.
    pub(crate) async fn ready(&self, name: &str, limit: Duration) -> Result<RocketCluster> {
        until(
            &format!("RocketCluster {name} to be Ready"),
            limit,
            async || {
                let cluster = self.get::<RocketCluster>(name).await?;
                condition(&cluster, "Ready", "True")?;
                Ok(cluster)
            },
        )
        .await
    }

    /// The pods of a component (`broker`, `namesrv`), by name.
    pub(crate) async fn pods(
        &self,
        cluster: &str,
        component: &str,
    ) -> Result<BTreeMap<String, Pod>> {
        let labels =
            format!("rocketcluster.io/cluster={cluster},rocketcluster.io/component={component}");
        Ok(self
            .list::<Pod>(&labels)
            .await?
            .into_iter()
            .map(|pod| (pod.name_any(), pod))
            .collect())
    }

    /// Waits until a pod that is not the one with this uid is ready.
    pub(crate) async fn replaced(&self, name: &str, old_uid: &str, limit: Duration) -> Result<Pod> {
        until(
            &format!("pod {name} to be there again"),
            limit,
            async || {
                let pod = self.get::<Pod>(name).await?;
                ensure!(
                    pod.uid().as_deref() != Some(old_uid),
                    "it is still the old one"
                );
                ensure!(
                    is_ready(&pod),
                    "it is not ready: {:?}",
                    pod.status.and_then(|s| s.conditions)
                );
                Ok(pod)
            },
        )
        .await
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Tells which pods are being restarted, from look to look: one that has gone, is going, or is new and has not been ready yet. A pod that is only not
/// ready for a while, as a slave whose master is away, is none of them.
#[derive(Default)]
pub(crate) struct Restarting {
    /// The uid under which each pod was ready last.
    ready: BTreeMap<String, Option<String>>,
}

impl Restarting {
    pub(crate) fn look(&mut self, now: &BTreeMap<String, Pod>) -> Vec<String> {
        for (name, pod) in now.iter().filter(|(_, pod)| is_ready(pod)) {
            self.ready.insert(name.clone(), pod.uid());
        }
        let well = |name: &String, uid: &Option<String>| {
            now.get(name)
                .is_some_and(|pod| pod.metadata.deletion_timestamp.is_none() && pod.uid() == *uid)
        };
        self.ready
            .iter()
            .filter(|(name, uid)| !well(name, uid))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

/// Restarts of a pod's containers.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    pod.status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .map(|c| c.restart_count)
        .sum()
}

/// The uid of every pod and how often it was restarted: equal when nothing was touched.
pub(crate) fn lives(pods: &BTreeMap<String, Pod>) -> BTreeMap<String, (Option<String>, i32)> {
    pods.iter()
        .map(|(name, pod)| (name.clone(), (pod.uid(), restarts(pod))))
        .collect()
}

/// The condition of the newest generation, when it has the status wanted; its message.
pub(crate) fn condition(cluster: &RocketCluster, type_: &str, status: &str) -> Result<String> {
    let generation = cluster.metadata.generation;
    let found = cluster
        .status
        .iter()
        .flat_map(|s| &s.conditions)
        .find(|c| c.type_ == type_)
        .ok_or_else(|| anyhow!("no condition {type_} in {:?}", cluster.status))?;
    ensure!(
        found.observed_generation == generation,
        "condition {type_} is about generation {:?}, not {generation:?}",
        found.observed_generation
    );
    ensure!(
        found.status == status,
        "{type_} is {}: {}: {}",
        found.status,
        found.reason,
        found.message
    );
    Ok(found.message.clone())
}

/// Whether an error tells the sentence.
pub(crate) fn says(error: &anyhow::Error, sentence: &str) -> Result<()> {
    let told = format!("{error:#}");
    ensure!(
        told.contains(sentence),
        "refused, but not with \"{sentence}\": {told}"
    );
    Ok(())
}
