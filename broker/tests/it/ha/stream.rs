//! The stream itself, byte for byte: recorded between the original's brokers, played against ours from either end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use broker::ha::protocol::{ChunkReader, HEADER_BYTES, Piece, encode_header};
use broker::{Broker, BrokerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::support::*;
use crate::support::*;

/// One read of the recording.
struct Recorded {
    from_slave: bool,
    bytes: Vec<u8>,
}

fn recording(server: &str) -> Vec<Recorded> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/ha-stream.jsonl"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let reads = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    };
    reads
        .filter(|read| read["server"] == server)
        .map(|read| Recorded {
            from_slave: read["from"] == "slave",
            bytes: hex(read["hex"].as_str().unwrap()),
        })
        .collect()
}

/// The recording holds a delayed message: nobody delivers it meanwhile.
fn no_deliveries(config: BrokerConfig) -> BrokerConfig {
    BrokerConfig {
        message_delay_level: "1000d".to_owned(),
        ..config
    }
}

fn sent_by_master(recording: &[Recorded]) -> Vec<u8> {
    let reads = recording.iter().filter(|r| !r.from_slave);
    reads.flat_map(|r| r.bytes.iter().copied()).collect()
}

/// Chunks with their headers, without the heartbeats.
fn chunks(mut stream: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let (mut reader, mut chunks) = (ChunkReader::default(), Vec::new());
    while let Some(piece) = reader.next(&mut stream).unwrap() {
        match piece {
            Piece::Heartbeat(_) => {}
            Piece::Begin { position, .. } => chunks.push((position, Vec::new())),
            Piece::Data { bytes, .. } => chunks.last_mut().unwrap().1.extend_from_slice(bytes),
        }
    }
    chunks
}

/// Reads exactly one frame.
async fn frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    timeout(PATIENCE, stream.read_exact(&mut bytes))
        .await
        .expect("a frame in time")
        .unwrap();
    let size = u32::from_be_bytes(bytes[8..].try_into().unwrap()) as usize;
    bytes.resize(HEADER_BYTES + size, 0);
    stream.read_exact(&mut bytes[HEADER_BYTES..]).await.unwrap();
    bytes
}

/// The next frame that is no heartbeat; a heartbeat must stand where the stream does.
async fn chunk(stream: &mut TcpStream, at: u64) -> Vec<u8> {
    loop {
        let bytes = frame(stream).await;
        if bytes.len() > HEADER_BYTES {
            return bytes;
        }
        assert_eq!(bytes, encode_header(at, 0));
    }
}

async fn a_master_sends_what_the_original_sent(server: &str) {
    let dir = tempfile::tempdir().unwrap();
    let master = start(no_deliveries(master(dir.path(), "ASYNC_MASTER"))).await;
    let mut stream = TcpStream::connect(master.ha_address()).await.unwrap();
    stream.write_all(&0u64.to_be_bytes()).await.unwrap();
    let mut end = 0;
    for (position, data) in chunks(&sent_by_master(&recording(server))) {
        assert_eq!(position, end);
        let appended = master.store.append_raw(position, &data).unwrap();
        master.store.drive();
        let mut expected = encode_header(position, data.len() as u32).to_vec();
        expected.extend_from_slice(&data);
        assert!(chunk(&mut stream, position).await == expected);
        end = appended;
        stream.write_all(&end.to_be_bytes()).await.unwrap();
        until("the report counts", || {
            let status = master.ha.replicas.list();
            status.len() == 1 && status[0].acked.load(std::sync::atomic::Ordering::Relaxed) == end
        })
        .await;
    }
    // Idle: a heartbeat at the place where the stream goes on.
    assert_eq!(frame(&mut stream).await, encode_header(end, 0));
    master.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_slave_is_sent_what_a_4_9_7_master_sent() {
    a_master_sends_what_the_original_sent("4.9.7").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_slave_is_sent_what_a_5_3_3_master_sent() {
    a_master_sends_what_the_original_sent("5.3.3").await;
}

/// The recorded reports without those that only say "I am here".
fn reports(recording: &[Recorded]) -> Vec<u64> {
    let mut reports: Vec<u64> = recording
        .iter()
        .filter(|r| r.from_slave)
        .map(|r| u64::from_be_bytes(r.bytes[..].try_into().unwrap()))
        .collect();
    reports.dedup();
    reports
}

async fn report(stream: &mut TcpStream) -> u64 {
    let mut bytes = [0; 8];
    timeout(PATIENCE, stream.read_exact(&mut bytes))
        .await
        .expect("a report in time")
        .unwrap();
    u64::from_be_bytes(bytes)
}

/// A slave whose master is what this test writes to the connections that it accepts.
async fn slave_of_this_test(dir: &Path) -> (TcpListener, Arc<Broker>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = BrokerConfig {
        ha_master_address: listener.local_addr().unwrap().to_string(),
        ..no_deliveries(slave(dir, 1))
    };
    (listener, start(config).await)
}

async fn a_slave_answers_as_the_original_did(server: &str) {
    let recording = recording(server);
    let dir = tempfile::tempdir().unwrap();
    let (listener, slave) = slave_of_this_test(dir.path()).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let expected = reports(&recording);
    assert_eq!(report(&mut stream).await, expected[0]);
    let mut seen = vec![expected[0]];
    let (mut sent, mut end) = (ChunkReader::default(), 0);
    for read in recording.iter().filter(|r| !r.from_slave) {
        stream.write_all(&read.bytes).await.unwrap();
        let mut input = &read.bytes[..];
        while let Some(piece) = sent.next(&mut input).unwrap() {
            if let Piece::Data {
                position,
                bytes,
                last: true,
            } = piece
            {
                end = position + bytes.len() as u64;
            }
        }
        while *seen.last().unwrap() < end {
            let next = report(&mut stream).await;
            if next != *seen.last().unwrap() {
                seen.push(next);
            }
        }
    }
    assert_eq!(seen, expected);
    let log: Vec<u8> = chunks(&sent_by_master(&recording))
        .into_iter()
        .flat_map(|(_, data)| data)
        .collect();
    assert!(bytes(&slave, 0) == log);
    assert_eq!(slave.store.confirm_offset(), log.len() as u64);
    assert!(
        !slave.store.queues().is_empty(),
        "the slave fills its queues"
    );
    slave.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_reports_to_a_4_9_7_master_as_the_originals_did() {
    a_slave_answers_as_the_original_did("4.9.7").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slave_reports_to_a_5_3_3_master_as_the_originals_did() {
    a_slave_answers_as_the_original_did("5.3.3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_arrives_byte_by_byte_gives_the_same_log() {
    let sent = sent_by_master(&recording("4.9.7"));
    let dir = tempfile::tempdir().unwrap();
    let (listener, slave) = slave_of_this_test(dir.path()).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in &sent {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let log: Vec<u8> = chunks(&sent)
        .into_iter()
        .flat_map(|(_, data)| data)
        .collect();
    until("all arrived", || {
        slave.store.confirm_offset() == log.len() as u64
    })
    .await;
    assert!(bytes(&slave, 0) == log);
    slave.shutdown().await;
}

/// A connection that breaks anywhere within a chunk: the slave goes on where it stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_within_a_chunk_leaves_no_gap() {
    let all = chunks(&sent_by_master(&recording("5.3.3")));
    let log: Vec<u8> = all.iter().flat_map(|(_, data)| data.clone()).collect();
    let dir = tempfile::tempdir().unwrap();
    let (listener, slave) = slave_of_this_test(dir.path()).await;
    let mut expected = 0;
    for cut in [1, 11, 12, 13, 100, 300] {
        let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let from = report(&mut stream).await;
        assert_eq!(from, expected, "it asks for what it lacks");
        let mut bytes = encode_header(from, (log.len() as u64 - from) as u32).to_vec();
        bytes.extend_from_slice(&log[from as usize..]);
        bytes.truncate(cut);
        stream.write_all(&bytes).await.unwrap();
        expected = from + cut.saturating_sub(HEADER_BYTES) as u64;
        until("what came is kept", || slave.store.appended() == expected).await;
    }
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    assert_eq!(report(&mut stream).await, expected);
    // A master that goes on elsewhere is left.
    stream
        .write_all(&encode_header(expected + 1, 0))
        .await
        .unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    assert_eq!(report(&mut stream).await, expected);
    let mut bytes = encode_header(expected, (log.len() as u64 - expected) as u32).to_vec();
    bytes.extend_from_slice(&log[expected as usize..]);
    stream.write_all(&bytes).await.unwrap();
    until("the rest", || {
        slave.store.confirm_offset() == log.len() as u64
    })
    .await;
    slave.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_slave_without_a_log_begins_with_the_last_file() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(master(dir.path(), "ASYNC_MASTER")).await;
    let client = Client::of(&master);
    while master.store.written() < 3 * SEGMENT as u64 {
        client.sent(&"x".repeat(4_000), 0).await;
    }
    let end = master.store.written();
    let last_file = end - end % SEGMENT as u64;
    let first_position = async |report: u64| -> Option<u64> {
        let mut stream = TcpStream::connect(master.ha_address()).await.unwrap();
        stream.write_all(&report.to_be_bytes()).await.unwrap();
        let mut header = [0; HEADER_BYTES];
        let read = timeout(Duration::from_secs(5), stream.read_exact(&mut header));
        read.await.ok()?.ok()?;
        Some(u64::from_be_bytes(header[..8].try_into().unwrap()))
    };
    assert_eq!(first_position(0).await, Some(last_file));
    assert_eq!(first_position(5_000).await, Some(5_000), "any byte");
    assert_eq!(first_position(end).await, Some(end), "a heartbeat");
    assert_eq!(
        first_position(end + 1).await,
        None,
        "nothing to send from there"
    );
    assert_eq!(first_position(!0).await, Some(0), "ours: exactly from 0");
    assert_eq!(first_position(!8_192).await, Some(8_192));
    master.shutdown().await;
}

/// Chunks keep to the batch size and to the borders of the files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_bounded_and_never_cross_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        ha_transfer_batch_size: 10_000,
        ..master(dir.path(), "ASYNC_MASTER")
    };
    let master = start(config).await;
    let client = Client::of(&master);
    while master.store.written() < 2 * SEGMENT as u64 {
        client.sent(&"x".repeat(3_000), 0).await;
    }
    let end = master.store.written();
    let mut stream = TcpStream::connect(master.ha_address()).await.unwrap();
    stream.write_all(&(!0u64).to_be_bytes()).await.unwrap();
    let (mut at, mut copy) = (0, Vec::new());
    while at < end {
        let bytes = chunk(&mut stream, at).await;
        let size = (bytes.len() - HEADER_BYTES) as u64;
        assert_eq!(&bytes[..8], &at.to_be_bytes());
        assert!(size <= 10_000);
        assert!((at + size - 1) / SEGMENT as u64 == at / SEGMENT as u64);
        copy.extend_from_slice(&bytes[HEADER_BYTES..]);
        at += size;
    }
    assert!(copy == self::bytes(&master, 0), "padding included");
    master.shutdown().await;
}

/// Where only the offset could be compared, a stock master's bytes are looked at before they are taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_master_with_another_history_is_refused_with_a_sentence() {
    let log: Vec<u8> = chunks(&sent_by_master(&recording("5.3.3")))
        .into_iter()
        .flat_map(|(_, data)| data)
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let (listener, slave) = slave_of_this_test(dir.path()).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut whole = encode_header(0, log.len() as u32).to_vec();
    whole.extend_from_slice(&log);
    stream.write_all(&whole).await.unwrap();
    let end = log.len() as u64;
    until("the slave has it", || slave.store.confirm_offset() == end).await;
    drop(stream);
    // From now on as if from the middle of a record, as often as it comes.
    let mut other = encode_header(end, 100).to_vec();
    other.extend_from_slice(&log[50..150]);
    let master = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_eq!(report(&mut stream).await, end);
            stream.write_all(&other).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    until("it says why", || {
        let reason = slave.ha.ready(&slave).err();
        reason.is_some_and(|reason| reason.contains("different histories"))
    })
    .await;
    master.abort();
    assert_eq!(slave.store.appended(), end);
    assert_eq!(slave.store.poisoned(), None);
    slave.shutdown().await;
}
