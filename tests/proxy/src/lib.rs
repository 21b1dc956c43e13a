//! A TCP proxy that misbehaves on command: it stands between two servers of a test and delays, throttles, holds, tears or
//! closes what they say to each other, each direction by itself.
//!
//! What is held is not lost but late, as behind a cable that was pulled and put back: TCP sends it again. A connection that is
//! closed or torn ends with a reset, as when its machine went down.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Bytes read at a time; small, so that a throttle is smooth.
const PIECE: usize = 16 * 1024;
/// Bytes of one direction that are on their way at most; more stay in the sender's socket.
const MOST_ON_THE_WAY: usize = 4 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What befalls one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Each byte arrives so much later.
    pub delay: Duration,
    /// No more than this; 0 for no limit.
    pub bytes_per_second: u64,
    /// Nothing arrives until this ends.
    pub hold: bool,
    /// Every connection ends after so many bytes from its begin, wherever that is in a message.
    pub tear_after: Option<u64>,
}

/// The two directions of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From who connected.
    ToServer,
    /// To who connected.
    ToClient,
}

#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    to_server: Faults,
    to_client: Faults,
    /// Connections that are older than this end.
    generation: u64,
}

impl Orders {
    fn of(&self, direction: Direction) -> Faults {
        match direction {
            Direction::ToServer => self.to_server,
            Direction::ToClient => self.to_client,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

/// A proxy in front of one server. It ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Listens on a free port of `host` and passes on to `server`.
    pub async fn start(host: IpAddr, server: SocketAddr) -> io::Result<Self> {
        Self::start_at(SocketAddr::new(host, 0), server).await
    }

    /// Listens there and passes on to `server`.
    pub async fn start_at(address: SocketAddr, server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let orders = watch::Sender::new(Orders::default());
        let counters = Arc::new(Counters::default());
        let task = tokio::spawn(accept(
            listener,
            server,
            orders.subscribe(),
            Arc::clone(&counters),
        ));
        Ok(Self {
            address,
            orders,
            counters,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the faults of one direction, of open connections too.
    pub fn set(&self, direction: Direction, faults: Faults) {
        self.orders.send_modify(|orders| match direction {
            Direction::ToServer => orders.to_server = faults,
            Direction::ToClient => orders.to_client = faults,
        });
    }

    /// The same for both directions.
    pub fn set_both(&self, faults: Faults) {
        self.orders.send_modify(|orders| {
            orders.to_server = faults;
            orders.to_client = faults;
        });
    }

    /// Nothing arrives on either side any more, and nobody is told.
    pub fn partition(&self) {
        self.set_both(Faults {
            hold: true,
            ..Faults::default()
        });
    }

    /// No faults from now on; what was held arrives.
    pub fn heal(&self) {
        self.set_both(Faults::default());
    }

    /// Ends all connections with a reset; new ones are served.
    pub fn drop_connections(&self) {
        self.orders.send_modify(|orders| orders.generation += 1);
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.counters.connections.load(Ordering::Relaxed)
    }

    /// Bytes that arrived in this direction so far.
    pub fn passed(&self, direction: Direction) -> u64 {
        match direction {
            Direction::ToServer => self.counters.to_server.load(Ordering::Relaxed),
            Direction::ToClient => self.counters.to_client.load(Ordering::Relaxed),
        }
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    orders: watch::Receiver<Orders>,
    counters: Arc<Counters>,
) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                counters.connections.fetch_add(1, Ordering::Relaxed);
                let (orders, counters) = (orders.clone(), Arc::clone(&counters));
                open.spawn(async move { pass(client, server, orders, &counters).await });
            }
            Some(_) = open.join_next() => {}
        }
    }
}

/// One connection, until either side or an order ends it.
async fn pass(
    client: TcpStream,
    server: SocketAddr,
    mut orders: watch::Receiver<Orders>,
    counters: &Counters,
) {
    let generation = orders.borrow().generation;
    let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(server));
    let Ok(Ok(server)) = connect.await else {
        reset(&client);
        return;
    };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    // Whatever ends this task closes both sockets, with a reset.
    reset(&client);
    reset(&server);
    let (mut of_client, mut to_client) = client.into_split();
    let (mut of_server, mut to_server) = server.into_split();
    let (there, back) = (orders.clone(), orders.clone());
    let ended = async {
        loop {
            if orders.changed().await.is_err() || orders.borrow().generation != generation {
                return;
            }
        }
    };
    tokio::select! {
        () = carry(&mut of_client, &mut to_server, there, Direction::ToServer, &counters.to_server) => {}
        () = carry(&mut of_server, &mut to_client, back, Direction::ToClient, &counters.to_client) => {}
        () = ended => {}
    }
}

fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// When the next bytes may go under a limit.
#[derive(Debug)]
struct Throttle(Instant);

impl Throttle {
    fn next(&mut self, now: Instant, bytes: usize, per_second: u64) -> Instant {
        if per_second == 0 {
            return now;
        }
        let at = self.0.max(now);
        self.0 = at + Duration::from_secs_f64(bytes as f64 / per_second as f64);
        self.0
    }
}

/// One direction of one connection.
async fn carry(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut orders: watch::Receiver<Orders>,
    direction: Direction,
    passed: &AtomicU64,
) {
    let mut on_the_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut waiting = 0;
    let mut open = true;
    let mut gone: u64 = 0;
    let mut throttle = Throttle(Instant::now());
    let mut piece = vec![0; PIECE];
    loop {
        let faults = orders.borrow_and_update().of(direction);
        let left = faults.tear_after.map(|limit| limit.saturating_sub(gone));
        if left == Some(0) {
            return;
        }
        let due = on_the_way
            .front()
            .filter(|_| !faults.hold)
            .map(|(read_at, _)| *read_at + faults.delay);
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { return },
            read = from.read(&mut piece), if open && waiting < MOST_ON_THE_WAY => match read {
                Ok(n) if n > 0 => {
                    on_the_way.push_back((Instant::now(), piece[..n].to_vec()));
                    waiting += n;
                }
                _ => open = false,
            },
            () = sleep_until(due), if due.is_some() => {
                let Some((_, mut bytes)) = on_the_way.pop_front() else { continue };
                waiting -= bytes.len();
                // Whatever is ordered until these are gone: a stream goes on without a hole, or not at all.
                let torn = left.is_some_and(|left| left <= bytes.len() as u64);
                if let Some(left) = left {
                    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                }
                let at = throttle.next(Instant::now(), bytes.len(), faults.bytes_per_second);
                tokio::time::sleep_until(at).await;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
                gone += bytes.len() as u64;
                passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if torn {
                    return;
                }
            }
        }
        if !open && on_the_way.is_empty() {
            return;
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const LIMIT: Duration = Duration::from_secs(10);

    /// A server that sends back what it gets, a proxy in front of it, and a connection.
    async fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let proxy = Proxy::start(HOST, server).await.unwrap();
        let stream = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, stream)
    }

    async fn say(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut back = vec![0; text.len()];
        let read = tokio::time::timeout(LIMIT, stream.read_exact(&mut back));
        read.await.expect("an echo in time")?;
        Ok(back)
    }

    #[tokio::test]
    async fn without_orders_everything_passes() {
        let (proxy, mut stream) = echo().await;
        let text = vec![7; 100_000];
        let (mut read, mut write) = stream.split();
        let mut back = vec![0; text.len()];
        let (sent, got) = tokio::join!(write.write_all(&text), read.read_exact(&mut back));
        sent.unwrap();
        got.unwrap();
        assert!(back == text);
        assert_eq!(
            (
                proxy.connections(),
                proxy.passed(Direction::ToServer),
                proxy.passed(Direction::ToClient)
            ),
            (1, 100_000, 100_000)
        );
    }

    #[tokio::test]
    async fn a_delay_holds_up_each_byte_but_not_the_next_one_behind_it() {
        let (proxy, mut stream) = echo().await;
        let delay = Duration::from_millis(60);
        proxy.set(
            Direction::ToServer,
            Faults {
                delay,
                ..Faults::default()
            },
        );
        let begun = Instant::now();
        for _ in 0..20 {
            stream.write_all(b"x").await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut back = [0; 20];
        stream.read_exact(&mut back).await.unwrap();
        let took = begun.elapsed();
        assert!(took >= delay && took < delay * 10, "{took:?}");
    }

    #[tokio::test]
    async fn a_throttle_lets_through_what_it_is_told() {
        let (proxy, mut stream) = echo().await;
        proxy.set(
            Direction::ToClient,
            Faults {
                bytes_per_second: 200_000,
                ..Faults::default()
            },
        );
        let begun = Instant::now();
        assert_eq!(say(&mut stream, &[1; 40_000]).await.unwrap().len(), 40_000);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(150), "{took:?}");
    }

    #[tokio::test]
    async fn what_is_held_arrives_when_it_is_healed() {
        let (proxy, mut stream) = echo().await;
        say(&mut stream, b"before").await.unwrap();
        proxy.set(
            Direction::ToClient,
            Faults {
                hold: true,
                ..Faults::default()
            },
        );
        stream.write_all(b"held").await.unwrap();
        let mut back = [0; 4];
        let read = tokio::time::timeout(Duration::from_millis(50), stream.read_exact(&mut back));
        assert!(read.await.is_err());
        assert_eq!(proxy.passed(Direction::ToServer), 10);
        proxy.heal();
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"held");
    }

    #[tokio::test]
    async fn a_connection_is_torn_at_the_byte_or_dropped_at_once() {
        let (proxy, mut stream) = echo().await;
        proxy.set(
            Direction::ToClient,
            Faults {
                tear_after: Some(5),
                ..Faults::default()
            },
        );
        stream.write_all(b"1234567890").await.unwrap();
        let mut back = Vec::new();
        // A reset: what came before it may be read or not, nothing beyond it.
        let _ = stream.read_to_end(&mut back).await;
        assert!(b"12345".starts_with(&back), "{back:?}");
        assert_eq!(proxy.passed(Direction::ToClient), 5);
        proxy.heal();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        say(&mut stream, b"again").await.unwrap();
        proxy.drop_connections();
        assert!(stream.read_u8().await.is_err());
    }

    /// What was cut off is gone, so nothing may come behind it, even if the tearing ends in the middle of it.
    #[tokio::test]
    async fn a_torn_stream_does_not_go_on_when_it_heals() {
        let (proxy, mut stream) = echo().await;
        proxy.set(
            Direction::ToClient,
            Faults {
                tear_after: Some(15),
                // Slow enough that the five bytes are still on their way.
                bytes_per_second: 50,
                ..Faults::default()
            },
        );
        say(&mut stream, b"0123456789").await.unwrap();
        stream.write_all(b"1234567890").await.unwrap();
        while proxy.passed(Direction::ToServer) < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.heal();
        let _ = stream.write_all(b"abcde").await;
        let mut back = [0; 10];
        if stream.read_exact(&mut back).await.is_ok() {
            assert_eq!(&back, b"1234567890");
        }
    }
}
