//! What a broker does at its limits: a disk that fails, fills up, stalls; too much in flight; readers far behind.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use broker::config::FlushDiskType;
use remoting::protocol::message;
use remoting::protocol::{RemotingCommand, request_code as code, response_code};
use store::{Clock, Disk, RealDisk, SystemClock};

use super::support::*;
use crate::support::{PATIENCE, until};

const OVER_THE_BOUND: &str = "[PC_SYNCHRONIZED]broker busy, start flow control for a while";

/// Writes to files of the log fail, syncs fail or stall, as long as the test says so.
#[derive(Default)]
struct Trouble {
    /// Error of writes; 0 for none.
    write: AtomicI32,
    /// Error of syncs; 0 for none, -1: they do not return.
    sync: AtomicI32,
}

const STALL: i32 = -1;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

impl Disk for Trouble {
    fn write_at(&self, file: &File, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        match self.write.load(Ordering::SeqCst) {
            0 => RealDisk.write_at(file, buffers, position),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        loop {
            match self.sync.load(Ordering::SeqCst) {
                0 => return RealDisk.sync_data(file),
                STALL => std::thread::sleep(Duration::from_millis(1)), // a disk that does not answer
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

fn message_of(body: Vec<u8>) -> RemotingCommand {
    let fields = [
        ("a", "PG"),
        ("b", "T"),
        ("c", "TBW102"),
        ("d", "4"),
        ("e", "0"),
        ("f", "0"),
        ("g", "1700000000000"),
        ("h", "7"),
        ("i", ""),
        ("j", "0"),
        ("k", "false"),
        ("m", "false"),
    ];
    request(code::SEND_MESSAGE_V2, &fields).with_body(body)
}

async fn send(client: &Client, body: &str) -> RemotingCommand {
    client.send(message_of(body.into())).await
}

fn bodies(answer: &RemotingCommand) -> Vec<String> {
    let records = message::records(&answer.body);
    records
        .map(|record| String::from_utf8_lossy(record.unwrap().body).into_owned())
        .collect()
}

/// Status line and body of a probe.
async fn probe(port: i32, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = ("127.0.0.1", u16::try_from(port).unwrap());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn free_port() -> i32 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_disk_fails_who_waits_refuses_who_comes_and_a_restart_recovers() {
    for failing_sync in [true, false] {
        let disk = Arc::new(Trouble::default());
        let port = free_port();
        let change = |config: &mut broker::BrokerConfig| {
            config.flush_disk_type = FlushDiskType::SyncFlush;
            config.http_port = port.try_into().unwrap();
        };
        let rig = Rig::start_on_disk(disk.clone(), change).await;
        let good = send(&rig.admin, "good").await;
        assert_eq!(good.code, response_code::SUCCESS, "{:?}", good.remark);
        let metrics = probe(port, "/metrics").await;
        assert!(
            metrics.contains("\nrocketmq_store_poisoned 0\n"),
            "{metrics}"
        );

        // Those that wait when it happens: the sync stalls until all of them are written, then it fails.
        const WAITING: usize = 8;
        disk.sync.store(STALL, Ordering::SeqCst);
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..WAITING {
            let client = rig.client();
            waiting.spawn(async move { send(&client, &format!("lost {n}")).await });
        }
        until("all wait", || rig.broker.acks.waiting() == WAITING).await;
        if failing_sync {
            disk.sync.store(EIO, Ordering::SeqCst);
        } else {
            disk.write.store(EIO, Ordering::SeqCst);
            let refused = send(&rig.client(), "the one whose write fails").await;
            assert_eq!(refused.code, response_code::SYSTEM_ERROR);
            disk.sync.store(0, Ordering::SeqCst);
        }
        while let Some(answer) = waiting.join_next().await {
            let answer = answer.unwrap();
            let remark = answer.remark.unwrap_or_default();
            assert_eq!(answer.code, response_code::SYSTEM_ERROR, "{remark}");
            assert!(remark.contains("Input/output error"), "{remark}");
        }
        assert_eq!(rig.broker.acks.bytes_in_flight(), 0);

        let refused = send(&rig.admin, "later").await;
        let remark = refused.remark.unwrap_or_default();
        assert_eq!(
            refused.code,
            response_code::SERVICE_NOT_AVAILABLE,
            "{remark}"
        );
        assert!(
            remark.starts_with("service not available now: the store is poisoned: ")
                && remark.contains("Input/output error"),
            "{remark}"
        );
        for path in ["/readyz", "/livez"] {
            let answer = probe(port, path).await;
            assert!(answer.starts_with("HTTP/1.1 503"), "{path}: {answer}");
            assert!(answer.contains("Input/output error"), "{path}: {answer}");
        }
        let metrics = probe(port, "/metrics").await;
        for line in ["rocketmq_store_poisoned 1", "rocketmq_store_writable 0"] {
            assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
        }
        let pulled = rig.admin.pull("G", "T", 0, 0).await;
        assert_eq!(bodies(&pulled)[0], "good", "what is there is still read");

        disk.write.store(0, Ordering::SeqCst);
        disk.sync.store(0, Ordering::SeqCst);
        let rig = Rig::start_in(rig.stop().await, change).await;
        let next = send(&rig.admin, "next").await;
        assert_eq!(next.code, response_code::SUCCESS, "{:?}", next.remark);
        let found = bodies(&rig.admin.pull("G", "T", 0, 0).await);
        assert_eq!((&*found[0], &*found[found.len() - 1]), ("good", "next"));
        assert_eq!(probe(port, "/livez").await.get(..12), Some("HTTP/1.1 200"));
        rig.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_sends_until_there_is_room_and_keeps_what_it_took() {
    let disk = Arc::new(Trouble::default());
    let rig = Rig::start_on_disk(disk.clone(), |_| {}).await;
    assert_eq!(
        send(&rig.admin, "before").await.code,
        response_code::SUCCESS
    );
    disk.write.store(ENOSPC, Ordering::SeqCst);
    let client = rig.client();
    let taken = tokio::spawn(async move { send(&client, "taken").await });
    until("the disk is full", || rig.broker.store.writable().is_err()).await;
    let refused = send(&rig.admin, "refused").await;
    assert_eq!(refused.code, response_code::SERVICE_NOT_AVAILABLE);
    let remark = refused.remark.unwrap();
    assert!(
        remark.starts_with("service not available now: the disk is full: "),
        "{remark}"
    );
    assert!(rig.broker.ready().unwrap_err().contains("the disk is full"));
    assert!(
        !taken.is_finished(),
        "nothing is acknowledged that is not written"
    );
    disk.write.store(0, Ordering::SeqCst);
    assert_eq!(taken.await.unwrap().code, response_code::SUCCESS);
    until("there is room", || rig.broker.store.writable().is_ok()).await;
    assert_eq!(send(&rig.admin, "after").await.code, response_code::SUCCESS);
    let found = bodies(&rig.admin.pull("G", "T", 0, 0).await);
    assert_eq!(found, ["before", "taken", "after"]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_in_flight_are_bounded_per_connection_and_in_all() {
    const BODY: usize = 16 << 10;
    const PER_CONNECTION: usize = 256 << 10;
    const IN_ALL: usize = 1 << 20;
    let disk = Arc::new(Trouble::default());
    let rig = Rig::start_on_disk(disk.clone(), |config| {
        config.flush_disk_type = FlushDiskType::SyncFlush;
        config.max_in_flight_bytes_per_connection = PER_CONNECTION as i64;
        config.max_in_flight_bytes = IN_ALL as i64;
        config.sync_flush_timeout = i32::MAX;
        config.tail_ring_bytes = 8 << 20;
    })
    .await;
    assert_eq!(send(&rig.admin, "first").await.code, response_code::SUCCESS);
    disk.sync.store(STALL, Ordering::SeqCst);
    let answers = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let mut sends = tokio::task::JoinSet::new();
    let mut clients = Vec::new();
    let pile = |client: &Arc<Client>, sends: &mut tokio::task::JoinSet<()>| {
        let answers = answers.clone();
        let client = client.clone();
        sends.spawn(async move {
            let answer = client.send(message_of(vec![b'x'; BODY])).await;
            if answer.code == response_code::SUCCESS {
                answers.0.fetch_add(1, Ordering::SeqCst);
            } else {
                let remark = answer.remark.as_deref();
                assert_eq!(
                    (answer.code, remark),
                    (response_code::SYSTEM_BUSY, Some(OVER_THE_BOUND))
                );
                answers.1.fetch_add(1, Ordering::SeqCst);
            }
        });
    };
    let known = || rig.broker.acks.waiting() + answers.1.load(Ordering::SeqCst);
    // One connection sends until it is refused; the next one is not: the bound of a connection is its own.
    for connection in 0..3 {
        let client = Arc::new(rig.client());
        let refused = answers.1.load(Ordering::SeqCst);
        while answers.1.load(Ordering::SeqCst) == refused {
            let before = known();
            pile(&client, &mut sends);
            until("it waits or is refused", || known() > before).await;
        }
        clients.push(client);
        let held = usize::try_from(rig.broker.acks.bytes_in_flight()).unwrap() / (connection + 1);
        assert!(
            (PER_CONNECTION..PER_CONNECTION + 2 * BODY).contains(&held),
            "{held}"
        );
    }
    // Many connections together reach the bound of all.
    let refused = answers.1.load(Ordering::SeqCst);
    while answers.1.load(Ordering::SeqCst) == refused {
        let client = Arc::new(rig.client());
        let before = known();
        pile(&client, &mut sends);
        until("it waits or is refused", || known() > before).await;
        clients.push(client);
    }
    let held = usize::try_from(rig.broker.acks.bytes_in_flight()).unwrap();
    assert!((IN_ALL..IN_ALL + 2 * BODY).contains(&held), "{held}");
    let waiting = rig.broker.acks.waiting();
    disk.sync.store(0, Ordering::SeqCst);
    while let Some(done) = sends.join_next().await {
        done.unwrap();
    }
    assert_eq!(
        answers.0.load(Ordering::SeqCst),
        waiting,
        "who was not refused is stored"
    );
    assert_eq!(rig.broker.acks.bytes_in_flight(), 0);
    let again = clients[0].send(message_of(vec![b'x'; BODY])).await;
    assert_eq!(
        again.code,
        response_code::SUCCESS,
        "the bound is free again"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_far_behind_do_not_hold_up_the_hot_tail() {
    const OLD: usize = 400;
    // Small messages only, or the ring in memory must hold four large ones.
    let rig = Rig::start_with(|config| config.max_message_size = 64 << 10).await;
    let mut sends = tokio::task::JoinSet::new();
    let sender = Arc::new(rig.client());
    for _ in 0..OLD {
        let sender = sender.clone();
        sends.spawn(async move { sender.send(message_of(vec![b'o'; 16 << 10])).await.code });
    }
    while let Some(code) = sends.join_next().await {
        assert_eq!(code.unwrap(), response_code::SUCCESS);
    }
    // All readers from disk hang, as on a disk that is busy with others.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(parking_lot::Mutex::new(held));
    let hanging = Arc::new(AtomicUsize::new(0));
    let taken = {
        let (held, hanging) = (held.clone(), hanging.clone());
        move || {
            let (held, hanging) = (held.clone(), hanging.clone());
            move || {
                hanging.fetch_add(1, Ordering::SeqCst);
                let _ = held.lock().recv();
            }
        }
    };
    for _ in 0..64 {
        assert!(rig.broker.cold_reads.run(taken()));
    }
    until("the readers hang", || hanging.load(Ordering::SeqCst) > 0).await;
    let mut cold = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let reader = rig.client();
        cold.spawn(async move { reader.pull("Cold", "T", 0, 0).await });
    }
    let began = Instant::now();
    let hot = rig.client();
    for n in 0..200i64 {
        let offset = OLD as i64 + n;
        let sent = send(&hot, "hot").await;
        assert_eq!(sent.code, response_code::SUCCESS, "{:?}", sent.remark);
        let pulled = hot.pull("Hot", "T", 0, offset).await;
        assert_eq!(bodies(&pulled), ["hot"]);
    }
    println!("200 hot messages there and back in {:?}", began.elapsed());
    assert_eq!(
        cold.try_join_next().map(|_| ()),
        None,
        "the cold readers still wait"
    );
    drop(release);
    while let Some(answer) = cold.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
        assert!(!answer.body.is_empty());
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_took_is_said_to_those_who_ask_for_it() {
    const MESSAGES: usize = 100;
    const HOUR: Duration = Duration::from_secs(3600);
    let folder = tempfile::tempdir().unwrap();
    // Half a day from now: not by itself while the test runs.
    let delete_when = (u32::from(SystemClock.local_hour()) + 100 + 12) % 24;
    let rig = Rig::start_ahead(folder, 100 * HOUR, |config| {
        config.file_reserved_time = 99;
        config.delete_when = format!("{delete_when:02}");
    })
    .await;
    for n in 0..MESSAGES {
        let sent = rig.admin.send(message_of(vec![n as u8; 64 << 10])).await;
        assert_eq!(sent.code, response_code::SUCCESS, "{:?}", sent.remark);
    }
    let queue = [("topic", "T"), ("queueId", "0")];
    let min = || async {
        let answer = rig.admin.ok(code::GET_MIN_OFFSET, &queue).await;
        answer.ext("offset").unwrap().parse::<i64>().unwrap()
    };
    assert_eq!(min().await, 0);
    let earliest = rig.admin.ok(code::GET_EARLIEST_MSG_STORETIME, &queue).await;
    assert!(
        rig.broker
            .store
            .wait_flushed(rig.broker.store.written(), PATIENCE)
    );
    rig.admin.ok(code::DELETE_EXPIRED_COMMITLOG, &[]).await;
    let deadline = Instant::now() + PATIENCE;
    let mut first = 0;
    while first < MESSAGES as i64 / 2 {
        assert!(Instant::now() < deadline, "the minimum stays at {first}");
        first = min().await;
    }
    let moved = rig.admin.pull("G", "T", 0, 0).await;
    assert_eq!(
        (moved.code, moved.remark.as_deref()),
        (response_code::PULL_OFFSET_MOVED, Some("OFFSET_TOO_SMALL"))
    );
    let next: i64 = moved.ext("nextBeginOffset").unwrap().parse().unwrap();
    assert_eq!(moved.ext("minOffset"), moved.ext("nextBeginOffset"));
    assert!(next >= first);
    let there = rig.admin.pull("G", "T", 0, next).await;
    assert_eq!(there.code, response_code::SUCCESS, "{:?}", there.remark);
    let record = message::records(&there.body).next().unwrap().unwrap();
    assert_eq!((record.queue_offset, record.body[0]), (next, next as u8));
    assert_ne!(
        rig.admin
            .ok(code::GET_EARLIEST_MSG_STORETIME, &queue)
            .await
            .ext("timestamp"),
        earliest.ext("timestamp")
    );
    // By time: nothing is older than what is left.
    let fields = [("topic", "T"), ("queueId", "0"), ("timestamp", "0")];
    let oldest = rig
        .admin
        .ok(code::SEARCH_OFFSET_BY_TIMESTAMP, &fields)
        .await;
    assert_eq!(oldest.ext("offset").unwrap().parse::<i64>().unwrap(), next);
    // And the same after a restart.
    let rig = Rig::start_in(rig.stop().await, |_| {}).await;
    let moved = rig.admin.pull("G", "T", 0, 0).await;
    assert_eq!(
        moved
            .ext("nextBeginOffset")
            .unwrap()
            .parse::<i64>()
            .unwrap(),
        next
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_bound_of_long_polls_a_pull_is_answered_at_once() {
    let rig = Rig::start_with(|config| config.max_long_polls = 2).await;
    assert_eq!(send(&rig.admin, "first").await.code, response_code::SUCCESS);
    let poll = || {
        let client = rig.client();
        let fields = [
            ("consumerGroup", "G"),
            ("topic", "T"),
            ("queueId", "0"),
            ("queueOffset", "1"),
            ("maxMsgNums", "32"),
            ("sysFlag", "6"),
            ("commitOffset", "0"),
            ("suspendTimeoutMillis", "60000"),
            ("subscription", "*"),
            ("subVersion", "0"),
            ("expressionType", "TAG"),
        ];
        async move { client.call(code::PULL_MESSAGE, &fields).await }
    };
    let waiting = [tokio::spawn(poll()), tokio::spawn(poll())];
    until("two wait", || rig.broker.held.len() == 2).await;
    assert_eq!(poll().await.code, response_code::PULL_NOT_FOUND);
    assert_eq!(
        send(&rig.admin, "second").await.code,
        response_code::SUCCESS
    );
    for one in waiting {
        assert_eq!(bodies(&one.await.unwrap()), ["second"]);
    }
    rig.stop().await;
}
