//! How fast the store appends: `cargo run --release -p store --example append -- [body bytes] [messages]`.
//!
//! One and two threads, each driving the store after every batch as connections do; then hot reads of 32.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use store::{
    Filter, FlushDiskType, GetRequest, PutError, PutMessage, Store, StoreConfig, SystemClock,
    TagsCode,
};

const PROPERTIES: &[u8] = b"UNIQ_KEY\x017F0000010000365700000000002F0D63\x02WAIT\x01true\x02TAGS\x01TagA\x02KEYS\x01key-17\x02";

fn run(store: &Store, threads: usize, batch: usize, body: &[u8], messages: usize) -> (f64, u64) {
    let host: SocketAddr = ([127, 0, 0, 1], 10911).into();
    let begin = Instant::now();
    let busy = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let busy = &busy;
            scope.spawn(move || {
                let Ok(queue) = store.queue("bench", thread as i32) else {
                    return;
                };
                let message = PutMessage {
                    queue: &queue,
                    flag: 0,
                    sys_flag: 0,
                    born_timestamp: 0,
                    born_host: host,
                    store_host: host,
                    reconsume_times: 0,
                    prepared_transaction_offset: 0,
                    body,
                    properties: PROPERTIES,
                    tags_code: TagsCode::Hash(2_598_919),
                    unique_key: "7F0000010000365700000000002F0D63",
                    keys: "key-17",
                };
                let batch = vec![message; batch];
                for _ in 0..messages / threads / batch.len() {
                    while let Err(error) = store.append(&batch) {
                        assert!(matches!(error, PutError::Busy(_)), "{error}");
                        busy.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        store.drive();
                        std::thread::yield_now();
                    }
                    store.drive();
                }
            });
        }
    });
    (begin.elapsed().as_secs_f64(), busy.into_inner())
}

fn read(store: &Store) -> (usize, f64) {
    let begin = Instant::now();
    let mut read = 0;
    let mut out = BytesMut::with_capacity(1 << 20);
    let max = store.max_offset("bench", 0);
    let mut offset = (max - 10_000).max(0);
    while offset < max {
        let request = GetRequest {
            topic: "bench",
            queue_id: 0,
            offset,
            max_count: 32,
            max_bytes: usize::MAX,
            filter: Filter::All,
        };
        out.clear();
        let store::GetOutcome::Done(result) = store.get_message(&request, &mut out) else {
            break;
        };
        read += result.count as usize;
        offset = result.next_begin_offset;
    }
    (read, begin.elapsed().as_secs_f64())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let body = vec![b'x'; args.next().map_or(Ok(1024), |a| a.parse())?];
    let messages: usize = args.next().map_or(Ok(1_000_000), |a| a.parse())?;
    let only: Option<String> = args.next();
    for flush in [FlushDiskType::AsyncFlush, FlushDiskType::SyncFlush] {
        for (threads, batch) in [(1, 1), (1, 8), (1, 32), (2, 1), (2, 8), (2, 32)] {
            if only
                .as_ref()
                .is_some_and(|only| *only != format!("{flush:?}-{threads}-{batch}"))
            {
                continue;
            }
            let dir = tempfile::tempdir()?;
            let mut config = StoreConfig::new(dir.path());
            config.flush = flush;
            let store: Arc<Store> = Store::open(config, Arc::new(SystemClock))?;
            let (seconds, busy) = run(&store, threads, batch, &body, messages);
            let (read, read_seconds) = read(&store);
            println!(
                "{flush:?} {threads} threads, batches of {batch}: {:.0} messages/s, {:.2} µs each, {busy} busy; hot reads {:.2} µs a message",
                messages as f64 / seconds,
                seconds / messages as f64 * 1e6,
                read_seconds / read.max(1) as f64 * 1e6
            );
            let begin = Instant::now();
            store.shutdown();
            println!("    shutdown {:.3} s", begin.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
