//! The kubelet of one pod: starts its process, probes it, starts it again with growing pauses when it dies, stops it when told.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::plan::Pod;
use super::state::{PodPhase, SUPERVISED};
use super::supervisor::Board;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Who has run for so long starts again without a long pause.
const STABLE: Duration = Duration::from_secs(60);
/// Probing is eager at first: a start takes some tens of milliseconds.
const PROBE_EAGER: Duration = Duration::from_millis(5);
const EAGER_FOR: Duration = Duration::from_secs(2);
const PROBE_STARTING: Duration = Duration::from_millis(250);
const PROBE_READY: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A ready pod is called unready after so many failures in a row.
const FAILURES: u32 = 3;
/// A log beyond this is put aside at the next start.
const MAX_LOG: u64 = 16 * 1024 * 1024;
/// What is searched for the reason of a death.
const LOG_TAIL: u64 = 4 * 1024;

#[derive(Clone, Debug)]
pub(crate) enum Desired {
    Run {
        pod: Arc<Pod>,
        revision: u64,
    },
    Stop,
    /// Stop without waiting any longer.
    Kill,
}

pub(crate) async fn keep(name: String, mut desired: watch::Receiver<Desired>, board: Arc<Board>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let wanted = desired.borrow_and_update().clone();
        let Desired::Run { pod, revision } = wanted else {
            break;
        };
        let started = Instant::now();
        let reason = match start(&pod) {
            Ok(mut child) => {
                board.update(&name, |p| {
                    p.phase = PodPhase::Starting;
                    p.live = false;
                    p.message.clear();
                    p.pid = child.id();
                    p.since = now_ms();
                    p.ready_after_ms = None;
                    p.revision = revision;
                    p.address = pod.address.to_string();
                });
                match watch_over(&mut child, &pod, &mut desired, &board).await {
                    Some(status) => describe(status, &pod.log),
                    None => {
                        board.update(&name, |p| p.phase = PodPhase::Stopping);
                        stop(&mut child, pod.grace, &mut desired).await;
                        pause = FIRST_PAUSE;
                        continue;
                    }
                }
            }
            Err(e) => format!("{e:#}"),
        };
        if started.elapsed() > STABLE {
            pause = FIRST_PAUSE;
        }
        board.update(&name, |p| {
            p.phase = PodPhase::BackOff;
            p.live = false;
            p.pid = None;
            p.restarts += 1;
            p.message = format!("{reason}; starts again in {}", crate::output::human(pause));
        });
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            changed = desired.changed() => if changed.is_err() { break },
        }
    }
    board.update(&name, |p| {
        p.phase = PodPhase::Stopped;
        p.live = false;
        p.pid = None;
        p.message.clear();
    });
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_millis()).ok())
        .unwrap_or(0)
}

fn start(pod: &Pod) -> Result<Child> {
    for folder in &pod.folders {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    for (path, text) in &pod.files {
        super::state::replace(path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if fs::metadata(&pod.log).is_ok_and(|m| m.len() > MAX_LOG) {
        fs::rename(&pod.log, pod.log.with_extension("log.1"))
            .with_context(|| format!("cannot put {} aside", pod.log.display()))?;
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(&pod.log)
        .with_context(|| format!("cannot open {}", pod.log.display()))?;
    let mut command =
        Command::new(std::env::current_exe().context("cannot find this program's own file")?);
    // A configuration of the user's shell must not reach the pods: their environment is their own.
    let inherited = std::env::vars_os().filter(|(key, _)| {
        let key = key.to_string_lossy();
        !key.starts_with("ROCKETMQ_") && key != "NAMESRV_ADDR"
    });
    command
        .arg(pod.program.command())
        .args(&pod.args)
        .env_clear()
        .envs(inherited)
        .envs(&pod.env)
        .env(SUPERVISED, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for the supervisor, which stops the pods in order.
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().context("cannot start a process")
}

/// Probes until the process dies (its status) or something else is wanted of it (`None`).
async fn watch_over(
    child: &mut Child,
    pod: &Pod,
    desired: &mut watch::Receiver<Desired>,
    board: &Board,
) -> Option<ExitStatus> {
    let started = Instant::now();
    let probing = async {
        let (mut live, mut ready, mut failures) = (false, false, 0);
        loop {
            if !live {
                live = probe(pod.http, "/livez").await.is_ok();
                if live {
                    board.update(&pod.name, |p| p.live = true);
                }
            }
            if live {
                match probe(pod.http, "/readyz").await {
                    Ok(()) => {
                        failures = 0;
                        if !ready {
                            ready = true;
                            let took = started.elapsed();
                            board.update(&pod.name, |p| {
                                p.phase = PodPhase::Ready;
                                p.message.clear();
                                p.ready_after_ms.get_or_insert(
                                    u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                                );
                            });
                        }
                    }
                    Err(reason) => {
                        failures += 1;
                        if !ready || failures >= FAILURES {
                            ready = false;
                            board.update(&pod.name, |p| {
                                p.phase = PodPhase::Starting;
                                p.message = reason;
                            });
                        }
                    }
                }
            }
            sleep(
                match (ready && failures == 0, started.elapsed() < EAGER_FOR) {
                    (true, _) => PROBE_READY,
                    (false, true) => PROBE_EAGER,
                    (false, false) => PROBE_STARTING,
                },
            )
            .await;
        }
    };
    tokio::select! {
        status = child.wait() => Some(status.unwrap_or_default()),
        () = wanted_otherwise(pod, desired) => None,
        () = probing => None,
    }
}

/// Until this process is not what is wanted any more.
async fn wanted_otherwise(pod: &Pod, desired: &mut watch::Receiver<Desired>) {
    while desired.changed().await.is_ok() {
        match &*desired.borrow_and_update() {
            Desired::Run { pod: wanted, .. } if wanted.needs_no_restart(pod) => {}
            _ => return,
        }
    }
}

async fn stop(child: &mut Child, grace: Duration, desired: &mut watch::Receiver<Desired>) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    let told = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
    if told {
        let impatient = async {
            while !matches!(*desired.borrow_and_update(), Desired::Kill) {
                if desired.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            ended = timeout(grace, child.wait()) => if ended.is_ok() { return },
            () = impatient => {}
        }
    }
    // It is gone already, or it does not listen.
    let _ = child.kill().await;
}

/// One GET; the error is the answer's text.
pub(crate) async fn probe(address: SocketAddr, path: &str) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await?;
        let mut answer = Vec::new();
        stream.take(LOG_TAIL).read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = match timeout(PROBE_TIMEOUT, ask).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => return Err(e.to_string()),
        Err(_) => return Err(format!("{path} does not answer")),
    };
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    Err(answer
        .split_once("\r\n\r\n")
        .map_or("", |(_, body)| body)
        .trim()
        .to_owned())
}

/// How it ended, and the last thing it said.
fn describe(status: ExitStatus, log: &Path) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    match last_line(log) {
        Some(line) if !status.success() => format!("{how}: {line}"),
        _ => how,
    }
}

fn last_line(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    text.lines()
        .rev()
        .find(|l| !l.trim().is_empty())
        .map(|l| l.trim().to_owned())
}
