//! Between the members: TCP connections on the ports of `dLegerPeers`, two in each direction: entries have one of their own, so
//! that no heartbeat, vote or answer waits behind them.
//!
//! A connection begins with who calls (`greeting`). Then come messages: `length of the message (4)`, `length of
//! its frames (4)`, the message ([`PeerMessage::encode`]), its frames. Whatever is longer than its bound, or no message,
//! ends the connection. Nothing that is sent is certain to arrive, and nothing needs to be.
//!
//! All of it runs on one thread of its own, which never waits for the group's: a message takes room of its sender's
//! until it was looked at, and who has none left is not read from.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use remoting::Resolver;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use super::greeting::Identity;
use super::greeting::{self, Lane};
use super::message::{MAX_ENCODED, MAX_FRAMES, PeerMessage};

/// A connection that is not there by then is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Who does not say by then who it is, is not listened to.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// The next bytes of a message that began to arrive are there by then, however slow the link is.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A member that takes nothing for so long is connected to anew.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The machine at the other end of a silent connection is asked after so long, and so often, whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(2);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_RETRIES: u32 = 3;
/// Between two tries to connect.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Bytes that wait for one member; what comes on top is lost.
const OUTBOX_ENTRIES: usize = 64 * 1024 * 1024;
const OUTBOX_WORDS: usize = 1024 * 1024;
/// Bytes of one member's messages that were read and not looked at yet; a message that is larger has all of it.
const ROOM_ENTRIES: usize = 8 * 1024 * 1024;
const ROOM_WORDS: usize = 1024 * 1024;
/// A message takes so much of it beside its bytes.
const ROOM_EACH: usize = 512;
/// Connections that did not greet yet; the oldest makes room for the next.
const MAX_UNGREETED: usize = 16;
/// Connections of ids that this member does not know, or not yet; the oldest makes room for the next.
const MAX_STRANGERS: usize = 8;
/// Bytes read ahead of each connection.
const READ_BUFFER: usize = 256 * 1024;
/// Small messages that wait go out together, up to this.
const WRITE_BYTES: usize = 64 * 1024;
/// Most messages fit into this beside their frames.
const ENVELOPE: usize = 512;
/// Of what is wrong with those who call, one is told in this time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Told of what comes, on the transport's thread: must not wait.
pub trait Receiver: Send + Sync + 'static {
    /// A message; it is in its sender's way until it is dropped.
    fn message(&self, delivery: Delivery);
    /// A connection to or from a member broke, and no newer one took its place.
    fn lost(&self, id: u64);
    /// A member told who it is; an error is why it is not listened to.
    fn greeted(&self, caller: &Identity) -> Result<(), String>;
    /// Some of the transport panicked: from now on members may be out of reach for ever.
    fn failed(&self);
}

/// A message, the frames of its entries, and the room that both take while they are kept.
pub struct Delivery {
    /// What was said.
    pub message: PeerMessage,
    /// The frames of its entries, behind each other.
    pub frames: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// What waits to be sent on one connection.
struct Outbox {
    limit: usize,
    queue: Mutex<(VecDeque<Vec<u8>>, usize)>,
    filled: Notify,
}

impl Outbox {
    fn new(lane: Lane) -> Self {
        Self {
            limit: match lane {
                Lane::Words => OUTBOX_WORDS,
                Lane::Entries => OUTBOX_ENTRIES,
            },
            queue: Mutex::default(),
            filled: Notify::new(),
        }
    }

    fn is_full(&self, more: usize) -> bool {
        let queue = self.queue.lock();
        queue.1 + more > self.limit && !queue.0.is_empty()
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

    /// So many bytes of what was taken are gone.
    fn sent(&self, bytes: usize) {
        let mut queue = self.queue.lock();
        queue.1 = queue.1.saturating_sub(bytes);
    }

    fn clear(&self) {
        *self.queue.lock() = (VecDeque::new(), 0);
    }
}

struct Peer {
    address: String,
    outboxes: [Arc<Outbox>; Lane::ALL.len()],
    stop: CancellationToken,
}

/// The connections of one member.
pub struct Transport {
    handle: tokio::runtime::Handle,
    identity: Identity,
    resolver: Resolver,
    receiver: Arc<dyn Receiver>,
    peers: Mutex<BTreeMap<u64, Peer>>,
    callers: Arc<Mutex<Callers>>,
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
        let callers = Arc::<Mutex<Callers>>::default();
        let door = Arc::new(Door {
            identity: identity.clone(),
            receiver: Arc::clone(&receiver),
            callers: Arc::clone(&callers),
            complaints: Rarely::default(),
        });
        let accepting = accept(listener, door, stop.clone());
        let told = Arc::clone(&receiver);
        let thread = std::thread::Builder::new()
            .name("dledger-peers".to_owned())
            .spawn(move || {
                let run = AssertUnwindSafe(|| runtime.block_on(accepting));
                if catch_unwind(run).is_err() {
                    told.failed();
                }
            })?;
        Ok(Self {
            handle,
            identity,
            resolver: Resolver::from_env(),
            receiver,
            peers: Mutex::default(),
            callers,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Connects to exactly these members, each `host:port`; itself is left out.
    pub fn set_peers(&self, wanted: &BTreeMap<u64, String>) {
        self.callers.lock().know(wanted.keys().copied().collect());
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
            let stop = self.stop.child_token();
            let outboxes = Lane::ALL.map(|lane| {
                let outbox = Arc::new(Outbox::new(lane));
                let calling = call(
                    id,
                    address.clone(),
                    greeting::encode(&self.identity, lane),
                    self.resolver.clone(),
                    Arc::clone(&outbox),
                    Arc::clone(&self.receiver),
                );
                let stop = stop.clone();
                let task = self.handle.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = calling => {}
                    }
                });
                let told = Arc::clone(&self.receiver);
                self.handle.spawn(tell_panic(task, told));
                outbox
            });
            peers.insert(
                id,
                Peer {
                    address: address.clone(),
                    outboxes,
                    stop,
                },
            );
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
                Some(peer) => Arc::clone(&peer.outboxes[Lane::of(message.kind) as usize]),
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
    greeting: Vec<u8>,
    resolver: Resolver,
    outbox: Arc<Outbox>,
    receiver: Arc<dyn Receiver>,
) {
    loop {
        if let Some(mut stream) = connect(&resolver, &address).await {
            watch(&stream);
            // What waited for a connection is older than what the member will be asked about now.
            outbox.clear();
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

/// A machine that lost its power says no word of it: what it does not acknowledge, and its silence, end the connection.
/// Without this the kernel goes on for a quarter of an hour, though the member may long be at another address.
fn watch(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    if let Err(error) = socket.set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "a silent connection is not asked whether it is alive");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = socket.set_tcp_user_timeout(Some(WRITE_TIMEOUT)) {
        tracing::debug!(%error, "a connection may stay for long when the other machine is gone");
    }
}

/// Whether all of it went out, some of it each [`WRITE_TIMEOUT`].
async fn write(stream: &mut TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match timeout(WRITE_TIMEOUT, stream.write(bytes)).await {
            Ok(Ok(n)) if n > 0 => bytes = &bytes[n..],
            _ => return false,
        }
    }
    true
}

/// Until the connection breaks. The other side never writes: what comes is its end.
async fn pass_on(stream: &mut TcpStream, outbox: &Outbox) {
    let mut nothing = [0];
    loop {
        match outbox.pop() {
            Some(bytes) => {
                let written = write(stream, &bytes).await;
                outbox.sent(bytes.len());
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

/// A connection that somebody else opened; a later one has a higher number.
struct Caller {
    number: u64,
    stop: CancellationToken,
}

/// Who is connected: of a member one connection each lane, its newest, and few of all others.
#[derive(Default)]
struct Callers {
    newest: u64,
    known: BTreeSet<u64>,
    /// The oldest first.
    ungreeted: VecDeque<Caller>,
    greeted: BTreeMap<(u64, Lane), Caller>,
    /// Outlives the connections: what was read on the one before is still there.
    rooms: BTreeMap<(u64, Lane), Room>,
}

/// What the messages of one member may take at a time, in bytes.
type Room = Arc<Semaphore>;
/// All who are not known share one.
const NOBODY: u64 = 0;

impl Callers {
    fn know(&mut self, ids: BTreeSet<u64>) {
        self.rooms
            .retain(|(id, _), _| *id == NOBODY || ids.contains(id));
        self.known = ids;
    }

    fn came(&mut self, stop: &CancellationToken) -> Caller {
        self.newest += 1;
        if self.ungreeted.len() >= MAX_UNGREETED
            && let Some(oldest) = self.ungreeted.pop_front()
        {
            oldest.stop.cancel();
        }
        let (number, stop) = (self.newest, stop.child_token());
        self.ungreeted.push_back(Caller {
            number,
            stop: stop.clone(),
        });
        Caller { number, stop }
    }

    /// The room for what it says, unless a connection that was opened later has greeted before it.
    fn greeted(&mut self, number: u64, id: u64, lane: Lane) -> Option<Room> {
        let at = self.ungreeted.iter().position(|c| c.number == number)?;
        let caller = self.ungreeted.remove(at)?;
        let key = (id, lane);
        if self.greeted.get(&key).is_some_and(|c| c.number > number) {
            return None;
        }
        // The one before: its end may never be heard of, or is on its way.
        if let Some(before) = self.greeted.remove(&key) {
            before.stop.cancel();
        }
        let stranger = !self.known.contains(&id);
        if stranger {
            let strangers = self
                .greeted
                .iter()
                .filter(|((id, _), _)| !self.known.contains(id));
            let oldest = strangers
                .clone()
                .min_by_key(|(_, c)| c.number)
                .map(|(key, _)| *key);
            if strangers.count() >= MAX_STRANGERS
                && let Some(oldest) = oldest.and_then(|key| self.greeted.remove(&key))
            {
                oldest.stop.cancel();
            }
        }
        self.greeted.insert(key, caller);
        let whose = if stranger { NOBODY } else { id };
        let room = self
            .rooms
            .entry((whose, lane))
            .or_insert_with(|| Arc::new(Semaphore::new(room_of(lane))));
        Some(Arc::clone(room))
    }

    /// Whose connection ended, if it was that member's newest.
    fn gone(&mut self, number: u64) -> Option<u64> {
        self.ungreeted.retain(|c| c.number != number);
        let (&key, _) = self.greeted.iter().find(|(_, c)| c.number == number)?;
        self.greeted.remove(&key);
        Some(key.0)
    }
}

fn room_of(lane: Lane) -> usize {
    match lane {
        Lane::Words => ROOM_WORDS,
        Lane::Entries => ROOM_ENTRIES,
    }
}

/// Lets one of many warnings through.
#[derive(Default)]
struct Rarely(Mutex<Option<(Instant, u64)>>);

impl Rarely {
    /// How many were kept back since the last one, when it is time for another.
    fn due(&self) -> Option<u64> {
        let mut last = self.0.lock();
        let now = Instant::now();
        match &mut *last {
            Some((at, kept_back)) if now < *at + WARN_EVERY => {
                *kept_back += 1;
                None
            }
            last => Some(last.replace((now, 0)).map_or(0, |(_, kept_back)| kept_back)),
        }
    }
}

/// What every connection that somebody else opens needs.
struct Door {
    identity: Identity,
    receiver: Arc<dyn Receiver>,
    callers: Arc<Mutex<Callers>>,
    complaints: Rarely,
}

impl Door {
    fn complain(&self, peer: Option<SocketAddr>, why: &str) {
        if let Some(kept_back) = self.complaints.due() {
            let peer = peer.map(|p| p.to_string()).unwrap_or_default();
            tracing::warn!(
                peer,
                kept_back,
                "a connection to the group's port is ended: {why}"
            );
        }
    }
}

async fn accept(listener: TcpListener, door: Arc<Door>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                door.complain(None, &error.to_string());
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
        };
        let caller = door.callers.lock().came(&stop);
        let (door, told) = (Arc::clone(&door), Arc::clone(&door.receiver));
        let task = tokio::spawn(async move {
            let ended = tokio::select! {
                () = caller.stop.cancelled() => Ok(()),
                ended = listen(stream, &door, caller.number) => ended,
            };
            let lost = door.callers.lock().gone(caller.number);
            match ended {
                Ok(()) => {}
                Err(End::Broken(error)) => {
                    tracing::debug!(%peer, %error, "a member's connection ended")
                }
                Err(End::Wrong(why)) => door.complain(Some(peer), &why),
            }
            if let Some(id) = lost {
                door.receiver.lost(id);
            }
        });
        tokio::spawn(tell_panic(task, told));
    }
}

async fn tell_panic(task: JoinHandle<()>, told: Arc<dyn Receiver>) {
    if task.await.is_err_and(|error| error.is_panic()) {
        told.failed();
    }
}

/// Why a connection that somebody else opened ended.
enum End {
    Broken(io::Error),
    /// It is not what it should be.
    Wrong(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

fn wrong(why: impl Into<String>) -> End {
    End::Wrong(why.into())
}

async fn greeting(stream: &mut BufReader<TcpStream>) -> Result<(Identity, Lane), End> {
    let mut head = [0; greeting::HEAD];
    stream.read_exact(&mut head).await?;
    let length = greeting::length(head).map_err(wrong)?;
    let mut facts = vec![0; length];
    stream.read_exact(&mut facts).await?;
    greeting::decode(&facts).ok_or_else(|| wrong("its greeting lacks what a member tells"))
}

async fn listen(stream: TcpStream, door: &Door, number: u64) -> Result<(), End> {
    watch(&stream);
    let mut stream = BufReader::with_capacity(READ_BUFFER, stream);
    let (caller, lane) = timeout(GREETING_TIMEOUT, greeting(&mut stream))
        .await
        .map_err(|_| wrong("it does not say who it is"))??;
    if caller.group != door.identity.group {
        return Err(wrong(format!("it is of the group {}", caller.group)));
    }
    if caller.id == door.identity.id {
        return Err(wrong(format!(
            "{} says that it is this member",
            caller.address
        )));
    }
    door.receiver.greeted(&caller).map_err(End::Wrong)?;
    let room = door.callers.lock().greeted(number, caller.id, lane);
    match room {
        Some(room) => messages(&mut stream, caller.id, lane, &room, &*door.receiver).await,
        None => Ok(()),
    }
}

async fn within<T>(read: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(READ_TIMEOUT, read)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// So many bytes, some of them each [`READ_TIMEOUT`].
async fn bytes(stream: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let mut rest = (&mut *stream).take((length - bytes.len()) as u64);
        if within(rest.read_buf(&mut bytes)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(bytes)
}

async fn messages(
    stream: &mut BufReader<TcpStream>,
    id: u64,
    lane: Lane,
    room: &Room,
    receiver: &dyn Receiver,
) -> Result<(), End> {
    let none = || {
        wrong(format!(
            "what the member with the id {id} says is no message"
        ))
    };
    let most = match lane {
        Lane::Words => 0,
        Lane::Entries => MAX_FRAMES,
    };
    loop {
        // A member may have nothing to say for long.
        let length = stream.read_u32().await? as usize;
        let frames = within(stream.read_u32()).await?;
        if length > MAX_ENCODED || u64::from(frames) > most {
            return Err(none());
        }
        // Decoded it is not twice as long.
        let weight = (ROOM_EACH + 2 * length + frames as usize).min(room_of(lane));
        let room = Arc::clone(room)
            .acquire_many_owned(weight as u32)
            .await
            .map_err(io::Error::other)?;
        let message = PeerMessage::decode(&bytes(stream, length).await?)
            .filter(|m| m.from == id && m.frames_len() == u64::from(frames))
            .filter(|m| Lane::of(m.kind) == lane)
            .ok_or_else(none)?;
        let frames = bytes(stream, frames as usize).await?;
        receiver.message(Delivery {
            message,
            frames,
            _room: room,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener as StdListener, TcpStream as StdStream};
    use std::sync::mpsc;

    use super::super::entry::{Descriptor, Kind};
    use super::super::message::Type;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[derive(Debug, PartialEq, Eq)]
    enum Heard {
        Message(u64, Type),
        Lost(u64),
        Greeted(u64),
        Failed,
    }

    /// What this one says is too much for who listens.
    const UNBEARABLE: u64 = 1313;

    /// Tells what it hears; entries of one member are never done with.
    struct Ears {
        heard: mpsc::Sender<Heard>,
        never_done_with: Option<u64>,
        kept: Mutex<Vec<Delivery>>,
        refused: Option<u64>,
    }

    impl Receiver for Ears {
        fn message(&self, delivery: Delivery) {
            let m = &delivery.message;
            let _ = self.heard.send(Heard::Message(m.from, m.kind));
            if self.never_done_with == Some(m.from) {
                self.kept.lock().push(delivery);
            }
        }

        fn lost(&self, id: u64) {
            let _ = self.heard.send(Heard::Lost(id));
        }

        fn greeted(&self, caller: &Identity) -> Result<(), String> {
            assert_ne!(caller.id, UNBEARABLE, "a panic that the test wants");
            if self.refused == Some(caller.id) {
                return Err("its segments have another size".into());
            }
            let _ = self.heard.send(Heard::Greeted(caller.id));
            Ok(())
        }

        fn failed(&self) {
            let _ = self.heard.send(Heard::Failed);
        }
    }

    fn identity(id: u64) -> Identity {
        Identity {
            id,
            group: "group".into(),
            address: format!("10.0.0.{id}:10911"),
            segment_size: 1 << 20,
            sync_flush: true,
        }
    }

    struct Member {
        transport: Transport,
        ears: Arc<Ears>,
        heard: mpsc::Receiver<Heard>,
        port: String,
    }

    impl Drop for Member {
        fn drop(&mut self) {
            self.transport.stop();
        }
    }

    fn member(id: u64, never_done_with: Option<u64>, refused: Option<u64>) -> Member {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().to_string();
        let (told, heard) = mpsc::channel();
        let ears = Arc::new(Ears {
            heard: told,
            never_done_with,
            kept: Mutex::default(),
            refused,
        });
        let receiver: Arc<dyn Receiver> = Arc::<Ears>::clone(&ears);
        let transport = Transport::start(identity(id), listener, receiver).unwrap();
        Member {
            transport,
            ears,
            heard,
            port,
        }
    }

    impl Member {
        /// Knows these, of whom none is there.
        fn knows(self, ids: &[u64]) -> Self {
            let nowhere = |id: &u64| (*id, "127.0.0.1:1".to_owned());
            self.transport.set_peers(&ids.iter().map(nowhere).collect());
            self
        }

        fn next(&self) -> Heard {
            self.heard.recv_timeout(LIMIT).expect("nothing is heard")
        }

        fn hears(&self, what: &Heard) {
            while self.next() != *what {}
        }
    }

    #[test]
    fn a_panic_is_told() {
        let one = member(1, None, None).knows(&[UNBEARABLE]);
        greet(&mut open(&one), UNBEARABLE, Lane::Words);
        one.hears(&Heard::Failed);
    }

    fn word(from: u64, to: u64) -> PeerMessage {
        let mut m = PeerMessage::new(Type::Heartbeat, from, to);
        m.term = 1;
        m
    }

    fn entries(from: u64, to: u64, bytes: u32) -> PeerMessage {
        let mut m = PeerMessage::new(Type::Append, from, to);
        m.term = 1;
        m.entries.push(Descriptor {
            index: 1,
            term: 1,
            position: 0,
            len: bytes,
            kind: Kind::Records,
        });
        m
    }

    fn send(from: &Member, m: &PeerMessage) -> bool {
        let frames = |out: &mut Vec<u8>| {
            out.resize(out.len() + m.frames_len() as usize, 7);
            Ok(())
        };
        from.transport.send(m, frames).unwrap()
    }

    /// A connection as a member opens it, by hand.
    fn open(to: &Member) -> StdStream {
        let stream = StdStream::connect(&to.port).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn greet(stream: &mut StdStream, id: u64, lane: Lane) {
        let bytes = greeting::encode(&identity(id), lane);
        stream.write_all(&bytes).unwrap();
    }

    fn say(stream: &mut StdStream, m: &PeerMessage) {
        let mut bytes = Vec::new();
        m.encode(&mut bytes);
        let mut out = (bytes.len() as u32).to_be_bytes().to_vec();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&bytes);
        stream.write_all(&out).unwrap();
    }

    /// Waits until the other side ended it.
    fn ends(stream: &mut StdStream) {
        match stream.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("the connection lives: {other:?}"),
        }
    }

    #[test]
    fn who_is_not_listened_to_holds_up_nobody_else() {
        let one = member(1, Some(2), None);
        let two = member(2, None, None);
        let three = member(3, None, None);
        let all = [&one, &two, &three];
        let ports = (1..).zip(all.map(|m| m.port.clone())).collect();
        for member in all {
            member.transport.set_peers(&ports);
        }
        // Until it takes no more, with far more than fits on the way.
        let heard = || {
            let heard = one.ears.kept.lock().len();
            (
                heard,
                two.transport.peers.lock()[&1].outboxes[1].queue.lock().1,
            )
        };
        let until = Instant::now() + LIMIT;
        let piece = 1 << 20;
        while heard().0 < ROOM_ENTRIES / piece - 1 || heard().1 < OUTBOX_ENTRIES / 2 {
            assert!(Instant::now() < until, "{:?}", heard());
            if !send(&two, &entries(2, 1, piece as u32)) {
                std::thread::yield_now();
            }
        }
        // The third is heard, and so are the small words of the second.
        reaches(&three, &word(3, 1), &one);
        reaches(&two, &word(2, 1), &one);
        // What the first says goes out, entries too.
        reaches(&one, &entries(1, 3, 100), &three);
        reaches(&one, &word(1, 2), &two);
        let kept: usize = one.ears.kept.lock().iter().map(|d| d.frames.len()).sum();
        assert!(kept <= ROOM_ENTRIES, "{kept}");
        // It goes on once there is room.
        while one.heard.try_recv().is_ok() {}
        one.ears.kept.lock().clear();
        one.hears(&Heard::Message(2, Type::Append));
    }

    /// What is sent before the connection is there is dropped: again and again, then.
    fn reaches(from: &Member, m: &PeerMessage, to: &Member) {
        let until = Instant::now() + LIMIT;
        let wanted = Heard::Message(m.from, m.kind);
        loop {
            assert!(Instant::now() < until, "{wanted:?} does not come");
            send(from, m);
            while let Ok(heard) = to.heard.recv_timeout(Duration::from_millis(10)) {
                if heard == wanted {
                    return;
                }
            }
        }
    }

    #[test]
    fn a_newer_connection_takes_the_place_of_the_older_and_nobody_is_lost() {
        let one = member(1, None, None).knows(&[2]);
        let (mut older, mut newer) = (open(&one), open(&one));
        greet(&mut older, 2, Lane::Words);
        assert_eq!(one.next(), Heard::Greeted(2));
        say(&mut older, &word(2, 1));
        assert_eq!(one.next(), Heard::Message(2, Type::Heartbeat));
        greet(&mut newer, 2, Lane::Words);
        assert_eq!(one.next(), Heard::Greeted(2));
        ends(&mut older);
        say(&mut newer, &word(2, 1));
        assert_eq!(one.next(), Heard::Message(2, Type::Heartbeat));
        // The other lane is another connection.
        let mut beside = open(&one);
        greet(&mut beside, 2, Lane::Entries);
        assert_eq!(one.next(), Heard::Greeted(2));
        say(&mut newer, &word(2, 1));
        assert_eq!(one.next(), Heard::Message(2, Type::Heartbeat));
        drop(newer);
        assert_eq!(one.next(), Heard::Lost(2));
    }

    #[test]
    fn a_connection_that_greets_late_does_not_take_the_place_of_a_newer_one() {
        let one = member(1, None, None).knows(&[2]);
        let (mut older, mut newer) = (open(&one), open(&one));
        greet(&mut newer, 2, Lane::Words);
        assert_eq!(one.next(), Heard::Greeted(2));
        greet(&mut older, 2, Lane::Words);
        ends(&mut older);
        say(&mut newer, &word(2, 1));
        one.hears(&Heard::Message(2, Type::Heartbeat));
        assert!(one.heard.try_recv().is_err(), "nobody is lost");
    }

    #[test]
    fn a_member_that_comes_again_and_again_is_heard_each_time() {
        let one = member(1, None, None).knows(&[2]);
        let mut held = Vec::new();
        for _ in 0..4 * MAX_UNGREETED {
            let mut stream = open(&one);
            greet(&mut stream, 2, Lane::Words);
            say(&mut stream, &word(2, 1));
            one.hears(&Heard::Message(2, Type::Heartbeat));
            // Its machine lost power: no word of the end.
            held.push(stream);
        }
        let newest = held.pop().unwrap();
        for mut stream in held {
            ends(&mut stream);
        }
        assert_eq!(one.transport.callers.lock().greeted.len(), 1);
        newest.shutdown(Shutdown::Both).unwrap();
        one.hears(&Heard::Lost(2));
    }

    #[test]
    fn who_says_nothing_or_nothing_sensible_is_not_listened_to_for_long() {
        let one = member(1, None, None).knows(&[2]);
        let mut silent: Vec<StdStream> = (0..2 * MAX_UNGREETED).map(|_| open(&one)).collect();
        let first: Vec<StdStream> = silent.drain(..MAX_UNGREETED).collect();
        for mut stream in first {
            ends(&mut stream);
        }
        // Each byte in time is not the greeting in time.
        let mut slow = silent.pop().unwrap();
        let bytes = greeting::encode(&identity(2), Lane::Words);
        slow.write_all(&bytes[..1]).unwrap();
        let http = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
        let garbage = vec![0xff; 1000];
        let mut other_group = identity(2);
        other_group.group = "another".into();
        let other_group = greeting::encode(&other_group, Lane::Words);
        let itself = greeting::encode(&identity(1), Lane::Words);
        let mut other_version = bytes.clone();
        other_version[4] += 1;
        let good = greeting::encode(&identity(2), Lane::Entries);
        let long = [&good[..], &u32::MAX.to_be_bytes(), &[0; 4]].concat();
        let many = [&good[..], &100_u32.to_be_bytes(), &[0xff; 4]].concat();
        let none = [&good[..], &100_u32.to_be_bytes(), &[0; 4], &[9; 100]].concat();
        for bad in [
            http,
            garbage,
            other_group,
            itself,
            other_version,
            long,
            many,
            none,
        ] {
            let mut stream = open(&one);
            stream.write_all(&bad).unwrap();
            ends(&mut stream);
        }
        ends(&mut slow);
        for mut stream in silent {
            ends(&mut stream);
        }
        let until = Instant::now() + LIMIT;
        while !one.transport.callers.lock().ungreeted.is_empty() {
            assert!(Instant::now() < until, "their places are not free again");
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_is_refused_is_not_listened_to_and_strangers_are_few() {
        let one = member(1, None, Some(3)).knows(&[2, 3]);
        let mut refused = open(&one);
        greet(&mut refused, 3, Lane::Words);
        ends(&mut refused);
        let mut known = open(&one);
        greet(&mut known, 2, Lane::Words);
        one.hears(&Heard::Greeted(2));
        let mut strangers = Vec::new();
        for id in 10..10 + 2 * MAX_STRANGERS as u64 {
            let mut stream = open(&one);
            greet(&mut stream, id, Lane::Words);
            say(&mut stream, &word(id, 1));
            one.hears(&Heard::Message(id, Type::Heartbeat));
            strangers.push(stream);
        }
        for stream in &mut strangers[..MAX_STRANGERS] {
            ends(stream);
        }
        say(&mut known, &word(2, 1));
        one.hears(&Heard::Message(2, Type::Heartbeat));
        assert_eq!(
            one.transport.callers.lock().greeted.len(),
            MAX_STRANGERS + 1
        );
    }

    #[test]
    fn a_machine_that_is_gone_is_found_out() {
        let one = member(1, None, None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let stream = runtime.block_on(TcpStream::connect(&one.port)).unwrap();
        watch(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(WRITE_TIMEOUT));
    }

    #[test]
    fn one_of_many_warnings_is_given() {
        let rarely = Rarely::default();
        assert_eq!(rarely.due(), Some(0));
        assert_eq!(rarely.due(), None);
        assert_eq!(rarely.due(), None);
        let past = rarely.0.lock().take().map(|(at, n)| (at - WARN_EVERY, n));
        *rarely.0.lock() = past;
        assert_eq!(rarely.due(), Some(2));
    }
}
