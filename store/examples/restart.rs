//! How long a store takes to come back: `restart fill DIR QUEUES MESSAGES` ends as if killed, `restart open DIR` opens it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use store::{PutError, PutMessage, Store, StoreConfig, SystemClock, TagsCode};

fn fill(dir: &str, queues: usize, messages: usize) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(StoreConfig::new(dir), Arc::new(SystemClock))?;
    let host: SocketAddr = ([127, 0, 0, 1], 10911).into();
    let all: Result<Vec<_>, _> = (0..queues)
        .map(|i| store.queue(&format!("t{}", i / 8), (i % 8) as i32))
        .collect();
    let all = all?;
    let begin = Instant::now();
    for i in 0..messages {
        let key = format!("7F0000010000365700000000{i:08X}");
        let properties = format!("UNIQ_KEY\u{1}{key}\u{2}");
        let message = PutMessage {
            queue: &all[i % queues],
            flag: 0,
            sys_flag: 0,
            born_timestamp: 0,
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: &[b'x'; 1024],
            properties: properties.as_bytes(),
            tags_code: TagsCode::Hash(0),
            unique_key: &key,
            keys: "",
        };
        while let Err(error) = store.append(&[message]) {
            assert!(matches!(error, PutError::Busy(_)), "{error}");
            store.drive();
            std::thread::yield_now();
        }
        if i % 16 == 0 {
            store.drive();
        }
    }
    store.drive();
    println!(
        "{messages} messages in {queues} queues: {:.2} s",
        begin.elapsed().as_secs_f64()
    );
    std::process::exit(0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    match &args[1..] {
        [fill_word, dir, queues, messages] if fill_word == "fill" => {
            fill(dir, queues.parse()?, messages.parse()?)
        }
        [open_word, dir] if open_word == "open" => {
            let begin = Instant::now();
            let store = Store::open(StoreConfig::new(dir), Arc::new(SystemClock))?;
            let opened = begin.elapsed();
            let figures = store.runtime_figures();
            let begin = Instant::now();
            let mut total = 0;
            for (topic, ids) in store.queues() {
                total += ids
                    .iter()
                    .map(|id| store.max_offset(&topic, *id))
                    .sum::<i64>();
            }
            println!(
                "open {:.3} s, {} records read, {} queues; all queues loaded in {:.3} s: {total} messages",
                opened.as_secs_f64(),
                figures.recovered_records,
                figures.queues,
                begin.elapsed().as_secs_f64()
            );
            // Ends as if killed again.
            std::process::exit(0)
        }
        _ => Err("restart fill DIR QUEUES MESSAGES | restart open DIR".into()),
    }
}
