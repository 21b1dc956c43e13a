//! The two servers of a comparison as processes: the original from Maven Central, and ours.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// The pom that names the original's servers, so that the command works outside a checkout too.
const POM: &str = include_str!("../../bench/java/pom.xml");

/// A name server and a broker of one kind, on ports of their own.
pub(super) struct Servers {
    processes: Vec<Child>,
    broker_pid: u32,
    pub(super) broker: SocketAddr,
    pub(super) started_in: Duration,
}

impl Servers {
    pub(super) fn broker_pid(&self) -> u32 {
        self.broker_pid
    }

    /// Freezes or thaws all of them, so that the one which is not measured costs nothing and yet stays warm.
    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        for child in &self.processes {
            signal_to(child, signal)?;
        }
        Ok(())
    }
}

fn signal_to(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process id")?;
    Ok(kill_process(pid, signal)?)
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().rev() {
            let _ = signal_to(child, Signal::CONT);
            let _ = signal_to(child, Signal::TERM);
            let end = Instant::now() + STOP_LIMIT;
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > end {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
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
                "the server ended with {status}; its log is {}",
                log.display()
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

fn broker_conf(port: u16, name_server_port: u16, store: &Path, extra: &str) -> String {
    format!(
        "brokerClusterName=bench\nbrokerName=bench\nbrokerId=0\nbrokerIP1=127.0.0.1\nbindAddress=127.0.0.1\nlistenPort={port}\nnamesrvAddr=127.0.0.1:{name_server_port}\nstorePathRootDir={}\nbrokerRole=ASYNC_MASTER\nautoCreateTopicEnable=true\n{extra}",
        store.display()
    )
}

/// Our own binary, acting as both servers.
pub(super) fn start_ours(dir: &Path, extra: &str) -> Result<Servers> {
    let (port, name_server_port) = (13911, 13876);
    fs::create_dir_all(dir)?;
    let exe = std::env::current_exe()?;
    fs::write(
        dir.join("namesrv.conf"),
        format!(
            "listenPort={name_server_port}\nbindAddress=127.0.0.1\nhttpPort=0\nkvConfigPath={}\n",
            dir.join("kv.json").display()
        ),
    )?;
    fs::write(
        dir.join("broker.conf"),
        broker_conf(
            port,
            name_server_port,
            &dir.join("store"),
            &format!("httpPort=13913\n{extra}"),
        ),
    )?;
    let program = |name: &str| {
        let mut command = Command::new(&exe);
        command.arg(name);
        command
    };
    // Registered, not merely listening: the line that upstream's launcher prints too.
    start(
        dir,
        (port, name_server_port),
        program("mqnamesrv"),
        program("mqbroker"),
        |log| {
            fs::read_to_string(log)
                .unwrap_or_default()
                .contains("boot success")
                && ready(13913)
        },
    )
}

/// Starts a name server and then a broker, each with its file in `dir`; the broker's time counts until `up`, which is given its log.
fn start(
    dir: &Path,
    (port, name_server_port): (u16, u16),
    mut name_server: Command,
    mut broker: Command,
    up: impl Fn(&Path) -> bool,
) -> Result<Servers> {
    let log = dir.join("namesrv.log");
    let process = spawn(name_server.arg("-c").arg(dir.join("namesrv.conf")), &log)?;
    let name_server_at = ([127, 0, 0, 1], name_server_port).into();
    // From here on whatever fails ends what was started.
    let mut servers = Servers {
        broker_pid: process.id(),
        processes: vec![process],
        broker: ([127, 0, 0, 1], port).into(),
        started_in: Duration::ZERO,
    };
    wait_for(&mut servers.processes[0], &log, || listens(name_server_at))?;
    let (log, began) = (dir.join("broker.log"), Instant::now());
    let mut process = spawn(broker.arg("-c").arg(dir.join("broker.conf")), &log)?;
    servers.broker_pid = process.id();
    let waited = wait_for(&mut process, &log, || up(&log));
    servers.started_in = began.elapsed();
    servers.processes.push(process);
    waited.map(|()| servers)
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

/// The original's name server and broker 4.9.7 with a 2 GiB heap.
pub(super) fn start_original(dir: &Path, cache: &Path, extra: &str) -> Result<Servers> {
    let (port, name_server_port) = (12911, 12876);
    let jars = original_jars(cache)?;
    fs::create_dir_all(dir.join("conf"))?;
    for file in ["logback_broker.xml", "logback_namesrv.xml"] {
        fs::write(
            dir.join("conf").join(file),
            "<configuration><root level=\"ERROR\"/></configuration>\n",
        )?;
    }
    fs::write(
        dir.join("namesrv.conf"),
        format!("listenPort={name_server_port}\n"),
    )?;
    fs::write(
        dir.join("broker.conf"),
        broker_conf(port, name_server_port, &dir.join("store"), extra),
    )?;
    let java = |heap: &str, class: &str| {
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
        .arg(format!("-Duser.home={}", dir.display()))
        .arg(format!("-Drocketmq.home.dir={}", dir.display()))
        .arg("-cp")
        .arg(format!("{}/*", jars.join("lib").display()))
        .arg(class);
        c
    };
    start(
        dir,
        (port, name_server_port),
        java("256m", "org.apache.rocketmq.namesrv.NamesrvStartup"),
        java("2g", "org.apache.rocketmq.broker.BrokerStartup"),
        |_| listens(([127, 0, 0, 1], port).into()),
    )
}
