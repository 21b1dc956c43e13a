//! One connection: the task that owns the socket, and the handle everybody else holds.
//!
//! The task reads into one reused buffer, hands every complete frame of a read to the service, and
//! writes all answers with one call. Frames of other threads go straight to the socket while the task is
//! parked with nothing unsent, so that nobody is woken for them; else, and what the socket does not take, they
//! go into the outbox, and the task is woken only if it is parked and only once until it has looked.
//! Memory is bounded: a frame by its
//! declared length, and only as its bytes arrive; unsent output by a limit at which reading stops
//! and a second one at which the connection is given up.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

use crate::protocol::command::{ReplyKey, ReplyTarget, split_frame};
use crate::protocol::{DecodeError, HeaderView, RemotingCommand, SerializeType};
use crate::server::{ServerConfig, Service};

/// First size of a read buffer; a pull or a heartbeat fits.
const READ_BUFFER: usize = 8 * 1024;

/// A buffer that was filled by one read grows up to this, so that a busy sender needs few reads.
const READ_BUFFER_BUSY: usize = 128 * 1024;

/// Buffers above this are given back once they are empty.
const BUFFER_KEPT: usize = 256 * 1024;

/// First byte of a TLS record. No frame starts with it: it would declare 369 MB.
const TLS_HANDSHAKE: u8 = 0x16;

/// Why an [`Connection::invoke`] has no answer.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    #[error("no connection to {0}: {1}")]
    Connect(String, #[source] std::io::Error),
    #[error("connection to {0} closed before the answer came")]
    Closed(String),
    #[error("{0} did not answer within {1:?}")]
    Timeout(String, Duration),
}

/// Output that other threads left for the connection's task.
#[derive(Default)]
struct Outbox {
    frames: BytesMut,
    /// The task's own unsent bytes, as it last told; counts toward the limit.
    unsent: usize,
    /// Present while the task is parked and nobody has woken it yet.
    waker: Option<Waker>,
    /// The socket, where there is one, until the connection has ended.
    socket: Option<Arc<OwnedWriteHalf>>,
    /// The beginning of what `frames` begins with is sent: it must go before anything else.
    begun: bool,
    /// Something was sent past the task since it last looked.
    sent: bool,
}

impl Outbox {
    /// Sends what the socket takes at once, and says how much that was. Only while the task is parked with nothing
    /// unsent, so that no two frames are mixed.
    fn send_now(&mut self, frames: &[u8]) -> usize {
        if self.waker.is_none() || self.unsent > 0 || !self.frames.is_empty() {
            return 0;
        }
        // An error is the task's to find.
        let sent = match &self.socket {
            Some(socket) => socket.try_write(frames).unwrap_or(0),
            None => 0,
        };
        self.sent |= sent > 0;
        self.begun = sent > 0 && sent < frames.len();
        sent
    }
}

/// What the connections of one server or client have in common.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Bytes that they hold for long frames in arrival.
    incomplete: AtomicUsize,
    /// Set before `stop` is cancelled: a task that has been woken looks here, which costs less than asking the token.
    stopping: AtomicBool,
    stop: CancellationToken,
}

impl Shared {
    /// Ends every connection, now and later.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.cancel();
    }
}

/// A TCP socket whose writing end the connection's handle holds too.
pub(crate) struct Socket {
    read: OwnedReadHalf,
    write: Arc<OwnedWriteHalf>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, connection: &Connection) -> Self {
        let (read, write) = stream.into_split();
        let write = Arc::new(write);
        connection.outbox.lock().socket = Some(Arc::clone(&write));
        Self { read, write }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let stream: &TcpStream = (*self.write).as_ref();
        loop {
            std::task::ready!(stream.poll_write_ready(cx))?;
            match stream.try_write(bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The handle of a connection. Frames given to it are sent in order; after it closed they are dropped.
pub struct Connection {
    id: u64,
    peer: SocketAddr,
    local: SocketAddr,
    outbox_hard_limit: usize,
    shared: Arc<Shared>,
    open: AtomicBool,
    outbox: Mutex<Outbox>,
    in_flight: AtomicUsize,
    next_opaque: AtomicI32,
    waiting: Mutex<HashMap<i32, oneshot::Sender<RemotingCommand>>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(
        peer: SocketAddr,
        local: SocketAddr,
        config: &ServerConfig,
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            peer,
            local,
            outbox_hard_limit: config.outbox_hard_limit,
            shared,
            open: AtomicBool::new(true),
            outbox: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            next_opaque: AtomicI32::new(0),
            waiting: Mutex::default(),
        })
    }

    /// A handle without a socket, for tests of processors: what is sent stays in the outbox.
    pub fn detached(peer: SocketAddr, local: SocketAddr) -> Arc<Self> {
        Self::new(peer, local, &ServerConfig::default(), Arc::default())
    }

    /// Takes the frames that were sent on a [`Connection::detached`] handle.
    pub fn take_sent(&self) -> BytesMut {
        std::mem::take(&mut self.outbox.lock().frames)
    }

    /// Unique in this process, never reused.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Bytes of this connection's requests whose answers wait, as far as the service counts them.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request whose answer waits.
    pub fn begin_waiting(&self, bytes: usize) {
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back what [`Connection::begin_waiting`] counted.
    pub fn end_waiting(&self, bytes: usize) {
        self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Closes the connection; what is in the outbox may be lost.
    pub fn close(&self) {
        self.open.store(false, Ordering::Release);
        let waker = self.outbox.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Sends a frame or queues it. False if the connection is closed. An answer to a oneway request is dropped.
    pub fn send(&self, command: &RemotingCommand) -> bool {
        if command.is_unwanted() {
            return self.is_open();
        }
        let mut frame = BytesMut::new();
        command.encode(&mut frame);
        self.send_encoded(&frame)
    }

    /// Sends or queues frames that are already encoded, with their length fields.
    pub fn send_encoded(&self, frames: &[u8]) -> bool {
        if !self.is_open() {
            return false;
        }
        let mut outbox = self.outbox.lock();
        let sent = outbox.send_now(frames);
        let rest = &frames[sent..];
        if rest.is_empty() {
            return true;
        }
        outbox.frames.extend_from_slice(rest);
        let waker = outbox.waker.take();
        let full = outbox.frames.len() + outbox.unsent > self.outbox_hard_limit;
        if full {
            outbox.frames = BytesMut::new();
        }
        drop(outbox);
        if full {
            tracing::debug!(peer = %self.peer, "peer does not read, connection given up");
            self.open.store(false, Ordering::Release);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        !full
    }

    /// Sends a request that wants no answer.
    pub fn oneway(&self, command: RemotingCommand) -> bool {
        let mut command = command.oneway();
        command.opaque = self.next_opaque();
        self.send(&command)
    }

    /// Sends a request and waits for its answer. The opaque is this connection's own.
    pub async fn invoke(
        &self,
        mut command: RemotingCommand,
        timeout: Duration,
    ) -> Result<RemotingCommand, InvokeError> {
        let (sender, receiver) = oneshot::channel();
        let opaque = self.next_opaque();
        command.opaque = opaque;
        self.waiting.lock().insert(opaque, sender);
        // A close between the two steps empties the table, so its state is looked at after entering.
        let _entry = WaitingEntry {
            connection: self,
            opaque,
        };
        if !self.send(&command) {
            return Err(InvokeError::Closed(self.peer.to_string()));
        }
        match tokio::time::timeout(timeout, receiver).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(InvokeError::Closed(self.peer.to_string())),
            Err(_) => Err(InvokeError::Timeout(self.peer.to_string(), timeout)),
        }
    }

    fn next_opaque(&self) -> i32 {
        self.next_opaque.fetch_add(1, Ordering::Relaxed)
    }

    fn complete(&self, answer: RemotingCommand) {
        let waiting = self.waiting.lock().remove(&answer.opaque);
        match waiting {
            Some(waiting) => {
                // Whoever asked may have given up meanwhile.
                let _ = waiting.send(answer);
            }
            None => {
                tracing::debug!(peer = %self.peer, opaque = answer.opaque, "answer nobody waits for");
            }
        }
    }

    fn fail_waiting(&self) {
        self.waiting.lock().clear();
    }
}

/// Removes its entry whichever way the wait ends, so that timeouts do not fill the table.
struct WaitingEntry<'a> {
    connection: &'a Connection,
    opaque: i32,
}

impl Drop for WaitingEntry<'_> {
    fn drop(&mut self) {
        self.connection.waiting.lock().remove(&self.opaque);
    }
}

/// A request, borrowed from the read buffer.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub header: HeaderView<'a>,
    pub body: &'a [u8],
    pub serialize_type: SerializeType,
    /// Bytes on the wire, with the length field.
    pub frame_len: usize,
}

impl Request<'_> {
    /// An owned copy, for work that outlives the call.
    pub fn to_command(&self) -> RemotingCommand {
        RemotingCommand::from_view(
            &self.header,
            self.serialize_type,
            Bytes::copy_from_slice(self.body),
        )
    }

    pub fn reply_key(&self) -> ReplyKey {
        ReplyKey {
            opaque: self.header.opaque,
            serialize_type: self.serialize_type,
            oneway: self.header.is_oneway(),
        }
    }
}

impl ReplyTarget for Request<'_> {
    fn opaque(&self) -> i32 {
        self.header.opaque
    }

    fn serialize_type(&self) -> SerializeType {
        self.serialize_type
    }

    fn is_oneway(&self) -> bool {
        self.header.is_oneway()
    }
}

/// What the task waits for.
enum Event {
    Received(usize),
    Sent(usize),
    /// Frames in the outbox, or a change of the open flag.
    Outbox,
    Timer,
    Shutdown,
    Failed(std::io::Error),
    EndOfStream,
}

/// Runs a connection to its end. Returns when the peer, the service, an error, the idle time or
/// [`Shared::stop`] ends it; on a stop what is queued is still written, for at most `config.linger`.
pub(crate) async fn run<S: Service, IO: AsyncRead + AsyncWrite + Unpin>(
    connection: &Arc<Connection>,
    io: IO,
    config: &ServerConfig,
    service: &S,
) {
    service.opened(connection);
    let mut closing = Closing {
        connection,
        service,
        local: S::Local::default(),
    };
    let mut task = Task {
        connection,
        io,
        config,
        service,
        input: BytesMut::with_capacity(READ_BUFFER),
        read_size: READ_BUFFER,
        output: BytesMut::new(),
        charged: 0,
        active: Instant::now(),
        partial_since: None,
        greeted: false,
        stalled: false,
        draining: None,
        armed: None,
    };
    let end = task.run(&mut closing.local).await;
    tracing::debug!(peer = %connection.peer, reason = %end, "connection ended");
}

/// The end of a connection, reached even when a processor panics.
struct Closing<'a, S: Service> {
    connection: &'a Arc<Connection>,
    service: &'a S,
    local: S::Local,
}

impl<S: Service> Drop for Closing<'_, S> {
    fn drop(&mut self) {
        self.connection.open.store(false, Ordering::Release);
        self.connection.fail_waiting();
        *self.connection.outbox.lock() = Outbox::default();
        self.service.closed(self.connection, &mut self.local);
    }
}

/// Why a connection ended, for the log.
enum End {
    Peer,
    Closed,
    Idle,
    SlowFrame,
    Shutdown,
    Tls,
    Incomplete,
    Decode(DecodeError),
    Io(std::io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Peer => f.write_str("closed by peer"),
            End::Closed => f.write_str("closed here"),
            End::Idle => f.write_str("idle"),
            End::SlowFrame => f.write_str("a frame was not completed in time"),
            End::Shutdown => f.write_str("shutdown"),
            End::Tls => f.write_str("TLS handshake, and TLS is not enabled"),
            End::Incomplete => f.write_str("too much memory for frames in arrival"),
            End::Decode(error) => write!(f, "malformed frame: {error}"),
            End::Io(error) => write!(f, "{error}"),
        }
    }
}

struct Task<'c, S: Service, IO> {
    connection: &'c Arc<Connection>,
    io: IO,
    config: &'c ServerConfig,
    service: &'c S,
    input: BytesMut,
    /// Room asked for before each read.
    read_size: usize,
    output: BytesMut,
    /// This connection's part of [`Shared::incomplete`].
    charged: usize,
    /// Last time bytes moved in either direction.
    active: Instant,
    /// When the incomplete frame at the head of the buffer began to arrive.
    partial_since: Option<Instant>,
    /// The first byte has been looked at.
    greeted: bool,
    /// Complete frames wait in the buffer because the output is full.
    stalled: bool,
    /// Set at shutdown: until when output is still written.
    draining: Option<Instant>,
    /// Whom the timer and the stop will wake; nobody needs to ask them again until then.
    armed: Option<Waker>,
}

impl<S: Service, IO> Drop for Task<'_, S, IO> {
    fn drop(&mut self) {
        let total = &self.connection.shared.incomplete;
        total.fetch_sub(self.charged, Ordering::Relaxed);
    }
}

impl<S: Service, IO: AsyncRead + AsyncWrite + Unpin> Task<'_, S, IO> {
    async fn run(&mut self, local: &mut S::Local) -> End {
        let shared = Arc::clone(&self.connection.shared);
        let mut timer = pin!(sleep_until(self.deadline()));
        let mut cancelled = pin!(shared.stop.cancelled());
        loop {
            self.collect_outbox();
            if !self.connection.is_open() {
                return End::Closed;
            }
            if self.draining.is_some() && self.output.is_empty() {
                return End::Shutdown;
            }
            let event =
                std::future::poll_fn(|cx| self.poll_event(cx, timer.as_mut(), cancelled.as_mut()))
                    .await;
            match event {
                Event::Sent(count) => {
                    self.output.advance(count);
                    self.active = Instant::now();
                    if self.output.is_empty() {
                        if self.output.capacity() > BUFFER_KEPT {
                            self.output = BytesMut::new();
                        } else {
                            self.output.clear();
                        }
                    }
                    if self.stalled
                        && self.output.len() <= self.config.outbox_limit / 2
                        && let Err(end) = self.process(local)
                    {
                        return end;
                    }
                }
                Event::Received(count) => {
                    self.active = Instant::now();
                    if let Err(end) = self.received(count, local) {
                        return end;
                    }
                }
                Event::Outbox => {}
                Event::Timer => {
                    let now = Instant::now();
                    if std::mem::take(&mut self.connection.outbox.lock().sent) {
                        self.active = now;
                    }
                    if self.draining.is_some_and(|until| until <= now) {
                        return End::Shutdown;
                    }
                    if !self.stalled
                        && self
                            .partial_since
                            .is_some_and(|since| since + self.config.idle <= now)
                    {
                        return End::SlowFrame;
                    }
                    if self.active + self.config.idle <= now {
                        return End::Idle;
                    }
                    let deadline = self.deadline();
                    timer.as_mut().reset(deadline);
                    self.armed = None;
                }
                Event::Shutdown => {
                    let until = Instant::now() + self.config.linger;
                    self.draining = Some(until);
                    timer.as_mut().reset(until);
                    self.armed = None;
                }
                Event::EndOfStream => return End::Peer,
                Event::Failed(error) => return End::Io(error),
            }
        }
    }

    fn deadline(&self) -> Instant {
        let idle = self.active + self.config.idle;
        match (self.draining, self.partial_since) {
            (Some(until), _) => until,
            (None, Some(since)) => idle.min(since + self.config.idle),
            (None, None) => idle,
        }
    }

    /// Takes over what others queued since the last look.
    fn collect_outbox(&mut self) {
        let mut outbox = self.connection.outbox.lock();
        outbox.waker = None;
        if !outbox.frames.is_empty() {
            if outbox.begun {
                outbox.frames.extend_from_slice(&self.output);
                self.output.clear();
            }
            if self.output.is_empty() {
                std::mem::swap(&mut self.output, &mut outbox.frames);
            } else {
                self.output.extend_from_slice(&outbox.frames);
                outbox.frames.clear();
            }
            outbox.begun = false;
        }
        outbox.unsent = self.output.len();
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        timer: Pin<&mut tokio::time::Sleep>,
        cancelled: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Event> {
        if !self.output.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, &self.output) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Event::EndOfStream),
                Poll::Ready(Ok(count)) => return Poll::Ready(Event::Sent(count)),
                Poll::Ready(Err(error)) => return Poll::Ready(Event::Failed(error)),
                Poll::Pending => {}
            }
        }
        // A peer that does not take its answers is not read from: its next requests wait in its own
        // socket.
        if self.output.len() <= self.config.outbox_limit && !self.stalled && self.draining.is_none()
        {
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Event::EndOfStream),
                Poll::Ready(Ok(count)) => return Poll::Ready(Event::Received(count)),
                Poll::Ready(Err(error)) => return Poll::Ready(Event::Failed(error)),
                Poll::Pending => {}
            }
        }
        let armed = self
            .armed
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()));
        if (!armed || timer.is_elapsed()) && timer.poll(cx).is_ready() {
            return Poll::Ready(Event::Timer);
        }
        let stopping = self.connection.shared.stopping.load(Ordering::Acquire);
        if self.draining.is_none() && (!armed || stopping) && cancelled.poll(cx).is_ready() {
            return Poll::Ready(Event::Shutdown);
        }
        if !armed {
            self.armed = Some(cx.waker().clone());
        }
        // Last, so that no wake-up is asked for while there is still something to do.
        let mut outbox = self.connection.outbox.lock();
        if !outbox.frames.is_empty() || !self.connection.is_open() {
            return Poll::Ready(Event::Outbox);
        }
        match &mut outbox.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if self.input.capacity() - self.input.len() < self.read_size / 2 {
            // Grows by what has arrived, so memory follows the peer's bytes and not its claims.
            self.input.reserve(self.read_size.max(self.input.len()));
        }
        poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input)
    }

    fn received(&mut self, count: usize, local: &mut S::Local) -> Result<(), End> {
        if !self.greeted {
            self.greeted = true;
            if self.input.first() == Some(&TLS_HANDSHAKE) {
                return Err(End::Tls);
            }
        }
        if count >= self.read_size {
            self.read_size = (self.read_size * 2).min(READ_BUFFER_BUSY);
        }
        self.process(local)?;
        self.charge()
    }

    /// Accounts for a buffer that has grown beyond what every connection may have.
    fn charge(&mut self) -> Result<(), End> {
        let needed = match self.input.capacity() {
            capacity if capacity > 2 * READ_BUFFER_BUSY => capacity,
            _ => 0,
        };
        if needed == self.charged {
            return Ok(());
        }
        let total = &self.connection.shared.incomplete;
        let before = if needed > self.charged {
            total.fetch_add(needed - self.charged, Ordering::Relaxed)
        } else {
            total.fetch_sub(self.charged - needed, Ordering::Relaxed)
        };
        let grown = needed > self.charged;
        let all = before + needed - self.charged;
        self.charged = needed;
        if grown && all > self.config.max_incomplete {
            return Err(End::Incomplete);
        }
        Ok(())
    }

    /// Handles the complete frames in the buffer, then the end of the batch. Stops early when their
    /// answers fill the output; the rest is handled when it has been written.
    fn process(&mut self, local: &mut S::Local) -> Result<(), End> {
        let mut done = 0;
        self.stalled = false;
        let end = loop {
            if self.output.len() > self.config.outbox_limit {
                self.stalled = true;
                break Ok(());
            }
            match self.frame(done, local) {
                Ok(0) => break Ok(()),
                Ok(length) => done += length,
                Err(error) => break Err(End::Decode(error)),
            }
        };
        if done > 0 {
            self.service
                .batch_end(self.connection, local, &mut self.output);
            self.input.advance(done);
        }
        if self.input.is_empty() {
            self.partial_since = None;
            if self.input.capacity() > BUFFER_KEPT {
                self.input = BytesMut::with_capacity(self.read_size);
            }
        } else if done > 0 || self.partial_since.is_none() {
            self.partial_since = Some(self.active);
        }
        end
    }

    /// Handles the frame at `at`; 0 when it is not complete.
    fn frame(&mut self, at: usize, local: &mut S::Local) -> Result<usize, DecodeError> {
        let Some((length, rest)) = self.input[at..].split_first_chunk() else {
            return Ok(0);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.config.max_frame {
            return Err(DecodeError::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(0);
        };
        let (serialize_type, header, body) = split_frame(frame)?;
        let header = HeaderView::parse(serialize_type, header)?;
        if header.is_response() {
            self.connection.complete(RemotingCommand::from_view(
                &header,
                serialize_type,
                Bytes::copy_from_slice(body),
            ));
            return Ok(4 + length);
        }
        let request = Request {
            header,
            body,
            serialize_type,
            frame_len: 4 + length,
        };
        let answered_from = self.output.len();
        self.service
            .request(self.connection, local, request, &mut self.output);
        if header.is_oneway() {
            // Whatever the processor wrote: a oneway request is never answered.
            self.output.truncate(answered_from);
        }
        Ok(4 + length)
    }
}

#[cfg(test)]
mod tests;
