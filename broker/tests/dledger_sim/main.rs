//! The group under a seeded, deterministic simulation: the same member as in production, over a simulated disk, network
//! and clock. `DLEDGER_SIM_SEEDS=100000` runs more of them, `DLEDGER_SIM_SEED=17` one, with what happened told;
//! `DLEDGER_SIM_CASES=17` runs the named cases in another order of events, told as well.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails

mod cases;
mod disk;
mod fitness;
mod measure;
mod tables;
mod votes;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Plan, World};

/// Seeds of a usual run.
const SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

#[test]
fn whatever_happens_no_acknowledged_record_is_lost_and_the_group_comes_back() {
    if let Some(seed) = number("DLEDGER_SIM_SEED") {
        World::new(Plan::of(seed), true).run();
        return;
    }
    let seeds = number("DLEDGER_SIM_SEEDS").unwrap_or(SEEDS);
    let from = number("DLEDGER_SIM_FROM").unwrap_or(0);
    let next = AtomicU64::new(from);
    let failed = Mutex::new(Vec::new());
    let told = Mutex::new(world::Told::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds || !failed.lock().unwrap().is_empty() {
                        break;
                    }
                    let run = || World::new(Plan::of(seed), false).run();
                    match std::panic::catch_unwind(AssertUnwindSafe(run)) {
                        Ok(of_this) => told.lock().unwrap().add(&of_this),
                        Err(_) => failed.lock().unwrap().push(seed),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "seeds {failed:?} failed; DLEDGER_SIM_SEED={} tells what happened",
        failed[0]
    );
    let told = told.into_inner().unwrap();
    println!("{seeds} seeds: {told:?}");
    if from == 0 && seeds >= SEEDS {
        // A simulation in which nothing happens proves nothing.
        told.assert_rich();
    }
}
