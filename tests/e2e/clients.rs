//! Stock clients in a pod: what an application is, seen from the cluster.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::kubernetes::{Space, is_ready, until};

/// The Apache Java clients in the image.
pub(crate) const JAVA: [&str; 2] = ["4.9.8", "5.3.3"];
/// For a client's first message to come back.
const FIRST_MESSAGE: Duration = Duration::from_secs(60);
/// For a sender to be acknowledged again: it gives up after 60 s.
const NEXT_MESSAGE: Duration = Duration::from_secs(70);
/// For a client to end: it waits up to 60 s for messages that have not come.
const LAST_MESSAGE: Duration = Duration::from_secs(100);

/// What a line about a phase begins with.
const PHASE: &str = "phase ";

/// What a client said last.
const LAST_ERRORS: usize = 60;

/// Why sends failed, up to the ids and times that follow, so that the same reason counts as one.
fn kinds(errors: &str) -> BTreeMap<&str, usize> {
    let mut kinds = BTreeMap::new();
    for line in errors.lines().filter_map(|l| l.strip_prefix("send: ")) {
        let kind = line.split([',', '<']).next().unwrap_or(line);
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// A pod with all clients in it; commands are run in it as an application would run.
#[derive(Clone)]
pub(crate) struct Clients {
    space: Space,
}

/// What a client counted.
#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) acked: u64,
    pub(crate) missing: u64,
    /// Sends that failed although the client tried again by itself; each was repeated until acknowledged.
    #[serde(default)]
    pub(crate) refused: u64,
    /// Messages received more than once.
    #[serde(default)]
    pub(crate) duplicates: u64,
    /// Messages that stand in their queue before one that was sent earlier.
    #[serde(default)]
    pub(crate) disordered: u64,
    /// Places in a queue that held two different messages, one after the other.
    #[serde(default)]
    pub(crate) rewritten: u64,
    /// The longest time between two acknowledgements.
    #[serde(default)]
    pub(crate) longest_gap_ms: u64,
}

impl Report {
    /// Of two phases that follow each other.
    pub(crate) fn and(self, next: Self) -> Self {
        Self {
            acked: self.acked + next.acked,
            missing: self.missing + next.missing,
            refused: self.refused + next.refused,
            duplicates: self.duplicates + next.duplicates,
            disordered: next.disordered,
            rewritten: next.rewritten,
            longest_gap_ms: self.longest_gap_ms.max(next.longest_gap_ms),
        }
    }
}

impl Space {
    /// Starts the client pod of this namespace, on a certain node if need be.
    pub(crate) async fn clients(&self, node: Option<&str>) -> Result<Clients> {
        let image = format!("{}/clients:dev", self.world.repository);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "clients"},
            "spec": {
                "nodeSelector": node.map(|n| json!({"kubernetes.io/hostname": n})),
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "clients", "image": image, "imagePullPolicy": "IfNotPresent",
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true},
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            },
        }))?;
        let api = self.api::<Pod>();
        // A new namespace has its service account a moment later.
        until(
            "the client pod to be accepted",
            Duration::from_secs(20),
            async || Ok(api.create(&PostParams::default(), &pod).await?),
        )
        .await?;
        until("the client pod", Duration::from_secs(60), async || {
            ensure!(is_ready(&self.get::<Pod>("clients").await?), "not ready");
            Ok(())
        })
        .await?;
        Ok(Clients {
            space: self.clone(),
        })
    }
}

impl Clients {
    fn exec(&self, command: &[&str]) -> Command {
        let mut kubectl = self.space.world.command("kubectl");
        kubectl
            .args(["-n", &self.space.name, "exec", "-i", "clients", "--"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        kubectl
    }

    fn java(&self, version: &str, arguments: &[&str]) -> Command {
        let classes = format!("/java/classes:/java/{version}/*");
        self.exec(&[&["/jre/bin/java", "-cp", &classes, "Client"], arguments].concat())
    }

    /// Starts a checked producer and a push consumer, and waits until messages flow from one to the other.
    pub(crate) async fn flow(
        &self,
        version: &str,
        namesrv: &str,
        topic: &str,
        rate: u32,
    ) -> Result<Flow> {
        let rate = rate.to_string();
        let mut child = self
            .java(version, &["flow", namesrv, topic, &rate])
            .spawn()?;
        let stdout = child.stdout.take().context("its output")?;
        let mut flow = Flow {
            child,
            lines: BufReader::new(stdout).lines(),
            name: format!("Java {version} on {topic}"),
        };
        flow.line_with("ready", FIRST_MESSAGE).await?;
        Ok(flow)
    }

    /// Messages there and back with a Java client.
    pub(crate) async fn exchange_java(
        &self,
        version: &str,
        namesrv: &str,
        topic: &str,
    ) -> Result<Report> {
        let flow = self.flow(version, namesrv, topic, 50).await?;
        flow.end().await
    }

    /// Messages there and back with the Go client.
    pub(crate) async fn exchange_go(
        &self,
        namesrv: &str,
        topic: &str,
        count: u32,
    ) -> Result<Report> {
        let count = count.to_string();
        self.report(
            "Go",
            &mut self.exec(&["/go-client", namesrv, topic, &count]),
        )
        .await
    }

    /// Sends until `count` messages are acknowledged.
    pub(crate) async fn produce(&self, namesrv: &str, topic: &str, count: u32) -> Result<Report> {
        let count = count.to_string();
        self.report(
            "Java producer",
            &mut self.java(JAVA[1], &["produce", namesrv, topic, &count]),
        )
        .await
    }

    /// A new group reads from the first offset until it has `count` different messages.
    pub(crate) async fn consume(&self, namesrv: &str, topic: &str, count: u32) -> Result<Report> {
        let count = count.to_string();
        self.report(
            "Java consumer",
            &mut self.java(JAVA[0], &["consume", namesrv, topic, &count]),
        )
        .await
    }

    async fn report(&self, name: &str, command: &mut Command) -> Result<Report> {
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("its output")?;
        Flow {
            child,
            lines: BufReader::new(stdout).lines(),
            name: name.to_owned(),
        }
        .end()
        .await
    }
}

/// A client at work.
pub(crate) struct Flow {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    name: String,
}

impl Flow {
    async fn line_with(&mut self, beginning: &str, limit: Duration) -> Result<String> {
        let wait = async {
            while let Some(line) = self.lines.next_line().await? {
                if line.starts_with(beginning) {
                    return Ok(Some(line));
                }
            }
            anyhow::Ok(None)
        };
        let found = tokio::time::timeout(limit, wait).await;
        match found {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Err(e)) => Err(e),
            Ok(Ok(None)) => {
                let errors = self.errors().await;
                bail!("{} ended before \"{beginning}\": {errors}", self.name)
            }
            Err(_) => {
                self.child.start_kill()?;
                let errors = self.errors().await;
                bail!("{}: no \"{beginning}\" in {limit:?}: {errors}", self.name)
            }
        }
    }

    async fn errors(&mut self) -> String {
        let mut text = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            // What is there is there; an error here would hide the one that matters.
            let _ = stderr.read_to_end(&mut text).await;
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_ERRORS)..].join("\n")
    }

    /// What was counted since the last phase, or since messages flow, up to a send that is acknowledged now. It goes on.
    pub(crate) async fn phase(&mut self) -> Result<Report> {
        let input = self.child.stdin.as_mut().context("its input")?;
        input.write_all(b"\n").await?;
        input.flush().await?;
        let line = self.line_with(PHASE, NEXT_MESSAGE).await?;
        let report: Report =
            serde_json::from_str(line.trim_start_matches(PHASE)).with_context(|| line.clone())?;
        println!("    {}, so far: {report:?}", self.name);
        Ok(report)
    }

    /// Ends the sending, waits until everything acknowledged has been consumed, and fails when something has not.
    pub(crate) async fn end(mut self) -> Result<Report> {
        drop(self.child.stdin.take());
        let line = self.line_with("{", LAST_MESSAGE).await?;
        let report: Report = serde_json::from_str(&line).with_context(|| line.clone())?;
        if report.missing > 0 {
            let errors = self.errors().await;
            bail!(
                "{}: {} of {} acknowledged messages are lost: {errors}",
                self.name,
                report.missing,
                report.acked
            );
        }
        if report.disordered > 0 || report.rewritten > 0 {
            let errors = self.errors().await;
            bail!(
                "{}: order or content of a queue changed: {report:?}: {errors}",
                self.name
            );
        }
        println!("    {}: {report:?}", self.name);
        for (why, count) in kinds(&self.errors().await) {
            println!("        {count} x {why}");
        }
        Ok(report)
    }
}
