//! What a send costs in counts instead of times: they repeat on a loaded machine, so they can be a check.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::compare::{Bench, Line};
use super::load::{self, Load};
use super::rows::installed;
use super::servers::Servers;

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Where the broker's store lies meanwhile. Default: a temporary folder.
    #[arg(long)]
    pub(super) work_dir: Option<std::path::PathBuf>,
}

/// User instructions of a send in the broker. What is measured is some tenth below it.
const MAX_INSTRUCTIONS: f64 = 15_000.0;
/// System calls of a send, 64 connections with one in flight.
const MAX_CALLS: f64 = 4.0;
/// Wake-ups of another thread for each send of a lone connection: none, but for the threads that look around now and then.
const MAX_HAND_OFFS: f64 = 0.02;
const CONF: &str = "flushDiskType=ASYNC_FLUSH\nworkerThreads=2\n";
/// What else the broker does meanwhile, and how many answers leave together, only ever adds to a count.
const TRIES: usize = 3;
/// How long a tracer may take to write down what it saw.
const WRITTEN_WITHIN: Duration = Duration::from_secs(20);

pub(super) struct Cost {
    instructions: f64,
    calls: f64,
    hand_offs: f64,
}

impl Cost {
    pub(super) fn lines(&self) -> Vec<Line> {
        vec![
            Line::at_most(
                "user instructions per send, 64x1, 1 KiB (callgrind)",
                self.instructions,
                "",
                MAX_INSTRUCTIONS,
            ),
            Line::at_most(
                "system calls per send, 64x1 (strace)",
                self.calls,
                "",
                MAX_CALLS,
            ),
            Line::at_most(
                "thread hand-offs per send, 1x1 (futex calls)",
                self.hand_offs,
                "",
                MAX_HAND_OFFS,
            ),
        ]
    }
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Cost> {
    for program in ["valgrind", "callgrind_control", "strace"] {
        ensure!(installed(program), "{program} is not here");
    }
    let (calls, _) = traced(bench, 64)?;
    let (_, hand_offs) = traced(bench, 1)?;
    Ok(Cost {
        instructions: instructions(bench)?,
        calls,
        hand_offs,
    })
}

fn sends(servers: &Servers, connections: usize, seconds: f64) -> Result<u64> {
    let report = load::run(&Load {
        duration: Duration::from_secs_f64(seconds),
        ..Load::sends(servers.broker, connections, 1)
    })?;
    ensure!(report.failures == 0, "refused: {:?}", report.first_failure);
    Ok(report.messages)
}

fn instructions(bench: &Bench<'_>) -> Result<f64> {
    let out = bench.dir.join("callgrind");
    let wrap = [
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        "--instr-atstart=no".to_owned(),
        format!("--callgrind-out-file={}", out.display()),
    ];
    let servers = bench.start_under(&wrap, CONF)?;
    let count = |on: &str| -> Result<()> {
        let output = Command::new("callgrind_control")
            .args(["-i", on, &servers.broker_pid().to_string()])
            .output()?;
        ensure!(
            output.status.success(),
            "callgrind_control: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    // Topic, files and buffers are made before.
    sends(&servers, 64, 0.5)?;
    count("on")?;
    let messages = sends(&servers, 64, 3.0)?;
    count("off")?;
    drop(servers);
    let totals = written(&out, |text| {
        let line = text
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("totals: "))?;
        line.split_ascii_whitespace().next()?.parse::<f64>().ok()
    })?;
    ensure!(messages > 1_000, "only {messages} messages went through");
    Ok(totals / messages as f64)
}

/// All system calls and the futex calls per send.
fn traced(bench: &Bench<'_>, connections: usize) -> Result<(f64, f64)> {
    let out = bench.dir.join(format!("strace-{connections}"));
    let wrap = ["strace", "-D", "-f", "-c", "-o"]
        .map(str::to_owned)
        .into_iter()
        .chain([out.display().to_string()])
        .collect::<Vec<_>>();
    let servers = bench.start_under(&wrap, CONF)?;
    let messages = sends(&servers, connections, 2.0)? as f64;
    drop(servers);
    let calls = |text: &str, name: &str| -> Option<f64> {
        let line = text
            .lines()
            .find(|line| line.split_ascii_whitespace().last() == Some(name))?;
        line.split_ascii_whitespace().nth(3)?.parse().ok()
    };
    let all = written(&out, |text| calls(text, "total"))?;
    let text = fs::read_to_string(&out)?;
    ensure!(messages > 1_000.0, "only {messages} messages went through");
    Ok((
        all / messages,
        calls(&text, "futex").unwrap_or(0.0) / messages,
    ))
}

/// What a tracer writes when its program has ended.
fn written<T>(file: &Path, read: impl Fn(&str) -> Option<T>) -> Result<T> {
    let end = Instant::now() + WRITTEN_WITHIN;
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some(found) = read(&text) {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "{} holds no result", file.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Fails when one of the counts is over its bar each time.
pub(super) fn check(args: &CheckArgs) -> Result<()> {
    for n in 1..=TRIES {
        let cost =
            super::compare::for_check(args, measure).context("measuring what a send costs")?;
        let over = over(&cost);
        if over.is_empty() {
            return Ok(());
        }
        ensure!(n < TRIES, "over the bar: {}", over.join(", "));
        println!("once more");
    }
    Ok(())
}

/// Which counts are over their bars.
fn over(cost: &Cost) -> Vec<&'static str> {
    let counts = [
        (
            "user instructions per send, 64x1",
            cost.instructions,
            MAX_INSTRUCTIONS,
        ),
        ("system calls per send, 64x1", cost.calls, MAX_CALLS),
        ("hand-offs per send, 1x1", cost.hand_offs, MAX_HAND_OFFS),
    ];
    for (what, value, bar) in counts {
        println!("{what}: {value:.3} (at most {bar})");
    }
    let over = counts.into_iter().filter(|(_, value, bar)| value > bar);
    over.map(|(what, ..)| what).collect()
}
