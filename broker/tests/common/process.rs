//! Servers to test against: brokers as processes, a name server in this one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

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
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let process = Self(child);
        let up = lines
            .by_ref()
            .map(Result::unwrap)
            .any(|l| l.contains("boot success"));
        assert!(
            up,
            "the broker of {} ended before it was up",
            conf.display()
        );
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

/// Ports that are free, each with its neighbours (the fast port, the replication port).
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::new();
    while ports.len() < count {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if port > 20_000
            && free(port - 2)
            && free(port + 1)
            && ports.iter().all(|p| p.abs_diff(port) > 4)
        {
            ports.push(port);
        }
    }
    ports
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
