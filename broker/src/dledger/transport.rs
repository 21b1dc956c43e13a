//! Between the members: one TCP connection in each direction, on the ports of `dLegerPeers`.
//!
//! A connection begins with who calls: `RCDL`, a version byte, the group's name, the caller's id, and the address of its main port. Then
//! come messages: `length of the message (4)`, `length of its frames (4)`, the message ([`PeerMessage::encode`]), its
//! frames. Whatever is longer than its bound, or no message, ends the connection. Nothing that is sent is certain to
//! arrive, and nothing needs to be. All of it runs on one thread of its own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use remoting::Resolver;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::entry::MAX_MEMBERS;
use super::message::{MAX_ENCODED, MAX_FRAMES, PeerMessage};

const MAGIC: &[u8; 4] = b"RCDL";
const VERSION: u8 = 1;
/// Bytes of the group's name, and of an address, in a greeting.
const MAX_WORD: usize = 255;
/// A connection that is not there by then is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A greeting, or the rest of a message that began to arrive, is there by then.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A member that reads nothing for so long is connected to anew.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries to connect.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Bytes that wait for one member; what comes on top is lost.
const OUTBOX_BYTES: usize = 64 * 1024 * 1024;
/// Connections that are read from at a time.
const MAX_INCOMING: usize = 4 * MAX_MEMBERS;
const READ_BUFFER: usize = 256 * 1024;
/// Small messages that wait go out together, up to this.
const WRITE_BYTES: usize = 64 * 1024;
/// Most messages fit into this beside their frames.
const ENVELOPE: usize = 512;

/// Told of what comes: on the transport's thread, may wait for room.
pub trait Receiver: Send + Sync + 'static {
    /// A message, and the frames of its entries.
    fn message(&self, message: PeerMessage, frames: Vec<u8>);
    /// A connection to or from a member broke.
    fn lost(&self, id: u64);
    /// A member said where its main port is.
    fn greeted(&self, id: u64, address: String);
}

/// Who this member is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub id: u64,
    /// `dLegerGroup`.
    pub group: String,
    /// `ip:port` of its main port.
    pub address: String,
}

#[derive(Default)]
struct Outbox {
    queue: Mutex<(VecDeque<Vec<u8>>, usize)>,
    filled: Notify,
}

impl Outbox {
    fn is_full(&self, more: usize) -> bool {
        let queue = self.queue.lock();
        queue.1 + more > OUTBOX_BYTES && !queue.0.is_empty()
    }

    fn push(&self, bytes: Vec<u8>) {
        let mut queue = self.queue.lock();
        queue.1 += bytes.len();
        queue.0.push_back(bytes);
        drop(queue);
        self.filled.notify_one();
    }

    /// What goes out with one write: one message, or several small ones behind each other.
    fn pop(&self) -> Option<Vec<u8>> {
        let mut queue = self.queue.lock();
        let mut bytes = queue.0.pop_front()?;
        while let Some(next) = queue.0.front()
            && bytes.len() + next.len() <= WRITE_BYTES
        {
            bytes.extend_from_slice(next);
            queue.0.pop_front();
        }
        Some(bytes)
    }
}

struct Peer {
    address: String,
    outbox: Arc<Outbox>,
    stop: CancellationToken,
}

/// The connections of one member.
pub struct Transport {
    handle: tokio::runtime::Handle,
    identity: Identity,
    resolver: Resolver,
    receiver: Arc<dyn Receiver>,
    peers: Mutex<BTreeMap<u64, Peer>>,
    stop: CancellationToken,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Transport {
    /// Listens from now on.
    pub fn start(
        identity: Identity,
        listener: std::net::TcpListener,
        receiver: Arc<dyn Receiver>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        listener.set_nonblocking(true)?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let accepting = accept(
            listener,
            identity.clone(),
            Arc::clone(&receiver),
            stop.clone(),
        );
        let thread = std::thread::Builder::new()
            .name("dledger-peers".to_owned())
            .spawn(move || runtime.block_on(accepting))?;
        Ok(Self {
            handle,
            identity,
            resolver: Resolver::from_env(),
            receiver,
            peers: Mutex::default(),
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Connects to exactly these members, each `host:port`; itself is left out.
    pub fn set_peers(&self, wanted: &BTreeMap<u64, String>) {
        let mut peers = self.peers.lock();
        peers.retain(|id, peer| {
            let stays = wanted.get(id) == Some(&peer.address);
            if !stays {
                peer.stop.cancel();
            }
            stays
        });
        for (&id, address) in wanted {
            if id == self.identity.id || peers.contains_key(&id) {
                continue;
            }
            let peer = Peer {
                address: address.clone(),
                outbox: Arc::default(),
                stop: self.stop.child_token(),
            };
            let calling = call(
                id,
                address.clone(),
                self.identity.clone(),
                self.resolver.clone(),
                Arc::clone(&peer.outbox),
                Arc::clone(&self.receiver),
            );
            let stop = peer.stop.clone();
            self.handle.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = calling => {}
                }
            });
            peers.insert(id, peer);
        }
    }

    /// Sends, some time, perhaps; `frames` appends those of the entries. Never waits. False when too much waits for that
    /// member already, or nobody knows it.
    pub fn send(
        &self,
        message: &PeerMessage,
        frames: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<bool> {
        let outbox = {
            let peers = self.peers.lock();
            match peers.get(&message.to) {
                Some(peer) => Arc::clone(&peer.outbox),
                None => return Ok(false),
            }
        };
        let frames_len = message.frames_len();
        let mut bytes = Vec::with_capacity(ENVELOPE + usize::try_from(frames_len).unwrap_or(0));
        bytes.resize(8, 0);
        message.encode(&mut bytes);
        let length = (bytes.len() - 8) as u32;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes[4..8].copy_from_slice(&(frames_len as u32).to_be_bytes());
        // Looked at before the frames are read: a member that is away costs nothing.
        if outbox.is_full(bytes.len() + frames_len as usize) {
            return Ok(false);
        }
        frames(&mut bytes)?;
        outbox.push(bytes);
        Ok(true)
    }

    /// Ends all connections and waits for the thread.
    pub fn stop(&self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// Calls a member again and again, and writes to it what its outbox holds.
async fn call(
    id: u64,
    address: String,
    identity: Identity,
    resolver: Resolver,
    outbox: Arc<Outbox>,
    receiver: Arc<dyn Receiver>,
) {
    let mut greeting = MAGIC.to_vec();
    greeting.push(VERSION);
    greeting.extend_from_slice(&identity.id.to_be_bytes());
    for word in [&identity.group, &identity.address] {
        let word = &word.as_bytes()[..word.len().min(MAX_WORD)];
        greeting.push(word.len() as u8);
        greeting.extend_from_slice(word);
    }
    loop {
        if let Some(mut stream) = connect(&resolver, &address).await {
            let _ = stream.set_nodelay(true);
            // What waited for a connection is older than what the member will be asked about now.
            *outbox.queue.lock() = (VecDeque::new(), 0);
            if write(&mut stream, &greeting).await {
                pass_on(&mut stream, &outbox).await;
            }
            receiver.lost(id);
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

async fn connect(resolver: &Resolver, address: &str) -> Option<TcpStream> {
    let found = timeout(CONNECT_TIMEOUT, resolver.resolve(address)).await;
    for address in found.ok()?.ok()? {
        if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            return Some(stream);
        }
    }
    None
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    matches!(
        timeout(WRITE_TIMEOUT, stream.write_all(bytes)).await,
        Ok(Ok(()))
    )
}

/// Until the connection breaks. The other side never writes: what comes is its end.
async fn pass_on(stream: &mut TcpStream, outbox: &Outbox) {
    let mut nothing = [0];
    loop {
        match outbox.pop() {
            Some(bytes) => {
                let written = write(stream, &bytes).await;
                let mut queue = outbox.queue.lock();
                queue.1 = queue.1.saturating_sub(bytes.len());
                drop(queue);
                if !written {
                    return;
                }
            }
            None => {
                tokio::select! {
                    () = outbox.filled.notified() => {}
                    _ = stream.read(&mut nothing) => return,
                }
            }
        }
    }
}

async fn accept(
    listener: TcpListener,
    identity: Identity,
    receiver: Arc<dyn Receiver>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(MAX_INCOMING));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a member's connection was not accepted");
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            continue;
        };
        let (group, receiver, stop) = (
            identity.group.clone(),
            Arc::clone(&receiver),
            stop.child_token(),
        );
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = stop.cancelled() => {}
                result = listen(stream, &group, &*receiver) => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a member's connection ended");
                    }
                }
            }
        });
    }
}

async fn within<T>(read: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(READ_TIMEOUT, read)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn word(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut bytes = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

async fn listen(stream: TcpStream, group: &str, receiver: &dyn Receiver) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    let peer: SocketAddr = stream.peer_addr()?;
    let mut stream = BufReader::with_capacity(READ_BUFFER, stream);
    let greeting = async {
        let mut head = [0; 5];
        stream.read_exact(&mut head).await?;
        let id = stream.read_u64().await?;
        let theirs = word(&mut stream).await?;
        let address = word(&mut stream).await?;
        if !head.starts_with(MAGIC) || head[4] != VERSION {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((id, theirs, address))
    };
    let (id, theirs, address) = within(greeting).await?;
    if theirs != group {
        tracing::warn!(%peer, theirs, "a member of another group called");
        return Ok(());
    }
    receiver.greeted(id, address);
    let result = messages(&mut stream, id, receiver).await;
    receiver.lost(id);
    result
}

async fn messages(
    stream: &mut BufReader<TcpStream>,
    id: u64,
    receiver: &dyn Receiver,
) -> io::Result<()> {
    loop {
        let length = stream.read_u32().await? as usize;
        let rest = async {
            let frames = stream.read_u32().await?;
            if length > MAX_ENCODED || u64::from(frames) > MAX_FRAMES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut message = vec![0; length];
            stream.read_exact(&mut message).await?;
            let message = PeerMessage::decode(&message)
                .filter(|m| m.from == id && m.frames_len() == u64::from(frames))
                .ok_or(io::ErrorKind::InvalidData)?;
            let mut bytes = vec![0; frames as usize];
            stream.read_exact(&mut bytes).await?;
            Ok((message, bytes))
        };
        let (message, frames) = within(rest).await?;
        receiver.message(message, frames);
    }
}
