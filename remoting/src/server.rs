//! The listening side: accepts, counts, and joins every task it started.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use crate::connection::{Connection, Request};
use crate::connection::{Shared, Socket};
use crate::protocol::MAX_FRAME;

/// Pause after a failed accept: out of descriptors stays so for a while, and looping does not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Limits of a server or a client.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Largest value of a frame's length field; a longer frame ends its connection.
    /// Default: 16 MiB, the original's limit.
    pub max_frame: usize,
    /// Connections beyond this are closed at once. Default: 10,000.
    pub max_connections: usize,
    /// A connection without a byte in either direction for this long is closed, and so is one whose
    /// frame is not complete after it. Default: 120 s, as upstream.
    pub idle: Duration,
    /// Memory of one server for long frames that have not arrived in full; beyond it the connection
    /// that needs more is closed. Default: 256 MiB, room for sixteen of the longest.
    pub max_incomplete: usize,
    /// Unsent output at which the task stops reading from the connection. Default: 1 MiB.
    pub outbox_limit: usize,
    /// Unsent output at which the connection is given up. Default: 64 MiB.
    pub outbox_hard_limit: usize,
    /// How long queued output is still written after shutdown was asked for. Default: 1 s.
    pub linger: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_frame: MAX_FRAME,
            max_connections: 10_000,
            idle: Duration::from_secs(120),
            max_incomplete: 256 * 1024 * 1024,
            outbox_limit: 1024 * 1024,
            outbox_hard_limit: 64 * 1024 * 1024,
            linger: Duration::from_secs(1),
        }
    }
}

/// What a server does with requests. All calls for one connection come from its own task, in order.
pub trait Service: Send + Sync + 'static {
    /// Scratch that lives as long as a connection, on its task.
    type Local: Default + Send;

    fn opened(&self, _connection: &Arc<Connection>) {}

    /// One request. Never a response: those complete [`Connection::invoke`]. The answer is appended
    /// to `out` in encoded form, or sent later with [`Connection::send`]. Short work only; this must
    /// not block. What is appended for a oneway request is dropped.
    fn request(
        &self,
        connection: &Arc<Connection>,
        local: &mut Self::Local,
        request: Request<'_>,
        out: &mut BytesMut,
    );

    /// After the last complete frame of one read: what concerns all of them happens here, once.
    fn batch_end(
        &self,
        _connection: &Arc<Connection>,
        _local: &mut Self::Local,
        _out: &mut BytesMut,
    ) {
    }

    fn closed(&self, _connection: &Arc<Connection>, _local: &mut Self::Local) {}
}

/// Serves until `shutdown`: then stops accepting, ends every connection and joins its task.
pub async fn serve<S: Service>(
    listener: TcpListener,
    config: ServerConfig,
    service: Arc<S>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let config = Arc::new(config);
    let shared = Arc::new(Shared::default());
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = tasks.join_next() => note_end(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if tasks.len() >= config.max_connections {
                        tracing::warn!(%peer, limit = config.max_connections, "too many connections, closed");
                        continue;
                    }
                    let (config, service, shared) = (Arc::clone(&config), Arc::clone(&service), Arc::clone(&shared));
                    tasks.spawn(async move {
                        serve_tcp(stream, &config, shared, &*service).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            },
        }
    }
    drop(listener);
    shared.stop();
    while let Some(ended) = tasks.join_next().await {
        note_end(ended);
    }
    Ok(())
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}

async fn serve_tcp<S: Service>(
    stream: TcpStream,
    config: &ServerConfig,
    shared: Arc<Shared>,
    service: &S,
) {
    // The peer may be gone before its task runs.
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else {
        return;
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY not set");
    }
    let connection = Connection::new(peer, local, config, shared);
    let socket = Socket::new(stream, &connection);
    crate::connection::run(&connection, socket, config, service).await;
}
