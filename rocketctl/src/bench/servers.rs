//! The two sides of a comparison as processes: the original from Maven Central, and ours, each alone, with a slave, or as a group that elects its
//! master.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::load;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// The pom that names the original's servers, so that the command works outside a checkout too.
const POM: &str = include_str!("../../bench/java/pom.xml");
/// Brokers of a group that elects its master.
const MEMBERS: usize = 3;
/// Between the ports of two brokers of one side.
const PORT_STEP: u16 = 100;
/// From a broker's port to that of its group's elections and log.
const GROUP_PORT: u16 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Original,
    /// Ours in another role, where it is compared with itself.
    Baseline,
    Ours,
}

impl Side {
    /// Of the first broker and of the name server.
    fn ports(self) -> (u16, u16) {
        match self {
            Self::Original => (12911, 12876),
            Self::Baseline => (14911, 14876),
            Self::Ours => (13911, 13876),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Alone,
    /// One slave; sends wait for it when `sync`.
    Slave {
        sync: bool,
    },
    /// Three that elect their master.
    Dledger,
}

impl Mode {
    fn brokers(self) -> usize {
        match self {
            Self::Alone => 1,
            Self::Slave { .. } => 2,
            Self::Dledger => MEMBERS,
        }
    }
}

/// A name server and the brokers of one side, on ports of their own.
pub(super) struct Servers {
    name_server: Child,
    brokers: Vec<Child>,
    dir: PathBuf,
    pub(super) side: Side,
    /// The broker that takes sends.
    pub(super) broker: SocketAddr,
    at: usize,
    /// From the start of the process to the registration (ours) or the open port (the original); of the last broker.
    pub(super) started_in: Duration,
}

impl Servers {
    /// The broker that takes sends.
    pub(super) fn broker_pid(&self) -> u32 {
        self.brokers[self.at].id()
    }

    /// All of them: what a message costs where it is copied is the sum.
    pub(super) fn broker_pids(&self) -> Vec<u32> {
        self.brokers.iter().map(Child::id).collect()
    }

    /// Where the stores lie.
    pub(super) fn store(&self) -> PathBuf {
        self.dir.join(format!("b{}", self.at)).join("store")
    }

    /// Freezes or thaws all of them, so that the side which is not measured costs nothing and yet stays warm.
    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        for child in self.brokers.iter().chain([&self.name_server]) {
            signal_to(child, signal)?;
        }
        Ok(())
    }

    /// Where all of them are, in the order of their folders.
    pub(super) fn brokers(&self) -> Vec<SocketAddr> {
        let first = self.side.ports().0;
        (0..self.brokers.len())
            .map(|n| ([127, 0, 0, 1], first + PORT_STEP * n as u16).into())
            .collect()
    }

    /// Kills the broker that takes sends without a word.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.kill_at(self.at)
    }

    /// Kills this one without a word.
    pub(super) fn kill_at(&mut self, at: usize) -> Result<()> {
        let broker = &mut self.brokers[at];
        broker.kill()?;
        broker.wait()?;
        Ok(())
    }

    /// Starts our broker that was killed again on the same store; the time to its registration.
    pub(super) fn again(&mut self) -> Result<Duration> {
        self.again_at(self.at)
    }

    /// The same with this one.
    pub(super) fn again_at(&mut self, at: usize) -> Result<Duration> {
        let dir = self.dir.join(format!("b{at}"));
        fs::remove_file(dir.join("log"))?;
        let began = Instant::now();
        self.brokers[at] = start_broker(&mut ours("mqbroker")?, &dir, &|log| {
            registered(log, self.side, at)
        })?;
        Ok(began.elapsed())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let all = || self.brokers.iter().rev().chain([&self.name_server]);
        for child in all() {
            let _ = signal_to(child, Signal::CONT);
            let _ = signal_to(child, Signal::TERM);
        }
        let end = Instant::now() + STOP_LIMIT;
        for child in self.brokers.iter_mut().chain([&mut self.name_server]) {
            reap(child, end);
        }
        // Tens of gigabytes would add up otherwise.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn reap(child: &mut Child, end: Instant) {
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal_to(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process id")?;
    // One that has ended is not to be signalled any more.
    match kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        done => Ok(done?),
    }
}

fn listens(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, Duration::from_millis(200)).is_ok()
}

fn wait_for(child: &mut Child, log: &Path, up: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + START_LIMIT;
    while !up() {
        if let Some(status) = child.try_wait()? {
            bail!(
                "the server ended with {status}: {}",
                fs::read_to_string(log)
                    .unwrap_or_default()
                    .lines()
                    .last()
                    .unwrap_or("its log is empty")
            );
        }
        ensure!(
            Instant::now() < end,
            "the server is not up after {START_LIMIT:?}; its log is {}",
            log.display()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    command
        .spawn()
        .with_context(|| format!("starting {:?}", command.get_program()))
}

fn broker_conf(side: Side, mode: Mode, n: usize, store: &Path, extra: &str) -> String {
    let (first, name_server) = side.ports();
    let port_of = |n: usize| first + PORT_STEP * n as u16;
    let port = port_of(n);
    let mut conf = format!(
        "brokerClusterName=bench\nbrokerName=bench\nbrokerIP1=127.0.0.1\nbindAddress=127.0.0.1\nlistenPort={port}\nhaListenPort={}\nnamesrvAddr=127.0.0.1:{name_server}\nstorePathRootDir={}\nautoCreateTopicEnable=true\n",
        port + 1,
        store.display()
    );
    if side != Side::Original {
        conf += &format!("httpPort={}\n", port + 2);
    }
    let (id, role) = match (mode, n) {
        (Mode::Slave { .. }, 1) => (1, "SLAVE"),
        (Mode::Slave { sync: true }, _) => (0, "SYNC_MASTER"),
        _ => (0, "ASYNC_MASTER"),
    };
    conf += &format!("brokerId={id}\nbrokerRole={role}\n");
    if mode == Mode::Dledger {
        let peers: Vec<String> = (0..MEMBERS)
            .map(|n| format!("n{n}-127.0.0.1:{}", port_of(n) + GROUP_PORT))
            .collect();
        conf += &format!(
            "enableDLegerCommitLog=true\ndLegerGroup=bench\ndLegerSelfId=n{n}\ndLegerPeers={}\n",
            peers.join(";")
        );
    }
    conf + extra
}

/// Our own binary, acting as a server.
pub(super) fn ours(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name);
    Ok(command)
}

/// Registered, not merely listening: the line that upstream's launcher prints too.
fn registered(log: &Path, side: Side, n: usize) -> bool {
    fs::read_to_string(log)
        .unwrap_or_default()
        .contains("boot success")
        && ready(side.ports().0 + PORT_STEP * n as u16 + 2)
}

/// Starts a name server and the brokers of one side, each with a folder of its own in `dir`, which is removed in the end; returns when sends are
/// taken. `wrap` stands before our broker's command line.
pub(super) fn start(
    side: Side,
    mode: Mode,
    dir: &Path,
    cache: &Path,
    extra: &str,
) -> Result<Servers> {
    start_under(&[], side, mode, dir, cache, extra)
}

pub(super) fn start_under(
    wrap: &[String],
    side: Side,
    mode: Mode,
    dir: &Path,
    cache: &Path,
    extra: &str,
) -> Result<Servers> {
    let (first, name_server_port) = side.ports();
    let jars = match side {
        Side::Original => original_jars(cache)?,
        _ => PathBuf::new(),
    };
    let dir_of = |what: &str| -> Result<PathBuf> {
        let dir = dir.join(what);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    };
    let command = |name: &str, heap: &str, class: &str, dir: &Path| match side {
        Side::Original => java(&jars, dir, heap, class),
        _ => ours(name),
    };

    let home = dir_of("namesrv")?;
    let mut conf = format!("listenPort={name_server_port}\n");
    if side != Side::Original {
        conf += &format!(
            "bindAddress=127.0.0.1\nhttpPort=0\nkvConfigPath={}\n",
            home.join("kv.json").display()
        );
    }
    fs::write(home.join("conf"), conf)?;
    let log = home.join("log");
    let mut name_server = command(
        "mqnamesrv",
        "256m",
        "org.apache.rocketmq.namesrv.NamesrvStartup",
        &home,
    )?;
    let mut name_server = spawn(name_server.arg("-c").arg(home.join("conf")), &log)?;
    let waited = wait_for(&mut name_server, &log, || {
        listens(([127, 0, 0, 1], name_server_port).into())
    });
    // From here on whatever fails ends what was started.
    let mut servers = Servers {
        name_server,
        brokers: Vec::new(),
        dir: dir.to_owned(),
        side,
        broker: ([127, 0, 0, 1], first).into(),
        at: 0,
        started_in: Duration::ZERO,
    };
    waited?;
    for n in 0..mode.brokers() {
        let home = dir_of(&format!("b{n}"))?;
        fs::write(
            home.join("conf"),
            broker_conf(side, mode, n, &home.join("store"), extra),
        )?;
        let heap = if mode == Mode::Alone { "2g" } else { "1g" };
        let mut broker = command(
            "mqbroker",
            heap,
            "org.apache.rocketmq.broker.BrokerStartup",
            &home,
        )?;
        if let [program, arguments @ ..] = wrap {
            let mut wrapped = Command::new(program);
            wrapped
                .args(arguments)
                .arg(broker.get_program())
                .args(broker.get_args());
            broker = wrapped;
        }
        let port = first + PORT_STEP * n as u16;
        let began = Instant::now();
        let up = |log: &Path| match (side, mode) {
            // A member of a group is up when it has a master, which one alone never has.
            (Side::Original, _) | (_, Mode::Dledger) => listens(([127, 0, 0, 1], port).into()),
            _ => registered(log, side, n),
        };
        servers.brokers.push(start_broker(&mut broker, &home, &up)?);
        servers.started_in = began.elapsed();
    }
    if mode != Mode::Alone {
        servers.find_master(mode)?;
    }
    Ok(servers)
}

fn start_broker(command: &mut Command, home: &Path, up: &dyn Fn(&Path) -> bool) -> Result<Child> {
    let log = home.join("log");
    let mut child = spawn(command.arg("-c").arg(home.join("conf")), &log)?;
    match wait_for(&mut child, &log, || up(&log)) {
        Ok(()) => Ok(child),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

impl Servers {
    /// Waits until one of the brokers takes sends with every answer a plain success, and its copies follow.
    fn find_master(&mut self, mode: Mode) -> Result<()> {
        let first = self.broker.port();
        let end = Instant::now() + START_LIMIT;
        let candidates = if mode == Mode::Dledger { MEMBERS } else { 1 };
        loop {
            for n in 0..candidates {
                self.broker.set_port(first + PORT_STEP * n as u16);
                if load::takes_sends(self.broker)
                    && (0..self.brokers.len()).all(|n| self.has_records(n, mode))
                {
                    self.at = n;
                    return Ok(());
                }
            }
            ensure!(
                Instant::now() < end,
                "the group takes no sends after {START_LIMIT:?}; its logs are in {}",
                self.dir.display()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Something was written to the log of the `n`th broker. Both sides make its files with holes.
    fn has_records(&self, n: usize, mode: Mode) -> bool {
        let store = self.dir.join(format!("b{n}")).join("store");
        let log = match mode {
            // The original's group log lies in a folder named for its member.
            Mode::Dledger => return true,
            _ => store.join("commitlog"),
        };
        fs::read_dir(log).is_ok_and(|files| {
            files
                .flatten()
                .any(|file| file.metadata().is_ok_and(|data| data.blocks() > 0))
        })
    }
}

/// From the command line to a cluster that is ready: the example, started and stopped again.
pub(super) fn time_up(dir: &Path) -> Result<Duration> {
    fs::create_dir_all(dir)?;
    let file = dir.join("cluster.yaml");
    fs::write(&file, include_str!("../../../examples/single-master.yaml"))?;
    let rocketctl = |args: &[&str]| -> Result<()> {
        let output = Command::new(std::env::current_exe()?)
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(args)
            .output()?;
        ensure!(
            output.status.success(),
            "rocketctl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    let began = Instant::now();
    rocketctl(&["up", "-d", "-f", &file.display().to_string()])?;
    let took = began.elapsed();
    rocketctl(&["down", "--delete-data"])?;
    Ok(took)
}

fn ready(http_port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", http_port)) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut answer = [0; 12];
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer.ends_with(b"200")
}

/// Brings the original's jars through Maven into `cache`, once.
fn original_jars(cache: &Path) -> Result<PathBuf> {
    let jars = cache.join("original-4.9.7");
    if jars.join("done").exists() {
        return Ok(jars);
    }
    fs::create_dir_all(&jars)?;
    fs::write(jars.join("pom.xml"), POM)?;
    eprintln!("fetching the original's jars through Maven, once …");
    let status = Command::new("mvn")
        .args(["-q", "-B", "-f"])
        .arg(jars.join("pom.xml"))
        .arg("dependency:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", jars.join("lib").display()))
        .stdout(Stdio::null())
        .status()
        .context("running mvn: a Maven is needed for the comparison")?;
    ensure!(status.success(), "Maven failed: {status}");
    fs::write(jars.join("done"), "")?;
    Ok(jars)
}

/// A server of the original with this heap, at home in `dir`.
fn java(jars: &Path, dir: &Path, heap: &str, class: &str) -> Result<Command> {
    let home = dir.join("home");
    fs::create_dir_all(home.join("conf"))?;
    for file in ["logback_broker.xml", "logback_namesrv.xml"] {
        fs::write(
            home.join("conf").join(file),
            "<configuration><root level=\"ERROR\"/></configuration>\n",
        )?;
    }
    let mut c = Command::new("java");
    c.args([
        "-server",
        &format!("-Xms{heap}"),
        &format!("-Xmx{heap}"),
        "-XX:+UseG1GC",
    ])
    .args([
        "--add-opens=java.base/java.nio=ALL-UNNAMED",
        "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
        "-Dio.netty.tryReflectionSetAccessible=true",
    ])
    .arg(format!("-Duser.home={}", home.display()))
    .arg(format!("-Drocketmq.home.dir={}", home.display()))
    .arg("-cp")
    .arg(format!("{}/*", jars.join("lib").display()))
    .arg(class);
    Ok(c)
}
