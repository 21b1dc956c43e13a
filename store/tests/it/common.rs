use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use store::{
    Appended, Clock, Filter, FlushDiskType, GetOutcome, GetRequest, GetResult, PutError,
    PutMessage, Store, StoreConfig, TagsCode,
};

pub(crate) struct TestClock(pub(crate) AtomicI64);

impl TestClock {
    pub(crate) fn at(ms: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(ms)))
    }
    pub(crate) fn set(&self, ms: i64) {
        self.0.store(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
    fn local_hour(&self) -> u8 {
        12
    }
}

pub(crate) fn small(root: &Path) -> StoreConfig {
    let mut config = StoreConfig::new(root);
    config.segment_size = 16 << 10;
    config.consume_queue_file_size = 20 * 50;
    config.max_message_size = 8 << 10;
    config.tail_ring_bytes = 1 << 20;
    config.max_hash_slot_num = 100;
    config.max_index_num = 200;
    config.flush = FlushDiskType::AsyncFlush;
    // Other users of this disk must not decide a test.
    config.disk_max_used_space_ratio = 95;
    config.disk_space_warning_level_ratio = 100;
    config.clean_file_forcibly_enable = false;
    config
}

pub(crate) fn open(config: StoreConfig) -> Arc<Store> {
    open_at(config, TestClock::at(1_700_000_000_000))
}

/// A store that was just let go may still hold its lock for a moment.
pub(crate) fn open_at(config: StoreConfig, clock: Arc<TestClock>) -> Arc<Store> {
    try_open(config, clock, Arc::new(store::RealDisk)).unwrap()
}

pub(crate) fn try_open(
    config: StoreConfig,
    clock: Arc<TestClock>,
    disk: Arc<dyn store::Disk>,
) -> Result<Arc<Store>, store::Error> {
    let mut opened = None;
    wait(|| {
        let result = Store::open_with_disk(config.clone(), clock.clone(), disk.clone());
        let locked = matches!(result, Err(store::Error::Locked(_)));
        opened = Some(result);
        !locked
    });
    opened.unwrap()
}

pub(crate) fn host() -> SocketAddr {
    "127.0.0.1:10911".parse().unwrap()
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Message<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) tags: i64,
    pub(crate) key: &'a str,
    pub(crate) sys_flag: i32,
}

pub(crate) fn append(
    store: &Store,
    topic: &str,
    queue_id: i32,
    messages: &[Message<'_>],
) -> Result<Appended, PutError> {
    let queue = store.queue(topic, queue_id).unwrap();
    let properties: Vec<String> = messages
        .iter()
        .map(|m| {
            if m.key.is_empty() {
                String::new()
            } else {
                format!("KEYS\u{1}{}\u{2}", m.key)
            }
        })
        .collect();
    let puts: Vec<PutMessage<'_>> = messages
        .iter()
        .zip(&properties)
        .map(|(m, properties)| PutMessage {
            queue: &queue,
            flag: 0,
            sys_flag: m.sys_flag,
            born_timestamp: 1,
            born_host: host(),
            store_host: host(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: m.body,
            properties: properties.as_bytes(),
            tags_code: TagsCode::Hash(m.tags),
            unique_key: "",
            keys: m.key,
        })
        .collect();
    store.append(&puts)
}

pub(crate) fn put(store: &Store, topic: &str, queue_id: i32, body: &[u8]) -> Appended {
    let appended = append(
        store,
        topic,
        queue_id,
        &[Message {
            body,
            ..Default::default()
        }],
    )
    .unwrap();
    store.drive();
    appended
}

pub(crate) fn request(topic: &str, queue_id: i32, offset: i64, max_count: u32) -> GetRequest<'_> {
    GetRequest {
        topic,
        queue_id,
        offset,
        max_count,
        max_bytes: usize::MAX,
        filter: Filter::All,
    }
}

/// Hot if it can be, else cold; the flag tells which.
pub(crate) fn get(store: &Store, request: &GetRequest<'_>) -> (GetResult, Vec<u8>, bool) {
    let mut out = BytesMut::new();
    match store.get_message(request, &mut out) {
        GetOutcome::Done(result) => (result, out.to_vec(), true),
        GetOutcome::Cold => {
            assert!(out.is_empty());
            let result = store.get_message_cold(request, &mut out);
            (result, out.to_vec(), false)
        }
    }
}

pub(crate) fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Splits concatenated records.
pub(crate) fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = bytes.split_at(i32_at(bytes, 0) as usize);
        all.push(record);
        bytes = rest;
    }
    all
}

/// Body of a record with IPv4 hosts.
pub(crate) fn body(record: &[u8]) -> &[u8] {
    &record[88..88 + i32_at(record, 84) as usize]
}

/// Every body of a queue from `offset` on, and where it ended.
pub(crate) fn bodies(store: &Store, topic: &str, queue_id: i32, mut offset: i64) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while offset < store.max_offset(topic, queue_id) {
        let (result, bytes, _) = get(store, &request(topic, queue_id, offset, 32));
        for (i, record) in records(&bytes).into_iter().enumerate() {
            assert_eq!(i64_at(record, 20), offset + i as i64);
            all.push(body(record).to_vec());
        }
        assert!(result.next_begin_offset > offset, "{result:?}");
        offset = result.next_begin_offset;
    }
    all
}

/// Lets go of a store as a kill would: nothing is flushed. Waits until its threads let go of it too.
pub(crate) fn crash(store: Arc<Store>) {
    let lock = store.config().root.join("lock");
    drop(store);
    // One of its threads may hold it last, and is still about to let the files go when nobody counts any more.
    wait(|| std::fs::File::open(&lock).is_ok_and(|file| file.try_lock().is_ok()));
}

pub(crate) fn wait(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "the condition did not come true");
        std::thread::yield_now();
    }
}
