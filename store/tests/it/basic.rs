use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::{Boundary, Confirm, Filter, GetStatus, PutError, Store};

use crate::common::*;

#[test]
fn what_is_appended_is_read_hot_then_cold_after_each_kind_of_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(small(dir.path()));
    let wanted: Vec<Vec<u8>> = (0..300).map(|i| vec![i as u8; 100 + i]).collect();
    for (i, body) in wanted.iter().enumerate() {
        let appended = put(&store, "topic", 1, body);
        assert_eq!(appended.queue_offset, i as i64);
        store.check_invariants();
    }
    assert_eq!(bodies(&store, "topic", 1, 0), wanted);
    assert!(
        get(&store, &request("topic", 1, 0, 32)).2,
        "the head is read from memory"
    );
    assert!(store.wait_flushed(store.written(), Duration::from_secs(20)));
    store.shutdown();
    assert!(matches!(
        append(&store, "topic", 1, &[Message::default()]),
        Err(PutError::NotWritable(_))
    ));
    drop(store);
    assert!(!dir.path().join("abort").exists());

    let store = open(small(dir.path()));
    assert_eq!(store.runtime_figures().recovered_records, 0);
    assert!(!get(&store, &request("topic", 1, 0, 32)).2);
    assert_eq!(bodies(&store, "topic", 1, 0), wanted);
    assert_eq!(put(&store, "topic", 1, b"next").queue_offset, 300);
    let end = store.written();
    crash(store);

    let store = open(small(dir.path()));
    assert_eq!((store.written(), store.max_offset("topic", 1)), (end, 301));
    assert_eq!(bodies(&store, "topic", 1, 300), [b"next"]);
}

#[test]
fn a_second_store_on_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(small(dir.path()));
    assert!(matches!(
        Store::open(small(dir.path()), TestClock::at(0)),
        Err(store::Error::Locked(_))
    ));
}

#[test]
fn statuses_and_limits_are_upstream_s() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(small(dir.path()));
    let status = |topic: &str, offset| {
        let result = get(&store, &request(topic, 0, offset, 32)).0;
        (result.status, result.next_begin_offset)
    };
    assert_eq!(status("none", 5), (GetStatus::NoMatchedLogicQueue, 0));
    store.queue("t", 0).unwrap();
    assert_eq!(status("t", 5), (GetStatus::NoMessageInQueue, 0));
    for i in 0..100u8 {
        let tags = i64::from(i % 4);
        append(
            &store,
            "t",
            0,
            &[Message {
                body: &[i; 2000],
                tags,
                ..Default::default()
            }],
        )
        .unwrap();
        store.drive();
    }
    assert_eq!(status("t", 100), (GetStatus::OffsetOverflowOne, 100));
    assert_eq!(status("t", 101), (GetStatus::OffsetOverflowBadly, 100));
    assert_eq!(status("t", -1), (GetStatus::OffsetTooSmall, 0));
    let (result, bytes, _) = get(&store, &request("t", 0, 10, 100));
    assert_eq!(
        (result.status, result.count, result.next_begin_offset),
        (GetStatus::Found, 32, 42)
    );
    assert_eq!(bytes.len(), result.bytes);
    let mut one = request("t", 0, 10, 100);
    one.max_bytes = 1;
    assert_eq!(get(&store, &one).0.count, 1);
    one.max_bytes = 5000;
    assert_eq!(get(&store, &one).0.count, 2);
    let mut tagged = request("t", 0, 0, 10);
    tagged.filter = Filter::Tags(&[2]);
    let (result, bytes, _) = get(&store, &tagged);
    assert_eq!((result.count, result.next_begin_offset), (10, 39));
    assert_eq!(body(records(&bytes)[1])[0], 6);
    tagged.filter = Filter::Tags(&[9]);
    let result = get(&store, &tagged).0;
    assert_eq!(
        (result.status, result.next_begin_offset),
        (GetStatus::NoMatchedMessage, 100)
    );
}

#[test]
fn listeners_hear_of_records_after_they_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(small(dir.path()));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (to, weak) = (heard.clone(), Arc::downgrade(&store));
    store.on_arrival(Box::new(move |batch| {
        for arrival in batch {
            let store = weak.upgrade().unwrap();
            assert!(store.record_at(arrival.phy_offset).is_some());
            assert!(arrival.queue.max_offset() > arrival.queue_offset);
            to.lock().unwrap().push(arrival.queue_offset);
        }
    }));
    let to = heard.clone();
    store.on_watermark(Box::new(move |w| {
        if w.written > w.flushed {
            to.lock().unwrap().push(-1);
        }
    }));
    let messages = [Message {
        body: b"a",
        ..Default::default()
    }; 2];
    append(&store, "t", 0, &messages).unwrap();
    append(
        &store,
        "t",
        0,
        &[Message {
            sys_flag: 0x4,
            ..Default::default()
        }],
    )
    .unwrap();
    assert!(heard.lock().unwrap().is_empty());
    store.drive();
    assert_eq!(heard.lock().unwrap()[..3], [0, 1, -1]);
}

#[test]
fn external_confirm_holds_back_what_is_visible() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(small(dir.path()));
    put(&store, "t", 0, b"before");
    store.set_confirm(Confirm::External);
    let first = put(&store, "t", 0, b"one");
    let second = put(&store, "t", 0, b"two");
    assert_eq!(store.written(), second.end);
    assert_eq!(
        (store.confirm_offset(), store.max_offset("t", 0)),
        (first.phy_offset, 1)
    );
    store.advance_confirm(first.end);
    assert_eq!(
        (store.confirm_offset(), store.max_offset("t", 0)),
        (first.end, 2)
    );
    store.advance_confirm(u64::MAX);
    assert_eq!(
        (store.confirm_offset(), store.max_offset("t", 0)),
        (second.end, 3)
    );
    store.check_invariants();
}

#[test]
fn keys_and_times_find_their_records() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(0);
    let store = Store::open(small(dir.path()), clock.clone()).unwrap();
    for i in 0..500i64 {
        clock.set(10_000 + i * 10);
        let key = format!("k{} common", i % 100);
        append(
            &store,
            "t",
            0,
            &[Message {
                body: b"x",
                key: &key,
                ..Default::default()
            }],
        )
        .unwrap();
    }
    store.drive();
    let offsets = |store: &Store, key: &str, begin, end| -> Vec<i64> {
        store
            .query("t", key, 64, begin, end)
            .records
            .iter()
            .map(|r| i64_at(r, 20))
            .collect()
    };
    assert_eq!(offsets(&store, "k7", 0, i64::MAX), [407, 307, 207, 107, 7]);
    assert_eq!(offsets(&store, "k7", 12_000, 13_999), [307, 207]);
    assert_eq!(offsets(&store, "common", 0, i64::MAX).len(), 64);
    assert!(store.query("u", "k7", 64, 0, i64::MAX).records.is_empty());
    assert_eq!(store.offset_by_time("t", 0, 10_055, Boundary::Lower), 6);
    assert_eq!(store.offset_by_time("t", 0, 10_055, Boundary::Upper), 5);
    assert_eq!(store.offset_by_time("t", 0, 10_050, Boundary::Lower), 5);
    assert_eq!(store.offset_by_time("t", 0, 99_999, Boundary::Lower), 500);
    assert_eq!(store.offset_by_time("t", 0, 99_999, Boundary::Upper), 499);
    assert_eq!(store.offset_by_time("t", 0, 0, Boundary::Lower), 0);
    assert_eq!(store.offset_by_time("t", 9, 0, Boundary::Lower), 0);
    assert_eq!(
        (
            store.earliest_store_time("t", 0),
            store.earliest_message_time()
        ),
        (10_000, 10_000)
    );
    crash(store);
    let store = open_at(small(dir.path()), clock);
    assert_eq!(offsets(&store, "k7", 0, i64::MAX), [407, 307, 207, 107, 7]);
}
