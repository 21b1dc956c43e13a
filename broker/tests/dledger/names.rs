//! What a name server of 4.x knows of a group: it keeps addresses by id, and takes away whoever has the id that is told.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use remoting::Connection;
use remoting::connection::Request;
use remoting::protocol::{RemotingCommand, request_code, response_code};
use remoting::server::{self, ServerConfig, Service};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::common::until;
use crate::group::Cluster;

/// It is busy: a broker that becomes a slave, and stops, waits for its answer.
const SLOW: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Known {
    addresses: BTreeMap<i64, String>,
    /// Who lost the master's place to another's farewell.
    robbed: Vec<String>,
}

#[derive(Default)]
struct OldNameServer(Mutex<Known>);

impl OldNameServer {
    fn master(&self) -> Option<String> {
        self.0.lock().unwrap().addresses.get(&0).cloned()
    }
}

impl Service for OldNameServer {
    type Local = ();

    fn request(
        &self,
        connection: &Arc<Connection>,
        (): &mut (),
        request: Request<'_>,
        out: &mut BytesMut,
    ) {
        let command = request.to_command();
        let field = |name: &str| command.ext(name).map(str::to_owned).unwrap_or_default();
        let mut known = self.0.lock().unwrap();
        let (id, address) = (field("brokerId").parse().unwrap_or(-1), field("brokerAddr"));
        match command.code {
            request_code::REGISTER_BROKER => {
                known.addresses.retain(|i, a| *i == id || *a != address);
                known.addresses.insert(id, address);
            }
            request_code::UNREGISTER_BROKER => {
                if let Some(gone) = known.addresses.remove(&id).filter(|gone| *gone != address) {
                    known.robbed.push(gone);
                }
            }
            _ => {}
        }
        let answer = RemotingCommand::response(response_code::SUCCESS).reply_to(&request);
        if command.code != request_code::REGISTER_BROKER || id == 0 {
            return answer.encode(out);
        }
        let connection = Arc::clone(connection);
        tokio::spawn(async move {
            tokio::time::sleep(SLOW).await;
            connection.send(&answer);
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_server_of_4_x_keeps_the_new_master_when_the_old_one_stops() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (names, stop) = (Arc::new(OldNameServer::default()), CancellationToken::new());
    let serving = server::serve(
        listener,
        ServerConfig::default(),
        Arc::clone(&names),
        stop.clone(),
    );
    let serving = tokio::spawn(serving);
    let mut cluster = Cluster::prepare(dir.path(), 3, "ASYNC_FLUSH", "").await;
    for node in &mut cluster.nodes {
        let text = fs::read_to_string(&node.conf).unwrap();
        let lines = text
            .lines()
            .map(|line| match line.starts_with("namesrvAddr=") {
                true => format!("namesrvAddr={address}\n"),
                false => format!("{line}\n"),
            });
        fs::write(&node.conf, lines.collect::<String>()).unwrap();
        node.start();
    }
    for _ in 0..3 {
        let leader = cluster
            .leader(|s| s.members.iter().all(|m| m.recently_active && m.sure))
            .await;
        let registered = cluster.nodes[leader].address.clone();
        until("the leader is registered as the master", async || {
            names.master().as_ref() == Some(&registered)
                && names.0.lock().unwrap().addresses.len() == 3
        })
        .await;
        cluster.nodes[leader].signal("-TERM");
        cluster.nodes[leader].wait();
        {
            let known = names.0.lock().unwrap();
            assert_eq!(known.robbed, Vec::<String>::new());
            assert!(!known.addresses.values().any(|a| *a == registered));
        }
        let new = cluster.leader(|_| true).await;
        let registered = cluster.nodes[new].address.clone();
        until("the new leader is registered as the master", async || {
            names.master().as_ref() == Some(&registered)
        })
        .await;
        cluster.nodes[leader].start();
    }
    cluster.end().await;
    stop.cancel();
    serving.await.unwrap().unwrap();
}
