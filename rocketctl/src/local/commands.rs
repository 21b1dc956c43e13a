//! `up`, `down`, `status`, `logs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process};

use super::manifest;
use super::plan::Duty;
use super::standing::{Standing, standings};
use super::state::{ClusterFolder, DataRoot, Phase, PodPhase, PodState, State, running, select};
use super::supervisor::{Supervisor, prepare};
use crate::admin::{block_on, cluster};
use crate::output::{Colour, Format, Table, coloured, human};

/// How often another process's state file is looked at.
const WATCH: Duration = Duration::from_millis(20);
/// What is waiting longer than this says why.
const IMPATIENT: Duration = Duration::from_secs(1);
/// `down` gives up after this beyond the pods' own grace periods.
const DOWN_LIMIT: Duration = Duration::from_secs(120);

#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// RocketCluster YAML
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    /// Return once it is ready; `rocketctl down` stops it
    #[arg(short = 'd', long)]
    detach: bool,
    /// With --detach: wait so many seconds for it to be ready
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// Use one loopback address and ports of their own, as on systems that have only one
    #[arg(long)]
    single_address: bool,
    /// Internal: be the supervisor of a detached cluster
    #[arg(long, hide = true)]
    supervise: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    /// Cluster, as NAME or NAMESPACE/NAME (default: the only one)
    cluster: Option<String>,
    /// Also delete its data, logs and addresses
    #[arg(long)]
    delete_data: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Cluster, as NAME or NAMESPACE/NAME (default: all)
    cluster: Option<String>,
    #[arg(short = 'o', long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// Pod, or the end of its name as `broker-0-0` (default: all pods)
    pod: Option<String>,
    /// Go on with what is written from now on
    #[arg(short = 'f', long)]
    follow: bool,
    /// Show only the last lines
    #[arg(long, default_value_t = 200, value_name = "LINES")]
    tail: usize,
    /// Cluster, as NAME or NAMESPACE/NAME (default: the only one)
    #[arg(long)]
    cluster: Option<String>,
}

pub(crate) fn up(root: &DataRoot, args: &UpArgs) -> Result<()> {
    let text = manifest::read(&args.file)?;
    let first = manifest::check(&args.file, &text, None)?;
    let folder = root.cluster(&first.cluster.namespace, &first.cluster.name);
    let old = match std::fs::read_to_string(folder.manifest()) {
        Ok(old) => manifest::parse(&old, None).ok().map(|m| m.value),
        Err(_) => None,
    };
    // The rules about changes hold for a stopped cluster as well: its data is still there.
    let manifest = manifest::check(&args.file, &text, old.as_ref())?;
    if !args.supervise {
        for warning in &manifest.warnings {
            eprintln!("warning: {}: {warning}", args.file.display());
        }
    }
    std::fs::create_dir_all(&folder.path)
        .with_context(|| format!("cannot make the folder {}", folder.path.display()))?;

    let Some(lock) = folder.lock()? else {
        return update(&folder, args, &text, old.as_ref() == Some(&manifest.value));
    };
    if args.detach {
        // Whatever is wrong is found before there is nobody left to tell.
        prepare(root, &folder, &manifest, args.single_address)?;
        drop(lock);
        return detach(root, &folder, args);
    }
    let plan = prepare(root, &folder, &manifest, args.single_address)?;
    folder.replace("cluster.yaml", text.as_bytes())?;
    let supervisor = Supervisor::new(folder.clone(), lock)?;
    let started = Instant::now();
    let mut progress = Progress::new(started, args.supervise);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(supervisor.run(manifest, plan, |state| progress.show(state)))?;
    if !args.supervise {
        say!(
            "{} is stopped; its data stays in {}",
            folder.title(),
            folder.path.display()
        );
    }
    Ok(())
}

/// The cluster runs already: hands over a changed manifest, or says that there is nothing to do.
fn update(folder: &ClusterFolder, args: &UpArgs, text: &str, same: bool) -> Result<()> {
    let title = folder.title();
    let state = folder
        .state()
        .with_context(|| format!("{title} is just starting; try again"))?;
    if state.phase == Phase::Stopping {
        bail!("{title} is just stopping; try again");
    }
    if same {
        say!(
            "{title} is running already and {} asks for no change (`rocketctl status`)",
            args.file.display()
        );
        return Ok(());
    }
    say!("{title} is running already; the changes are applied to it");
    folder.replace("cluster.yaml", text.as_bytes())?;
    signal(state.supervisor, Signal::USR1).with_context(|| {
        format!(
            "the supervisor of {title} (process {}) is gone",
            state.supervisor
        )
    })?;
    wait_until_ready(
        folder,
        None,
        Some(&state),
        Duration::from_secs(args.timeout),
    )
}

fn detach(root: &DataRoot, folder: &ClusterFolder, args: &UpArgs) -> Result<()> {
    let log = folder.logs().join("supervisor.log");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let mut command =
        Command::new(std::env::current_exe().context("cannot find this program's own file")?);
    command
        .arg("--data-dir")
        .arg(root.path())
        .arg("up")
        .arg("--supervise")
        .arg("-f")
        .arg(std::path::absolute(&args.file)?);
    // The old word of a dead supervisor must not be taken for the new one's.
    let _ = std::fs::remove_file(folder.path.join("state.json"));
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        // Out of reach of this terminal's Ctrl-C.
        .process_group(0)
        .spawn()
        .context("cannot start the supervisor")?;
    wait_until_ready(folder, Some(child), None, Duration::from_secs(args.timeout))
}

/// Shows progress from the state file until everything of `revision` is ready.
fn wait_until_ready(
    folder: &ClusterFolder,
    mut supervisor: Option<Child>,
    before: Option<&State>,
    limit: Duration,
) -> Result<()> {
    let started = Instant::now();
    let (mut progress, revision) = match before {
        Some(state) => (Progress::after(state), state.revision + 1),
        None => (Progress::new(started, false), 1),
    };
    progress.detached = true;
    loop {
        let state = folder.state();
        if let Some(state) = state.filter(|s| s.revision >= revision) {
            if !state.problem.is_empty() {
                bail!("{}", state.problem);
            }
            progress.show(&state);
            if state.phase == Phase::Running {
                return Ok(());
            }
        }
        if let Some(status) = supervisor
            .as_mut()
            .and_then(|c| c.try_wait().ok().flatten())
        {
            bail!(
                "the supervisor ended ({status}); see {}",
                folder.logs().join("supervisor.log").display()
            );
        }
        if supervisor.is_none() && !folder.is_running() {
            bail!("{} was stopped meanwhile", folder.title());
        }
        if started.elapsed() > limit {
            bail!(
                "{} is not ready after {}; it goes on trying: see `rocketctl status` and `rocketctl logs`",
                folder.title(),
                human(limit)
            );
        }
        std::thread::sleep(WATCH);
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a process id")?;
    Ok(kill_process(pid, signal)?)
}

pub(crate) fn down(root: &DataRoot, args: &DownArgs) -> Result<()> {
    let alive: Vec<_> = root
        .clusters()
        .into_iter()
        .filter(ClusterFolder::is_running)
        .collect();
    let folder = match select(alive, args.cluster.as_deref(), "running") {
        Ok(folder) => folder,
        // A stopped cluster can still be deleted.
        Err(_) if args.delete_data => select(root.clusters(), args.cluster.as_deref(), "known")?,
        Err(e) => return Err(e),
    };
    let title = folder.title();
    if folder.is_running() {
        let state = folder
            .state()
            .with_context(|| format!("{title} is just starting; try again"))?;
        signal(state.supervisor, Signal::TERM).with_context(|| {
            format!(
                "cannot stop the supervisor of {title} (process {})",
                state.supervisor
            )
        })?;
        let started = Instant::now();
        let mut progress = Progress::after(&state);
        while folder.is_running() {
            if let Some(state) = folder.state() {
                progress.show(&state);
            }
            if started.elapsed() > DOWN_LIMIT {
                bail!(
                    "{title} does not stop (process {}); see `rocketctl status`",
                    state.supervisor
                );
            }
            std::thread::sleep(WATCH);
        }
        if let Some(state) = folder.state() {
            progress.show(&state);
        }
    }
    if args.delete_data {
        // Nobody may start it meanwhile.
        let Some(_lock) = folder.lock()? else {
            bail!("{title} was started again meanwhile; nothing is deleted")
        };
        std::fs::remove_dir_all(&folder.path)
            .with_context(|| format!("cannot delete {}", folder.path.display()))?;
        say!("{title} is stopped and its data deleted");
    } else {
        say!(
            "{title} is stopped; its data stays in {}",
            folder.path.display()
        );
    }
    Ok(())
}

pub(crate) fn status(root: &DataRoot, args: &StatusArgs) -> Result<()> {
    let mut folders = root.clusters();
    if args.cluster.is_some() {
        folders = vec![select(folders, args.cluster.as_deref(), "known")?];
    }
    let found = block_on(async { Ok(join_all(folders.into_iter().map(look_at)).await) })?;
    let json: Vec<serde_json::Value> = found.iter().map(Found::to_json).collect();
    args.output.show(&json, || {
        if found.is_empty() {
            say!("no local cluster; start one with `rocketctl up -f FILE`");
        }
        for cluster in &found {
            match &cluster.state {
                Some(state) => show_status(cluster, state),
                None => say!(
                    "{}: stopped, data in {}",
                    cluster.folder.title(),
                    cluster.folder.path.display()
                ),
            }
        }
    })
}

/// A cluster as it is now.
struct Found {
    folder: ClusterFolder,
    alive: bool,
    /// While it runs.
    state: Option<State>,
    /// What the brokers are in their groups, by address.
    standings: BTreeMap<String, Standing>,
}

async fn look_at(folder: ClusterFolder) -> Found {
    let alive = folder.is_running();
    let state = folder.state().filter(|_| alive);
    let standings = match &state {
        Some(state) => {
            let elected = state
                .pods
                .iter()
                .filter(|pod| pod.duty == Some(Duty::Elected));
            let members: Vec<&str> = elected.map(|pod| pod.address.as_str()).collect();
            standings(&state.name_servers.join(";"), &members).await
        }
        None => BTreeMap::new(),
    };
    Found {
        folder,
        alive,
        state,
        standings,
    }
}

impl Found {
    /// The state, with what the brokers say of themselves beside what the supervisor knows of their pods.
    fn to_json(&self) -> serde_json::Value {
        let mut state = serde_json::json!(self.state);
        for pod in state["pods"].as_array_mut().into_iter().flatten() {
            let standing = pod["address"]
                .as_str()
                .and_then(|address| self.standings.get(address));
            if let (Some(standing), Some(pod)) = (standing, pod.as_object_mut())
                && let serde_json::Value::Object(more) = serde_json::json!(standing)
            {
                pod.extend(more);
            }
        }
        serde_json::json!({"namespace": self.folder.namespace, "name": self.folder.name, "running": self.alive, "data": self.folder.path, "state": state})
    }
}

fn show_status(cluster: &Found, state: &State) {
    say!(
        "{}: {} ({}/{} ready), name server {}, data in {}",
        cluster.folder.title(),
        format!("{:?}", state.phase).to_lowercase(),
        state.ready(),
        state.pods.len(),
        state.name_servers.join(";"),
        cluster.folder.path.display()
    );
    let mut table = Table::new([
        "POD", "ADDRESS", "ROLE", "LAG", "STATUS", "RESTARTS", "PID", "AGE", "REASON",
    ]);
    for pod in &state.pods {
        let age = jiff::Timestamp::now()
            .as_millisecond()
            .saturating_sub(pod.since);
        let age = if pod.since == 0 {
            String::new()
        } else {
            human(Duration::from_millis(u64::try_from(age).unwrap_or(0)))
        };
        let standing = cluster.standings.get(&pod.address);
        table.row([
            pod.name.clone(),
            pod.address.clone(),
            standing
                .map(|s| match s.term {
                    Some(term) => format!("{} (term {term})", s.role),
                    None => s.role.to_owned(),
                })
                .unwrap_or_default(),
            standing
                .and_then(|s| s.lag_bytes)
                .map(|bytes| format!("{bytes} B"))
                .unwrap_or_default(),
            format!("{:?}", pod.phase),
            pod.restarts.to_string(),
            pod.pid.map(|p| p.to_string()).unwrap_or_default(),
            age,
            pod.message.clone(),
        ]);
    }
    table.print();
}

/// What happened to the pods since the last call, a line each.
struct Progress {
    started: Instant,
    silent: bool,
    /// Another process keeps the cluster running.
    detached: bool,
    seen: BTreeMap<String, Seen>,
    summed_up: u64,
}

#[derive(Default)]
struct Seen {
    phase: Option<PodPhase>,
    revision: u64,
    restarts: u32,
    told: String,
}

impl Seen {
    fn of(pod: &PodState) -> Self {
        Self {
            phase: Some(pod.phase),
            revision: pod.revision,
            restarts: pod.restarts,
            told: pod.message.clone(),
        }
    }
}

impl Progress {
    fn new(started: Instant, silent: bool) -> Self {
        Self {
            started,
            silent,
            detached: false,
            seen: BTreeMap::new(),
            summed_up: 0,
        }
    }

    /// What was so before is no news.
    fn after(state: &State) -> Self {
        let mut progress = Self::new(Instant::now(), false);
        progress.detached = true;
        progress.summed_up = state.revision;
        for pod in &state.pods {
            progress.seen.insert(pod.name.clone(), Seen::of(pod));
        }
        progress
    }

    fn show(&mut self, state: &State) {
        if self.silent {
            return;
        }
        let width = state.pods.iter().map(|p| p.name.len()).max().unwrap_or(0);
        for pod in &state.pods {
            let seen = self.seen.entry(pod.name.clone()).or_default();
            let line = |mark: &str, text: &str| {
                tell!("  {mark} {:<width$}  {:<21}  {text}", pod.name, pod.address)
            };
            let again = seen.revision != pod.revision || seen.restarts != pod.restarts;
            if pod.phase == PodPhase::Ready && (seen.phase != Some(PodPhase::Ready) || again) {
                let took = pod
                    .ready_after_ms
                    .map(|ms| format!(" in {}", human(Duration::from_millis(ms))))
                    .unwrap_or_default();
                let what = match pod.duty {
                    None => "ready",
                    Some(Duty::Slave) => "registered as slave",
                    Some(Duty::Master | Duty::Elected) => "registered",
                };
                line(&coloured("✓", Colour::Green), &format!("{what}{took}"));
            }
            if pod.phase == PodPhase::BackOff && (seen.phase != Some(PodPhase::BackOff) || again) {
                line(
                    &coloured("✗", Colour::Red),
                    &format!("died: {}", pod.message),
                );
            }
            if pod.phase == PodPhase::Stopped && seen.phase.is_some_and(|p| p != PodPhase::Stopped)
            {
                line(&coloured("✓", Colour::Green), "stopped");
            }
            let waits = matches!(pod.phase, PodPhase::Starting | PodPhase::Pending)
                && !pod.message.is_empty();
            if waits && self.started.elapsed() > IMPATIENT && seen.told != pod.message {
                line(&coloured("…", Colour::Yellow), &pod.message);
                seen.told.clone_from(&pod.message);
            }
            (seen.phase, seen.revision, seen.restarts) =
                (Some(pod.phase), pod.revision, pod.restarts);
        }
        if !state.problem.is_empty() {
            eprintln!("{}", state.problem);
        }
        if state.phase == Phase::Running
            && self.summed_up != state.revision
            && state.problem.is_empty()
        {
            self.summed_up = state.revision;
            self.sum_up(state);
        }
        // Progress must be seen when it happens, also through a pipe.
        let _ = std::io::stdout().flush();
    }

    fn sum_up(&self, state: &State) {
        tell!(
            "{} is ready after {}\n",
            state.name,
            human(self.started.elapsed())
        );
        let list = state.name_servers.join(";");
        if let Err(e) = cluster::print_list(&list) {
            eprintln!("the cluster cannot be listed: {e:#}");
        }
        tell!("\nClients");
        tell!("  Java     producer.setNamesrvAddr(\"{list}\");");
        let quoted: Vec<String> = state
            .name_servers
            .iter()
            .map(|a| format!("\"{a}\""))
            .collect();
        tell!(
            "  Go       producer.WithNsResolver(primitive.NewPassthroughResolver([]string{{{}}}))",
            quoted.join(", ")
        );
        tell!("  mqadmin  mqadmin clusterList -n '{list}'");
        tell!(
            "  here     rocketctl send --topic hello --body world && rocketctl consume --topic hello --from-first --count 1"
        );
        tell!("\nData and logs in {}", state.data.display());
        if self.detached {
            tell!("`rocketctl down` stops it; the data stays");
        } else {
            tell!("Ctrl-C stops it; the data stays");
        }
    }
}

pub(crate) fn logs(root: &DataRoot, args: &LogsArgs) -> Result<()> {
    let folder = select(root.clusters(), args.cluster.as_deref(), "known")?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder.logs())
        .with_context(|| format!("cannot read {}", folder.logs().display()))?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    files.sort();
    let name = |path: &Path| {
        path.file_stem()
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    if let Some(pod) = &args.pod {
        let all: Vec<String> = files.iter().map(|f| name(f)).collect();
        files.retain(|f| {
            name(f) == *pod
                || name(f)
                    .strip_suffix(pod.as_str())
                    .is_some_and(|rest| rest.ends_with('-'))
        });
        if files.is_empty() {
            bail!(
                "{} has no pod {pod}; there are {}",
                folder.title(),
                all.join(", ")
            );
        }
    }
    let several = files.len() > 1;
    let mut followed = Vec::new();
    for path in &files {
        let mut file =
            File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let prefix = if several {
            format!("{}: ", name(path))
        } else {
            String::new()
        };
        let text = tail(&mut file, args.tail)?;
        print_lines(&prefix, &text);
        followed.push((path.clone(), file, prefix));
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        for (path, file, prefix) in &mut followed {
            let position = file.stream_position()?;
            // A log that was put aside goes on in a new file.
            if std::fs::metadata(&*path).is_ok_and(|m| m.len() < position) {
                *file = File::open(&*path)?;
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            // Half a line waits for its rest.
            let whole = bytes
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            file.seek_relative(-i64::try_from(bytes.len() - whole)?)?;
            print_lines(prefix, &String::from_utf8_lossy(&bytes[..whole]));
        }
        std::io::stdout().flush()?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The last lines of a file, which stands at its end afterwards.
fn tail(file: &mut File, lines: usize) -> Result<String> {
    const LINE: u64 = 512;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LINE.saturating_mul(lines as u64));
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

fn print_lines(prefix: &str, text: &str) {
    for line in text.lines() {
        say!("{prefix}{line}");
    }
}

/// Name servers for commands that were given none: those of the running local cluster.
pub(crate) fn local_name_servers(root: &DataRoot, cluster: Option<&str>) -> Result<String> {
    Ok(running(root, cluster)?.1.name_servers.join(";"))
}

/// A broker for commands that were given none: the first of the only running local cluster.
pub(crate) fn local_broker(root: &DataRoot, cluster: Option<&str>) -> Result<String> {
    let state = running(root, cluster)?.1;
    let broker = state.pods.into_iter().find(|p| p.program == "mqbroker");
    Ok(broker.context("the local cluster has no broker")?.address)
}
