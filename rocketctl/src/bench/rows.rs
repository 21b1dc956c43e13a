//! The rows of `rocketctl bench compare`, one function each.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remoting::protocol::body::TopicConfig;
use remoting::{Admin, ClientConfig, RemotingClient};

use super::compare::{Bench, Line, Measure, median, shape};
use super::cost;
use super::load::{self, Kind, Load, Report};
use super::process;
use super::servers::{self, Mode, Servers, Side};

pub(super) const ASYNC: &str = "flushDiskType=ASYNC_FLUSH\n";
pub(super) const SYNC: &str = "flushDiskType=SYNC_FLUSH\n";
/// Starts whose median is quoted.
const STARTS: usize = 5;
const MIB: f64 = 1048576.0;

fn sends(servers: &Servers, connections: usize, window: usize) -> Load {
    Load {
        broker_pids: servers.broker_pids(),
        ..Load::sends(servers.broker, connections, window)
    }
}

/// Rows 1 to 4: each load on fresh stores, which bounds the disk that is used.
pub(super) fn send(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for text in &bench.args.loads {
        let (connections, window) = shape(text)?;
        let original = bench.start(Side::Original, Mode::Alone, ASYNC)?;
        let ours = bench.start(Side::Ours, Mode::Alone, ASYNC)?;
        let p99 = (text == "64x1").then_some(4.0);
        lines.extend(bench.pairs(
            text,
            [&original, &ours],
            &|servers| sends(servers, connections, window),
            &[
                Measure::tps(2.5),
                Measure::cpu(3.0),
                Measure::p50(),
                Measure::p99(p99),
            ],
        )?);
    }
    Ok(lines)
}

pub(super) fn open(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let original = bench.start(Side::Original, Mode::Alone, ASYNC)?;
    let ours = bench.start(Side::Ours, Mode::Alone, ASYNC)?;
    bench.pairs(
        "open loop 5,000/s",
        [&original, &ours],
        &|servers| Load {
            rate: Some(5_000.0),
            ..sends(servers, 4, 64)
        },
        &[Measure::p50(), Measure::p99(Some(3.0))],
    )
}

pub(super) fn sync_flush(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let original = bench.start(Side::Original, Mode::Alone, SYNC)?;
    let ours = bench.start(Side::Ours, Mode::Alone, SYNC)?;
    let mut lines = Vec::new();
    for connections in [1, 16, 64] {
        lines.extend(bench.pairs(
            &format!("SYNC_FLUSH {connections}x1"),
            [&original, &ours],
            &|servers| sends(servers, connections, 1),
            &[Measure::tps(2.5)],
        )?);
    }
    Ok(lines)
}

pub(super) fn pull(bench: &Bench<'_>) -> Result<Vec<Line>> {
    /// What our ring and the original's page cache both hold: 20 MiB and more in the log.
    const MESSAGES: u64 = 16_000;
    let original = bench.start(Side::Original, Mode::Alone, ASYNC)?;
    let ours = bench.start(Side::Ours, Mode::Alone, ASYNC)?;
    for servers in [&original, &ours] {
        send_messages(&sends(servers, 4, 4), MESSAGES)?;
    }
    bench.pairs(
        "pull of 32, 4x1",
        [&original, &ours],
        &|servers| Load {
            kind: Kind::Pull { count: 32 },
            ..sends(servers, 4, 1)
        },
        &[Measure::cpu(2.5), Measure::tps(1.0)],
    )
}

pub(super) fn memory(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let original = bench.start(Side::Original, Mode::Alone, ASYNC)?;
    let ours = bench.start(Side::Ours, Mode::Alone, ASYNC)?;
    let (original_idle, _) = process::memory(original.broker_pid())?;
    let (idle, _) = process::memory(ours.broker_pid())?;
    for servers in [&original, &ours] {
        for window in [1, 8] {
            load::run(&Load {
                duration: Duration::from_secs(3),
                ..sends(servers, 100, window)
            })?;
        }
    }
    let (_, original_loaded) = process::memory(original.broker_pid())?;
    let (_, loaded) = process::memory(ours.broker_pid())?;
    let line = |what: &str, original: u64, ours: u64, bar| {
        let (original, ours) = (original as f64 / MIB, ours as f64 / MIB);
        Line::at_most(what, ours, "MiB", bar).original(original, "MiB", original / ours)
    };
    Ok(vec![
        line("RSS right after the start", original_idle, idle, 25.0),
        line(
            "anonymous RSS after 100x1 and 100x8 (the original: 2 GiB heap)",
            original_loaded,
            loaded,
            120.0,
        ),
    ])
}

pub(super) fn start(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let (mut cold, mut up) = (Vec::new(), Vec::new());
    for n in 0..STARTS {
        cold.push(bench.start(Side::Ours, Mode::Alone, ASYNC)?.started_in);
        up.push(servers::time_up(&bench.dir.join(format!("up-{n}")))?);
    }
    let original = bench.start(Side::Original, Mode::Alone, ASYNC)?.started_in;
    let ms = |took: &Duration| took.as_secs_f64() * 1e3;
    let cold = median(cold.iter().map(ms));
    Ok(vec![
        Line::at_most(
            format!("cold start, empty store (ours: to registered, median of {STARTS}; the original: to open port, once)"),
            cold,
            "ms",
            50.0,
        )
        .original(ms(&original), "ms", ms(&original) / cold),
        Line::at_most(
            format!("`rocketctl up -d -f examples/single-master.yaml` until ready, median of {STARTS}"),
            median(up.iter().map(ms)),
            "ms",
            1_000.0,
        ),
    ])
}

pub(super) fn restart(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (queues, messages, bar) in [(4, 1_000_000, 1.0), (10_000, 1_000_000, 2.0)] {
        let mut ours = bench.start(Side::Ours, Mode::Alone, ASYNC)?;
        make_topic(&ours, "Restarted", queues)?;
        let load = Load {
            topic: "Restarted".into(),
            queues,
            around: true,
            ..Load::sends(ours.broker, 16, 32)
        };
        send_messages(&load, messages)?;
        let mut times = Vec::new();
        for _ in 0..3 {
            // Something in the tail that the last start did not see.
            send_messages(&load, 10_000)?;
            ours.kill()?;
            times.push(ours.again()?.as_secs_f64());
        }
        lines.push(Line::at_most(
            format!(
                "kill -9 to registered again, {messages} x 1 KiB in {queues} queues, median of 3"
            ),
            median(times.into_iter()),
            "s",
            bar,
        ));
    }
    Ok(lines)
}

pub(super) fn queues(bench: &Bench<'_>) -> Result<Vec<Line>> {
    const MANY: u32 = 10_000;
    let ours = bench.start(Side::Ours, Mode::Alone, ASYNC)?;
    make_topic(&ours, "Few", 4)?;
    make_topic(&ours, "Many", MANY)?;
    let run = |topic: &str, queues, seconds: f64| {
        load::run(&Load {
            topic: topic.into(),
            queues,
            around: true,
            duration: Duration::from_secs_f64(seconds),
            ..sends(&ours, 16, 8)
        })
    };
    // Each queue written and its files made.
    run("Many", MANY, 2.0)?;
    let (mut growth, mut few, mut many) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.args.pairs {
        let seconds = bench.args.duration.min(3.0);
        let cpu = |r: Report| r.broker_cpu_us_per_message.context("no CPU time");
        let a = cpu(run("Few", 4, seconds)?)?;
        let b = cpu(run("Many", MANY, seconds)?)?;
        eprintln!("queues: {a:.2} and {b:.2} µs");
        few.push(a);
        many.push(b);
        growth.push(b / a);
    }
    Ok(vec![
        Line::reported(
            "CPU per message, 4 queues in turn, 16x8",
            median(few.into_iter()),
            "µs",
        ),
        Line::reported(
            "CPU per message, 10,000 queues in turn",
            median(many.into_iter()),
            "µs",
        ),
        Line::at_most(
            "growth (median of pairs)",
            median(growth.into_iter()),
            "×",
            1.3,
        ),
    ])
}

pub(super) fn backlog(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let messages = bench.args.backlog;
    let ours = bench.start(Side::Ours, Mode::Alone, ASYNC)?;
    send_messages(
        &Load {
            kind: Kind::Send { body_size: 100 },
            topic: "Backlog".into(),
            ..sends(&ours, 4, 128)
        },
        messages,
    )?;
    let seconds = bench.args.duration;
    let hot = || {
        load::run(&Load {
            warmup: Duration::from_millis(300),
            duration: Duration::from_secs_f64(seconds),
            ..sends(&ours, 16, 1)
        })
    };
    let (mut kept, mut read) = (Vec::new(), Vec::new());
    for n in 1..=bench.args.pairs {
        let alone = hot()?;
        rustix::fs::sync();
        forget(&ours.store().join("commitlog"))?;
        // A consumer reads the whole backlog over and over, in turn with its own work: one connection, one call at a time.
        let reader = Load {
            kind: Kind::Pull { count: 32 },
            topic: "Backlog".into(),
            duration: Duration::from_secs_f64(seconds + 0.6),
            broker_pids: Vec::new(),
            ..sends(&ours, 1, 1)
        };
        let reading = std::thread::spawn(move || load::run(&reader));
        let beside = hot()?;
        let reading = reading
            .join()
            .map_err(|_| anyhow::anyhow!("the reader failed"))??;
        eprintln!(
            "backlog pair {n}: {:.0}/s alone, {:.0}/s while {:.0}/s are read",
            alone.messages_per_second, beside.messages_per_second, reading.messages_per_second
        );
        kept.push(beside.messages_per_second / alone.messages_per_second);
        read.push(reading.messages_per_second);
    }
    let loss = 100.0 * (1.0 - median(kept.into_iter()));
    Ok(vec![
        Line::at_most(
            format!(
                "loss of hot sends (16x1) while one consumer reads {messages} messages from offset 0"
            ),
            loss,
            "%",
            20.0,
        ),
        Line::reported("read meanwhile", median(read.into_iter()), "/s"),
    ])
}

/// Every fdatasync takes this much longer.
const STALL: Duration = Duration::from_millis(200);

pub(super) fn stall(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let wrap = [
        "strace".to_owned(),
        "-D".to_owned(),
        "-f".to_owned(),
        "--seccomp-bpf".to_owned(),
        "-qqq".to_owned(),
        "-o".to_owned(),
        bench.dir.join("fdatasync").display().to_string(),
        "-e".to_owned(),
        "trace=fdatasync".to_owned(),
        "-e".to_owned(),
        format!("inject=fdatasync:delay_exit={}", STALL.as_micros()),
    ];
    let ours = bench.start_under(&wrap, ASYNC)?;
    let rate = load::run(&Load {
        warmup: Duration::from_secs(1),
        duration: Duration::from_secs_f64(bench.args.duration),
        rate: Some(5_000.0),
        ..sends(&ours, 16, 16)
    })?;
    ensure!(rate.failures == 0, "refused: {:?}", rate.first_failure);
    Ok(vec![
        Line::at_most(
            "p99 of 5,000 sends a second, ASYNC_FLUSH, each fdatasync 200 ms late",
            rate.p99_ms,
            "ms",
            5.0,
        ),
        Line::reported("slowest of them", rate.max_ms, "ms"),
    ])
}

pub(super) fn throttled(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let dir = bench
        .args
        .throttled_dir
        .as_ref()
        .context("--throttled-dir names no folder on a slow device")?;
    let ours = bench.start_in(&dir.join("ours"), ASYNC)?;
    let report = load::run(&Load {
        warmup: Duration::from_secs(1),
        duration: Duration::from_secs_f64(bench.args.duration * 2.0),
        rate: Some(5_000.0),
        ..sends(&ours, 16, 16)
    })?;
    Ok(vec![
        Line::reported(
            "p99 of 5,000 sends a second on a slow device",
            report.p99_ms,
            "ms",
        ),
        Line::reported("slowest of them", report.max_ms, "ms"),
        Line::reported("answered", report.messages_per_second, "/s"),
        Line::reported("refused", report.failures as f64, "sends"),
    ])
}

pub(super) fn first_second(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let ours = bench.start(Side::Ours, Mode::Alone, ASYNC)?;
        let run = |seconds: f64| {
            load::run(&Load {
                duration: Duration::from_secs_f64(seconds),
                ..sends(&ours, 16, 1)
            })
        };
        let first = run(1.0)?.messages_per_second;
        let after = run(bench.args.minute / 3.0)?.messages_per_second;
        eprintln!("first second: {first:.0}/s, then {after:.0}/s");
        ratios.push(first / after);
    }
    let ratio = median(ratios.into_iter());
    Ok(vec![Line {
        bar: "≥ 0.9×".into(),
        met: Some(ratio >= 0.9),
        ..Line::reported(
            format!(
                "TPS of the first second after a start against the {:.0} s after it, 16x1, median of 3",
                bench.args.minute / 3.0
            ),
            ratio,
            "×",
        )
    }])
}

pub(super) fn cost(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let cost = cost::measure(bench)?;
    Ok(cost.lines())
}

pub(super) fn sync_master(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    {
        let original = bench.start(Side::Original, Mode::Slave { sync: true }, ASYNC)?;
        let ours = bench.start(Side::Ours, Mode::Slave { sync: true }, ASYNC)?;
        for (connections, window) in [(16, 1), (64, 1)] {
            lines.extend(bench.pairs(
                &format!("SYNC_MASTER {connections}x{window}"),
                [&original, &ours],
                &|servers| sends(servers, connections, window),
                &[Measure::tps(2.0), Measure::cpu(2.0), Measure::p99(None)],
            )?);
        }
    }
    let baseline = bench.start(Side::Baseline, Mode::Slave { sync: false }, ASYNC)?;
    let ours = bench.start(Side::Ours, Mode::Slave { sync: true }, ASYNC)?;
    for (connections, window) in [(64, 1), (16, 32)] {
        lines.extend(bench.pairs(
            &format!("ours SYNC_MASTER against ours ASYNC_MASTER {connections}x{window}"),
            [&baseline, &ours],
            &|servers| sends(servers, connections, window),
            &[Measure::tps(0.85), Measure::cpu(0.8)],
        )?);
    }
    Ok(lines)
}

pub(super) fn dledger(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    {
        let original = bench.start(Side::Original, Mode::Dledger, ASYNC)?;
        let ours = bench.start(Side::Ours, Mode::Dledger, ASYNC)?;
        for (connections, window) in [(4, 1), (16, 1), (64, 1), (16, 32)] {
            lines.extend(bench.pairs(
                &format!("three that elect, {connections}x{window}"),
                [&original, &ours],
                &|servers| sends(servers, connections, window),
                &[Measure::tps(5.0), Measure::cpu(2.0), Measure::p99(None)],
            )?);
        }
    }
    let original = bench.start(Side::Original, Mode::Dledger, ASYNC)?;
    let ours = bench.start(Side::Ours, Mode::Dledger, SYNC)?;
    lines.extend(bench.pairs(
        "three that elect, ours with SYNC_FLUSH on all, the original without, 64x1",
        [&original, &ours],
        &|servers| sends(servers, 64, 1),
        &[Measure::tps(3.0)],
    )?);
    Ok(lines)
}

/// Sends at least so many messages, as fast as they go.
fn send_messages(load: &Load, messages: u64) -> Result<()> {
    const LONGEST: Duration = Duration::from_secs(3_600);
    let (mut sent, began) = (0, Instant::now());
    let mut seconds = 0.1;
    while sent < messages {
        let report = load::run(&Load {
            warmup: Duration::ZERO,
            duration: Duration::from_secs_f64(seconds),
            ..load.clone()
        })?;
        ensure!(
            report.failures == 0 && began.elapsed() < LONGEST,
            "after {sent} messages: {} refused: {:?}",
            report.failures,
            report.first_failure
        );
        sent += report.messages;
        // Not many more than asked for.
        let rest = messages.saturating_sub(sent) as f64 / report.messages_per_second.max(1.0);
        seconds = rest.clamp(0.02, 10.0);
    }
    Ok(())
}

fn make_topic(servers: &Servers, topic: &str, queues: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let queues = i32::try_from(queues)?;
    runtime.block_on(async {
        let client = RemotingClient::new(ClientConfig::default());
        let admin = Admin::new(client.clone(), "");
        let config = TopicConfig {
            topic_name: topic.to_owned(),
            read_queue_nums: queues,
            write_queue_nums: queues,
            ..TopicConfig::default()
        };
        let made = admin
            .create_topic(&servers.broker.to_string(), &config)
            .await;
        client.shutdown().await;
        made.context("creating a topic")
    })
}

/// Asks the kernel to forget what it holds of the files of a folder, so that they are read from the disk again.
fn forget(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = File::open(entry?.path())?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// The program, if it is here.
pub(super) fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}
