//! Servers to test against: brokers as processes, a name server in this one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use namesrv::{NameServer, NamesrvConfig};
use remoting::resolver::HOSTS_FILE_ENV;

/// A broker. A test that fails leaves none behind.
pub(crate) struct BrokerProcess(pub(crate) Child);

impl BrokerProcess {
    /// Starts `mqbroker` and waits until it says that it is up. A file may tell it where hosts are.
    pub(crate) fn start(conf: &Path, hosts: Option<&Path>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mqbroker"));
        if let Some(hosts) = hosts {
            command.env(HOSTS_FILE_ENV, hosts);
        }
        let mut child = command
            .arg("-c")
            .arg(conf)
            .env_remove("NAMESRV_ADDR")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = std::thread::spawn(move || said.map_while(Result::ok).last());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let process = Self(child);
        let up = lines
            .by_ref()
            .map(Result::unwrap)
            .any(|l| l.contains("boot success"));
        if !up {
            drop(process);
            let said = said.join().ok().flatten().unwrap_or_default();
            panic!("the broker of {} ended: {said}", conf.display());
        }
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        process
    }

    /// With SIGKILL.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Below those that the system gives to whoever connects: a broker that starts again finds its own ports free.
const PORTS: std::ops::Range<u32> = 20_000..32_000;
/// A broker's port, the fast port two below it and the replication port behind it.
const PORTS_A_BROKER: u32 = 5;

/// Ports that are free, each with its neighbours, and given to nobody else in this process.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Other processes of tests begin elsewhere.
    let first = std::process::id().wrapping_mul(7_919);
    let next = || {
        let turn = NEXT
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(PORTS_A_BROKER);
        let within = PORTS.end - PORTS.start - PORTS_A_BROKER;
        (PORTS.start + first.wrapping_add(turn) % within) as u16 + 2
    };
    std::iter::repeat_with(next)
        .filter(|port| (port - 2..=port + 1).all(free))
        .take(count)
        .collect()
}

/// A name server on a port of its own.
pub(crate) async fn name_server(dir: &Path) -> NameServer {
    NameServer::start(NamesrvConfig {
        listen_port: 0,
        bind_address: "127.0.0.1".to_owned(),
        http_port: 0,
        kv_config_path: dir.join("kvConfig.json"),
        ..NamesrvConfig::default()
    })
    .await
    .unwrap()
}
