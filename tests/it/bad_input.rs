//! What a name server and a broker do with peers that do not speak the protocol: the connection ends,
//! or the request is refused with a text, and everybody else is served on.

use std::net::SocketAddr;

use remoting::RemotingCommand;
use remoting::protocol::{SerializeType, request_code, response_code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{PATIENCE, Rig};

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// The server ends the connection without a word.
async fn expect_end(stream: &mut TcpStream, what: &str) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    // A reset is an end as well: the server closed with bytes of ours unread.
    match read.unwrap_or_else(|_| panic!("{what}: the connection stays open")) {
        Ok(_) => assert!(rest.is_empty(), "{what}: answered {rest:?}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}"),
    }
}

async fn read_answer(stream: &mut TcpStream) -> RemotingCommand {
    let read = async {
        let length = stream.read_u32().await.unwrap() as usize;
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame).await.unwrap();
        RemotingCommand::decode(&frame).unwrap()
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap()
}

fn frame(kind: u8, header_length: u32, rest: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + rest.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&(u32::from(kind) << 24 | header_length).to_be_bytes());
    bytes.extend_from_slice(rest);
    bytes
}

async fn still_serves(rig: &Rig) {
    assert_eq!(
        rig.admin
            .cluster_info()
            .await
            .unwrap()
            .broker_addr_table
            .len(),
        1
    );
    rig.admin
        .broker_runtime_info(&rig.broker_address())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_end_their_connection_and_no_other() {
    let rig = Rig::start().await;
    let http = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    let tls = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let cases = [
        ("garbage", b"\xff\xff\xff\xffgarbage".to_vec()),
        ("an HTTP request", http),
        ("a TLS handshake", tls),
        (
            "a length beyond 16 MiB",
            (16u32 * 1024 * 1024 + 1).to_be_bytes().to_vec(),
        ),
        ("a length of zero", vec![0; 4]),
        ("a header longer than its frame", frame(0, 1 << 20, b"{}")),
        ("an unknown serialization", frame(7, 2, b"{}")),
        ("a header that is no JSON", frame(0, 4, b"code")),
        ("a header cut short", frame(0, 9, b"{\"code\":1")),
        ("a binary header cut short", frame(1, 5, &[0, 10, 0, 1, 2])),
        (
            "a binary header whose fields overrun it",
            frame(
                1,
                21,
                &[
                    0, 105, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0,
                ],
            ),
        ),
    ];
    for address in [rig.name_server.address(), rig.broker.listen_address()] {
        let mut bystander = connect(address).await;
        for (what, bytes) in &cases {
            let mut stream = connect(address).await;
            stream.write_all(bytes).await.unwrap();
            expect_end(&mut stream, what).await;
        }
        bystander
            .write_all(&RemotingCommand::request(9999).to_frame())
            .await
            .unwrap();
        assert_eq!(
            read_answer(&mut bystander).await.code,
            response_code::REQUEST_CODE_NOT_SUPPORTED
        );
    }
    still_serves(&rig).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_sense_are_refused_with_a_text() {
    let rig = Rig::start().await;
    let broker = rig.broker_address();
    let name_server = rig.name_server.address().to_string();
    for address in [&broker, &name_server] {
        for serialize_type in [SerializeType::Json, SerializeType::RocketMq] {
            let mut request = RemotingCommand::request(9999).with_body(&b"body"[..]);
            request.serialize_type = serialize_type;
            let answer = rig.client.invoke(address, request, PATIENCE).await.unwrap();
            assert_eq!(answer.code, response_code::REQUEST_CODE_NOT_SUPPORTED);
            assert_eq!(answer.remark.unwrap(), " request type 9999 not supported");
        }
    }
    // No header fields at all, a field of the wrong kind, a body of another kind.
    for (address, codes) in [
        (
            &broker,
            &[
                request_code::SEND_MESSAGE,
                request_code::SEND_MESSAGE_V2,
                request_code::SEND_BATCH_MESSAGE,
                request_code::PULL_MESSAGE,
                request_code::QUERY_MESSAGE,
                request_code::VIEW_MESSAGE_BY_ID,
                request_code::HEART_BEAT,
                request_code::GET_CONSUMER_LIST_BY_GROUP,
                request_code::QUERY_CONSUMER_OFFSET,
                request_code::UPDATE_CONSUMER_OFFSET,
                request_code::SEARCH_OFFSET_BY_TIMESTAMP,
                request_code::GET_MAX_OFFSET,
                request_code::GET_MIN_OFFSET,
                request_code::LOCK_BATCH_MQ,
                request_code::CONSUMER_SEND_MSG_BACK,
                request_code::UPDATE_AND_CREATE_TOPIC,
                request_code::DELETE_TOPIC_IN_BROKER,
                request_code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
                request_code::GET_CONSUME_STATS,
                request_code::INVOKE_BROKER_TO_RESET_OFFSET,
                request_code::QUERY_CONSUME_QUEUE,
                request_code::VIEW_BROKER_STATS_DATA,
            ][..],
        ),
        (
            &name_server,
            &[
                request_code::REGISTER_BROKER,
                request_code::GET_ROUTEINFO_BY_TOPIC,
                request_code::PUT_KV_CONFIG,
            ],
        ),
    ] {
        for &code in codes {
            for body in [&b""[..], b"{\"clientID\":[[[", b"\xff\xfe\xfd"] {
                let request = RemotingCommand::request(code)
                    .with_ext("queueId", "many")
                    .with_ext("e", "many")
                    .with_body(body);
                let answer = rig.client.invoke(address, request, PATIENCE).await.unwrap();
                assert_ne!(
                    answer.code,
                    response_code::SUCCESS,
                    "{}",
                    request_code::name(code)
                );
                assert!(
                    answer.remark.is_some_and(|remark| !remark.is_empty()),
                    "{} is refused without a text",
                    request_code::name(code)
                );
            }
        }
    }
    still_serves(&rig).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_never_end_cost_what_they_sent() {
    let rig = Rig::start().await;
    let mut held = Vec::new();
    let before = resident_bytes();
    // 200 connections that each declare 16 MiB and send a few bytes: 3 GiB if it were believed.
    for _ in 0..100 {
        for address in [rig.name_server.address(), rig.broker.listen_address()] {
            let mut stream = connect(address).await;
            stream
                .write_all(&(16u32 * 1024 * 1024).to_be_bytes())
                .await
                .unwrap();
            stream.write_all(&[0, 0, 0, 200, b'{']).await.unwrap();
            held.push(stream);
        }
    }
    still_serves(&rig).await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(
        grown < 256 * 1024 * 1024,
        "{grown} bytes for frames that hardly began"
    );
    // A batch whose last message is cut short is refused as a whole.
    let request = RemotingCommand::request(request_code::SEND_BATCH_MESSAGE)
        .with_ext("a", "PG")
        .with_ext("b", "BadBatch")
        .with_ext("c", "TBW102")
        .with_ext("d", "4")
        .with_ext("e", "0")
        .with_ext("f", "0")
        .with_ext("g", "0")
        .with_ext("h", "0")
        .with_ext("m", "true")
        .with_body(
            &[
                0u8, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99, 1, 2, 3,
            ][..],
        );
    assert_ne!(rig.ask_broker(request).await.code, response_code::SUCCESS);
    drop(held);
    still_serves(&rig).await;
    rig.stop().await;
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
