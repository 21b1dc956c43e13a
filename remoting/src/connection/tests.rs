use std::sync::atomic::AtomicUsize;

use bytes::BufMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::client::{ClientConfig, RemotingClient};
use crate::protocol::response_code;

const ECHO: i32 = 10;
const LATER: i32 = 11;
const CALL_BACK: i32 = 12;
const BIG: i32 = 13;
const BIG_ANSWER: usize = 64 * 1024;

/// Echoes bodies, answers some requests from elsewhere, and counts what it sees.
#[derive(Default)]
struct Echo {
    batches: AtomicUsize,
    requests: AtomicUsize,
    opened: AtomicUsize,
    closed: AtomicUsize,
}

impl Service for Echo {
    type Local = ();

    fn opened(&self, _connection: &Arc<Connection>) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn request(
        &self,
        connection: &Arc<Connection>,
        _local: &mut (),
        request: Request<'_>,
        out: &mut BytesMut,
    ) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = |body: Bytes| {
            RemotingCommand::response(response_code::SUCCESS)
                .with_body(body)
                .reply_to(&request)
        };
        let body = Bytes::copy_from_slice(request.body);
        match request.header.code {
            ECHO => answer(body).encode(out),
            LATER => {
                let (connection, answer) = (Arc::clone(connection), answer(body));
                std::thread::spawn(move || connection.send(&answer));
            }
            CALL_BACK => {
                let (connection, key) = (Arc::clone(connection), request.reply_key());
                tokio::spawn(async move {
                    let called = connection
                        .invoke(RemotingCommand::request(39), Duration::from_secs(5))
                        .await
                        .unwrap();
                    connection.send(
                        &RemotingCommand::response(0)
                            .with_body(called.body)
                            .reply_to(&key),
                    );
                });
            }
            BIG => answer(vec![7; BIG_ANSWER].into()).encode(out),
            code => RemotingCommand::not_supported(code)
                .reply_to(&request)
                .encode(out),
        }
    }

    fn batch_end(&self, _: &Arc<Connection>, _: &mut (), _: &mut BytesMut) {
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    fn closed(&self, _: &Arc<Connection>, _: &mut ()) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

struct Rig {
    peer: DuplexStream,
    service: Arc<Echo>,
    connection: Arc<Connection>,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

/// A connection over a pipe of `pipe` bytes in each direction.
fn rig(config: ServerConfig, pipe: usize) -> Rig {
    let (peer, io) = duplex(pipe);
    let service = Arc::new(Echo::default());
    let address = "127.0.0.1:1".parse().unwrap();
    let shared = Arc::new(Shared::default());
    let connection = Connection::new(address, address, &config, Arc::clone(&shared));
    let task = {
        let (service, connection) = (Arc::clone(&service), Arc::clone(&connection));
        tokio::spawn(async move { run(&connection, io, &config, &*service).await })
    };
    Rig {
        peer,
        service,
        connection,
        shared,
        task,
    }
}

fn request(code: i32, opaque: i32, body: &[u8]) -> RemotingCommand {
    let mut request = RemotingCommand::request(code).with_body(body.to_vec());
    request.opaque = opaque;
    request
}

async fn read_frame(io: &mut (impl AsyncReadExt + Unpin)) -> RemotingCommand {
    let length = io.read_u32().await.unwrap() as usize;
    let mut frame = vec![0; length];
    io.read_exact(&mut frame).await.unwrap();
    RemotingCommand::decode(&frame).unwrap()
}

/// The peer sees the end of the stream and nothing before it.
async fn expect_end(peer: &mut DuplexStream) {
    assert_eq!(
        peer.read_u8().await.unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof
    );
}

#[tokio::test]
async fn one_batch_is_answered_once() {
    let mut rig = rig(ServerConfig::default(), 1 << 16);
    let mut frames = BytesMut::new();
    for opaque in 0..20 {
        request(ECHO, opaque, &[opaque as u8]).encode(&mut frames);
    }
    rig.peer.write_all(&frames).await.unwrap();
    for opaque in 0..20 {
        let answer = read_frame(&mut rig.peer).await;
        assert_eq!(
            (answer.opaque, &answer.body[..]),
            (opaque, &[opaque as u8][..])
        );
        assert!(answer.is_response());
    }
    assert_eq!(rig.service.requests.load(Ordering::Relaxed), 20);
    assert_eq!(rig.service.batches.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_frame_may_come_byte_by_byte() {
    let mut rig = rig(ServerConfig::default(), 1);
    let frame = request(ECHO, 3, &[9; 300]).to_frame();
    let (mut reader, mut writer) = tokio::io::split(rig.peer);
    let write = async {
        for byte in frame {
            writer.write_u8(byte).await.unwrap();
        }
    };
    let (answer, ()) = tokio::join!(read_frame(&mut reader), write);
    assert_eq!(&answer.body[..], [9; 300]);
    rig.shared.stop();
    rig.task.await.unwrap();
    rig.peer = reader.unsplit(writer);
    expect_end(&mut rig.peer).await;
}

#[tokio::test]
async fn a_oneway_request_is_never_answered() {
    let mut rig = rig(ServerConfig::default(), 1 << 16);
    for command in [
        request(ECHO, 1, b"a").oneway(),
        request(LATER, 2, b"b").oneway(),
        request(999, 3, b"c").oneway(),
        request(ECHO, 4, b"d"),
    ] {
        rig.peer.write_all(&command.to_frame()).await.unwrap();
    }
    assert_eq!(read_frame(&mut rig.peer).await.opaque, 4);
    rig.peer.shutdown().await.unwrap();
    rig.task.await.unwrap();
    expect_end(&mut rig.peer).await;
    assert_eq!(rig.service.closed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_unknown_code_gets_upstreams_text() {
    let mut rig = rig(ServerConfig::default(), 1 << 16);
    rig.peer
        .write_all(&request(999, 3, b"").to_frame())
        .await
        .unwrap();
    let answer = read_frame(&mut rig.peer).await;
    assert_eq!(answer.code, response_code::REQUEST_CODE_NOT_SUPPORTED);
    assert_eq!(answer.remark.unwrap(), " request type 999 not supported");
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let too_long = (17u32 << 20).to_be_bytes().to_vec();
    let tls = vec![0x16, 3, 1, 0, 0];
    let lying_header = [&12u32.to_be_bytes()[..], &[0, 0xFF, 0xFF, 0xFF], &[0; 8]].concat();
    let bad_kind = [&12u32.to_be_bytes()[..], &[9, 0, 0, 1], &[0; 8]].concat();
    let bad_json = [&12u32.to_be_bytes()[..], &[0, 0, 0, 8], b"notjson!"].concat();
    let empty = vec![0; 4];
    for bytes in [too_long, tls, lying_header, bad_kind, bad_json, empty] {
        let mut rig = rig(ServerConfig::default(), 1 << 16);
        rig.peer.write_all(&bytes).await.unwrap();
        rig.task.await.unwrap();
        expect_end(&mut rig.peer).await;
        assert!(!rig.connection.is_open());
        assert!(!rig.connection.send(&RemotingCommand::request(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let started = Instant::now();
    let mut rig = rig(ServerConfig::default(), 1 << 16);
    expect_end(&mut rig.peer).await;
    assert_eq!(started.elapsed().as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn traffic_keeps_a_connection_open() {
    let mut rig = rig(ServerConfig::default(), 1 << 16);
    for opaque in 0..10 {
        tokio::time::advance(Duration::from_secs(100)).await;
        rig.peer
            .write_all(&request(ECHO, opaque, b"x").to_frame())
            .await
            .unwrap();
        assert_eq!(read_frame(&mut rig.peer).await.opaque, opaque);
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_never_ends_is_given_up_although_bytes_trickle_in() {
    let started = Instant::now();
    let mut rig = rig(ServerConfig::default(), 1 << 16);
    rig.peer.write_u32(1 << 20).await.unwrap();
    while rig.peer.write_u8(0).await.is_ok() {
        tokio::time::advance(Duration::from_secs(10)).await;
        tokio::task::yield_now().await;
        assert!(started.elapsed().as_secs() < 200);
    }
    rig.task.await.unwrap();
}

#[tokio::test]
async fn memory_follows_what_arrived_and_not_what_was_declared() {
    let (mut peer, io) = duplex(1 << 16);
    let config = ServerConfig::default();
    let address = "127.0.0.1:1".parse().unwrap();
    let connection = Connection::new(address, address, &config, Arc::default());
    let service = Echo::default();
    let mut task = Task {
        connection: &connection,
        io,
        config: &config,
        service: &service,
        input: BytesMut::new(),
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
    peer.write_u32(15 << 20).await.unwrap();
    let mut sent = 4;
    for _ in 0..20 {
        peer.write_all(&[0; 5000]).await.unwrap();
        sent += 5000;
        while task.input.len() < sent {
            let count = std::future::poll_fn(|cx| task.poll_read(cx)).await.unwrap();
            task.received(count, &mut ())
                .map_err(|end| end.to_string())
                .unwrap();
        }
        assert!(task.input.capacity() <= 2 * sent + 2 * READ_BUFFER_BUSY);
    }
}

#[tokio::test]
async fn long_frames_in_arrival_share_one_bound() {
    let config = ServerConfig {
        max_incomplete: 8 << 20,
        ..ServerConfig::default()
    };
    let server = server(config, "127.0.0.1:0").await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        let mut begun = (4u32 << 20).to_be_bytes().to_vec();
        begun.resize(2 << 20, 0);
        // The server may refuse in the middle.
        let _ = stream.write_all(&begun).await;
        held.push(stream);
    }
    // At most four of 2 MiB fit; the others are closed.
    let closed = || server.service.closed.load(Ordering::Relaxed);
    let refused = async {
        while closed() < 16 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refused)
        .await
        .unwrap();
    drop(held);
    let mut fresh = TcpStream::connect(&server.address).await.unwrap();
    let big = request(ECHO, 5, &vec![1; 3 << 20]).to_frame();
    while closed() < 20 {
        tokio::task::yield_now().await;
    }
    let (mut reader, mut writer) = fresh.split();
    let (answer, written) = tokio::join!(read_frame(&mut reader), writer.write_all(&big));
    written.unwrap();
    assert_eq!(answer.body.len(), 3 << 20);
    server.shutdown.cancel();
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_not_read_from() {
    let config = ServerConfig {
        outbox_limit: 4 * BIG_ANSWER,
        ..ServerConfig::default()
    };
    let mut rig = rig(config, 1 << 14);
    let mut frames = BytesMut::new();
    const REQUESTS: i32 = 100;
    for opaque in 0..REQUESTS {
        request(BIG, opaque, b"").encode(&mut frames);
    }
    rig.peer.write_all(&frames[..frames.len()]).await.unwrap();
    // Waits until the service has stopped of its own accord, well before the end.
    let mut seen = 0;
    loop {
        tokio::task::yield_now().await;
        let now = rig.service.requests.load(Ordering::Relaxed);
        if now > 0 && now == seen {
            break;
        }
        seen = now;
    }
    assert!(
        seen < 10,
        "{seen} requests were handled for a peer that reads nothing"
    );
    for opaque in 0..REQUESTS {
        let answer = read_frame(&mut rig.peer).await;
        assert_eq!((answer.opaque, answer.body.len()), (opaque, BIG_ANSWER));
    }
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_given_up() {
    let config = ServerConfig {
        outbox_hard_limit: 1 << 20,
        ..ServerConfig::default()
    };
    let rig = rig(config, 16);
    let mut accepted = 0;
    while rig.connection.send_encoded(&[0; 1 << 16]) {
        accepted += 1;
        assert!(accepted < 100);
    }
    rig.task.await.unwrap();
    assert!(!rig.connection.is_open());
}

#[tokio::test]
async fn what_others_send_is_written_in_order() {
    let mut rig = rig(ServerConfig::default(), 1 << 16);
    let connection = Arc::clone(&rig.connection);
    let sender = std::thread::spawn(move || {
        for opaque in 0..1000 {
            connection.send(&request(40, opaque, b""));
        }
    });
    for opaque in 0..1000 {
        assert_eq!(read_frame(&mut rig.peer).await.opaque, opaque);
    }
    sender.join().unwrap();
}

#[tokio::test]
async fn shutdown_writes_what_is_queued_first() {
    let mut rig = rig(ServerConfig::default(), 64);
    for opaque in 0..50 {
        assert!(rig.connection.send(&request(40, opaque, &[1; 100])));
    }
    rig.shared.stop();
    for opaque in 0..50 {
        assert_eq!(read_frame(&mut rig.peer).await.opaque, opaque);
    }
    expect_end(&mut rig.peer).await;
    rig.task.await.unwrap();
}

#[tokio::test]
async fn invoke_fails_when_the_connection_ends() {
    let rig = rig(ServerConfig::default(), 1 << 16);
    let connection = Arc::clone(&rig.connection);
    let call = tokio::spawn(async move {
        connection
            .invoke(RemotingCommand::request(1), Duration::from_secs(60))
            .await
    });
    while rig.connection.waiting.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(rig.peer);
    assert!(matches!(call.await.unwrap(), Err(InvokeError::Closed(_))));
    assert!(rig.connection.waiting.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn invoke_gives_up_after_its_time() {
    let rig = rig(ServerConfig::default(), 1 << 16);
    let call = rig
        .connection
        .invoke(RemotingCommand::request(1), Duration::from_secs(3))
        .await;
    assert!(matches!(call, Err(InvokeError::Timeout(..))));
    assert!(rig.connection.waiting.lock().is_empty());
}

struct Server {
    address: String,
    service: Arc<Echo>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn server(config: ServerConfig, address: &str) -> Server {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = Arc::new(Echo::default());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(crate::serve(
        listener,
        config,
        Arc::clone(&service),
        shutdown.clone(),
    ));
    Server {
        address,
        service,
        shutdown,
        task,
    }
}

#[tokio::test]
async fn client_and_server_call_each_other_on_one_connection() {
    let server = server(ServerConfig::default(), "127.0.0.1:0").await;
    for serialize_type in [SerializeType::Json, SerializeType::RocketMq] {
        let client = RemotingClient::new(ClientConfig {
            serialize_type,
            ..ClientConfig::default()
        });
        client.set_handler(|_, request| {
            Some(RemotingCommand::response(0).with_body(format!("called with {}", request.code)))
        });
        let invoke = |code, body: &'static [u8]| {
            client.invoke(
                &server.address,
                RemotingCommand::request(code).with_body(body),
                Duration::from_secs(5),
            )
        };
        let (echo, later, back) = tokio::join!(
            invoke(ECHO, b"one"),
            invoke(LATER, b"two"),
            invoke(CALL_BACK, b"")
        );
        let echo = echo.unwrap();
        assert_eq!(
            (&echo.body[..], echo.serialize_type),
            (&b"one"[..], serialize_type)
        );
        assert_eq!(&later.unwrap().body[..], b"two");
        assert_eq!(&back.unwrap().body[..], b"called with 39");
        client
            .oneway(&server.address, RemotingCommand::request(ECHO))
            .await
            .unwrap();
        client.shutdown().await;
    }
    assert_eq!(server.service.opened.load(Ordering::Relaxed), 2);
    server.shutdown.cancel();
    server.task.await.unwrap().unwrap();
    assert_eq!(server.service.closed.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn the_client_connects_again() {
    let first = server(ServerConfig::default(), "127.0.0.1:0").await;
    let client = RemotingClient::default();
    let call = || {
        client.invoke(
            &first.address,
            RemotingCommand::request(ECHO),
            Duration::from_secs(5),
        )
    };
    call().await.unwrap();
    first.shutdown.cancel();
    first.task.await.unwrap().unwrap();
    let refused = loop {
        // The old connection may be noticed as closed by the call itself.
        match call().await {
            Err(InvokeError::Closed(_)) => {}
            other => break other,
        }
    };
    assert!(
        matches!(refused, Err(InvokeError::Connect(..))),
        "{refused:?}"
    );
    let second = server(ServerConfig::default(), &first.address).await;
    call().await.unwrap();
    assert_eq!(second.service.opened.load(Ordering::Relaxed), 1);
    client.shutdown().await;
    second.shutdown.cancel();
    second.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let config = ServerConfig {
        max_connections: 1,
        ..ServerConfig::default()
    };
    let server = server(config, "127.0.0.1:0").await;
    let mut first = TcpStream::connect(&server.address).await.unwrap();
    let mut frame = BytesMut::new();
    frame.put_slice(&request(ECHO, 1, b"").to_frame());
    first.write_all(&frame).await.unwrap();
    assert_eq!(read_frame(&mut first).await.opaque, 1);
    let mut second = TcpStream::connect(&server.address).await.unwrap();
    assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0);
    first.write_all(&frame).await.unwrap();
    assert_eq!(read_frame(&mut first).await.opaque, 1);
    server.shutdown.cancel();
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn frames_of_other_threads_go_past_a_parked_task_and_stay_whole() {
    const SENDERS: usize = 4;
    const FRAMES: usize = 400;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut peer = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, address) = listener.accept().await.unwrap();
    let service = Arc::new(Echo::default());
    let shared = Arc::new(Shared::default());
    let config = ServerConfig::default();
    let connection = Connection::new(address, address, &config, Arc::clone(&shared));
    let socket = Socket::new(stream, &connection);
    let task = tokio::spawn({
        let (service, connection) = (Arc::clone(&service), Arc::clone(&connection));
        async move { run(&connection, socket, &config, &*service).await }
    });

    // Parked after its first answer; what is sent now is in the socket when the call returns.
    let mut frame = BytesMut::new();
    request(ECHO, 1, b"first").encode(&mut frame);
    peer.write_all(&frame).await.unwrap();
    assert_eq!(read_frame(&mut peer).await.opaque, 1);
    while connection.outbox.lock().waker.is_none() {
        tokio::task::yield_now().await;
    }
    assert!(connection.send(&request(LATER, 2, b"past")));
    assert!(connection.outbox.lock().sent);
    assert_eq!(read_frame(&mut peer).await.opaque, 2);

    // More than the socket takes, from several threads, while the task answers requests of its own.
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let connection = Arc::clone(&connection);
            std::thread::spawn(move || {
                for n in 0..FRAMES {
                    let opaque = (1000 * (sender + 1) + n) as i32;
                    let body = vec![opaque as u8; 1 + (n * 97) % 20_000];
                    assert!(connection.send(&request(LATER, opaque, &body)));
                }
            })
        })
        .collect();
    let mut next = [0; SENDERS + 1];
    let (mut reader, mut writer) = peer.split();
    let echoes = async {
        for n in 0..FRAMES {
            let mut frame = BytesMut::new();
            request(ECHO, n as i32, &[n as u8; 300]).encode(&mut frame);
            writer.write_all(&frame).await.unwrap();
        }
    };
    let reads = async {
        for _ in 0..(SENDERS + 1) * FRAMES {
            let command = read_frame(&mut reader).await;
            let (sender, n) = (
                command.opaque as usize / 1000,
                command.opaque as usize % 1000,
            );
            assert_eq!(n, next[sender]);
            next[sender] += 1;
            assert!(
                command
                    .body
                    .iter()
                    .all(|byte| *byte == command.opaque as u8)
            );
        }
    };
    tokio::join!(echoes, reads);
    for sender in senders {
        sender.join().unwrap();
    }
    shared.stop();
    task.await.unwrap();
    assert!(!connection.send(&request(LATER, 3, b"closed")));
}
