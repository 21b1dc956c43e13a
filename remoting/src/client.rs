//! The calling side: one connection an address, opened when needed and again after it ended.
//!
//! An address is a name and a port; the name is resolved at each connect, so a node that moved is
//! found again by the next call. Requests that the other side initiates go to the handler.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::connection::{Connection, InvokeError, Request, Shared, Socket};
use crate::protocol::{RemotingCommand, SerializeType};
use crate::resolver::Resolver;
use crate::server::{ServerConfig, Service};

#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Frame, idle and output limits of each connection.
    pub limits: ServerConfig,
    /// Time for a connect, look-up included. Default: 3 s, as upstream.
    pub connect_timeout: Duration,
    /// Header form of requests. Default: JSON.
    pub serialize_type: SerializeType,
    pub resolver: Resolver,
    /// Source address of connections; tests and the laptop runner give each node one of its own.
    pub bind: Option<std::net::IpAddr>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            limits: ServerConfig::default(),
            connect_timeout: Duration::from_secs(3),
            serialize_type: SerializeType::Json,
            resolver: Resolver::from_env(),
            bind: None,
        }
    }
}

/// Handles a request from the other side; what it returns is sent back unless the request is oneway.
/// It runs on the connection's task and must not block; a slow answer is sent later with
/// [`Connection::send`].
pub type Handler =
    Arc<dyn Fn(&Arc<Connection>, RemotingCommand) -> Option<RemotingCommand> + Send + Sync>;

/// Cheap to clone; all clones share connections. Dropping the last one closes them.
#[derive(Clone)]
pub struct RemotingClient {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<ClientConfig>,
    /// The async lock of a slot keeps two callers from connecting to one address twice.
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    service: Arc<Callbacks>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

#[derive(Default)]
struct Slot {
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

#[derive(Default)]
struct Callbacks {
    handler: RwLock<Option<Handler>>,
}

impl Service for Callbacks {
    type Local = ();

    fn request(
        &self,
        connection: &Arc<Connection>,
        _local: &mut (),
        request: Request<'_>,
        out: &mut BytesMut,
    ) {
        let handler = self.handler.read().clone();
        let answer = match handler {
            Some(handler) => handler(connection, request.to_command()),
            None => Some(RemotingCommand::not_supported(request.header.code)),
        };
        if let Some(answer) = answer {
            answer.reply_to(&request).encode(out);
        }
    }
}

impl Default for RemotingClient {
    fn default() -> Self {
        Self::new(ClientConfig::default())
    }
}

impl RemotingClient {
    pub fn new(config: ClientConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                config: Arc::new(config),
                slots: Mutex::default(),
                service: Arc::default(),
                shared: Arc::default(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Sets what answers requests from the other side.
    pub fn set_handler(
        &self,
        handler: impl Fn(&Arc<Connection>, RemotingCommand) -> Option<RemotingCommand>
        + Send
        + Sync
        + 'static,
    ) {
        *self.inner.service.handler.write() = Some(Arc::new(handler));
    }

    pub fn resolver(&self) -> &Resolver {
        &self.inner.config.resolver
    }

    /// Sends a request to `address` (`host:port`) and waits for the answer. The time counts from now,
    /// connecting included.
    pub async fn invoke(
        &self,
        address: &str,
        mut command: RemotingCommand,
        timeout: Duration,
    ) -> Result<RemotingCommand, InvokeError> {
        command.serialize_type = self.inner.config.serialize_type;
        let call = async {
            let connection = self.connection(address).await?;
            connection.invoke(command, timeout).await
        };
        match tokio::time::timeout(timeout, call).await {
            Ok(result) => result,
            Err(_) => Err(InvokeError::Timeout(address.to_owned(), timeout)),
        }
    }

    /// Sends a request that wants no answer; success means it was queued.
    pub async fn oneway(
        &self,
        address: &str,
        mut command: RemotingCommand,
    ) -> Result<(), InvokeError> {
        command.serialize_type = self.inner.config.serialize_type;
        let connection = self.connection(address).await?;
        if connection.oneway(command) {
            Ok(())
        } else {
            Err(InvokeError::Closed(address.to_owned()))
        }
    }

    /// The open connection to `address`, made now if there is none.
    pub async fn connection(&self, address: &str) -> Result<Arc<Connection>, InvokeError> {
        let slot = Arc::clone(
            self.inner
                .slots
                .lock()
                .entry(address.to_owned())
                .or_default(),
        );
        let mut connection = slot.connection.lock().await;
        if let Some(open) = connection
            .as_ref()
            .filter(|connection| connection.is_open())
        {
            return Ok(Arc::clone(open));
        }
        let stream = self
            .connect(address)
            .await
            .map_err(|error| InvokeError::Connect(address.to_owned(), error))?;
        let made = self
            .spawn(stream)
            .map_err(|error| InvokeError::Connect(address.to_owned(), error))?;
        *connection = Some(Arc::clone(&made));
        Ok(made)
    }

    async fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let config = &self.inner.config;
        let attempt = async {
            let mut last = None;
            for target in config.resolver.lookup(address).await? {
                match connect_from(config.bind, target).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
        };
        match tokio::time::timeout(config.connect_timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn spawn(&self, stream: TcpStream) -> io::Result<Arc<Connection>> {
        stream.set_nodelay(true)?;
        let limits = &self.inner.config.limits;
        let connection = Connection::new(
            stream.peer_addr()?,
            stream.local_addr()?,
            limits,
            Arc::clone(&self.inner.shared),
        );
        let (config, service, handle) = (
            Arc::clone(&self.inner.config),
            Arc::clone(&self.inner.service),
            Arc::clone(&connection),
        );
        let socket = Socket::new(stream, &connection);
        self.inner.tasks.spawn(async move {
            crate::connection::run(&handle, socket, &config.limits, &*service).await;
        });
        Ok(connection)
    }

    /// Closes the connection to `address`, if there is one, and forgets it.
    pub fn disconnect(&self, address: &str) {
        let slot = self.inner.slots.lock().remove(address);
        if let Some(slot) = slot
            && let Ok(connection) = slot.connection.try_lock()
            && let Some(connection) = connection.as_ref()
        {
            connection.close();
        }
    }

    /// Writes what is queued, closes every connection and joins their tasks.
    pub async fn shutdown(&self) {
        self.inner.shared.stop();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

async fn connect_from(bind: Option<std::net::IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    match bind {
        Some(source) if source.is_ipv4() == target.is_ipv4() => {
            let socket = if target.is_ipv4() {
                tokio::net::TcpSocket::new_v4()?
            } else {
                tokio::net::TcpSocket::new_v6()?
            };
            socket.bind(SocketAddr::new(source, 0))?;
            socket.connect(target).await
        }
        _ => TcpStream::connect(target).await,
    }
}
