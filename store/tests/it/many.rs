//! Many queues and a long backlog: a million messages in ten thousand queues, killed and opened again. `rocketctl bench` measures the same with a broker around it,
//! and with a hundred million when told to.

use std::path::Path;
use std::time::Instant;

use crate::common::*;

const TOPICS: i32 = 100;
const QUEUES: i32 = 100;
const ROUNDS: i64 = 2;
const BATCH: i64 = 50;

#[test]
fn a_million_messages_in_ten_thousand_queues_are_all_there_after_a_kill() {
    // In memory where there is such a place: removing ten thousand files from a busy disk takes a minute.
    let shared = Path::new("/dev/shm");
    let dir = match shared.is_dir() {
        true => tempfile::tempdir_in(shared).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    let mut config = small(dir.path());
    config.segment_size = 64 << 20;
    config.consume_queue_file_size = 20 * 1_000;
    config.tail_ring_bytes = 16 << 20;
    let store = open(config.clone());
    let began = Instant::now();
    for round in 0..ROUNDS {
        for n in 0..TOPICS * QUEUES {
            let bodies: Vec<[u8; 8]> = (0..BATCH)
                .map(|i| (round * BATCH + i).to_be_bytes())
                .collect();
            let messages: Vec<Message<'_>> = bodies
                .iter()
                .map(|body| Message {
                    body,
                    ..Default::default()
                })
                .collect();
            let topic = format!("t{}", n / QUEUES);
            wait(|| append(&store, &topic, n % QUEUES, &messages).is_ok());
            store.drive();
        }
    }
    println!("appended in {:?}", began.elapsed());
    crash(store);
    let began = Instant::now();
    let store = open(config);
    println!("opened in {:?}", began.elapsed());
    let figures = store.runtime_figures();
    assert_eq!(figures.queues, (TOPICS * QUEUES) as usize);
    for n in 0..TOPICS * QUEUES {
        let max = store.max_offset(&format!("t{}", n / QUEUES), n % QUEUES);
        assert_eq!(max, ROUNDS * BATCH, "queue {n}");
    }
    // Some of them to their last byte.
    for n in (0..TOPICS * QUEUES).step_by(997) {
        let found = bodies(&store, &format!("t{}", n / QUEUES), n % QUEUES, 0);
        let wanted: Vec<Vec<u8>> = (0..ROUNDS * BATCH)
            .map(|i| i.to_be_bytes().to_vec())
            .collect();
        assert_eq!(found, wanted);
    }
    println!("checked in {:?}", began.elapsed());
}
