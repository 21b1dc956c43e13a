//! The original and ours in turn, A B A B …, on the same load; only medians of paired ratios are quoted.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::load::{self, Kind, Load, Report};
use super::process;
use super::servers::{self, Servers};

#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// Pairs of runs for each load.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 5.0)]
    duration: f64,
    /// Seconds that the original is warmed on each load first: its JIT needs them.
    #[arg(long, default_value_t = 30.0)]
    warmup: f64,
    /// Loads: connections × in flight, comma-separated.
    #[arg(long, default_value = "16x1,16x32", value_delimiter = ',')]
    loads: Vec<String>,
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// SYNC_FLUSH on both.
    #[arg(long)]
    sync_flush: bool,
    /// Write the result into this Markdown file, between its `bench compare` marks.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Where the servers' stores lie meanwhile (several GB). Default: a temporary folder.
    #[arg(long)]
    work_dir: Option<PathBuf>,
}

const BEGIN: &str = "<!-- bench compare: begin -->";
const END: &str = "<!-- bench compare: end -->";
/// Starts of ours whose median is quoted as the cold start.
const COLD_STARTS: usize = 5;

struct Row {
    what: String,
    original: f64,
    ours: f64,
    /// Original ÷ ours or ours ÷ original, so that more is better.
    better: Vec<f64>,
    bar: Option<f64>,
    unit: &'static str,
}

pub(super) fn run(args: &CompareArgs) -> Result<()> {
    ensure!((1..=50).contains(&args.pairs), "--pairs: 1 to 50");
    let temporary;
    let dir = match &args.work_dir {
        Some(dir) => dir.clone(),
        None => {
            temporary =
                std::env::temp_dir().join(format!("rocketctl-compare-{}", std::process::id()));
            temporary.clone()
        }
    };
    let result = in_dir(args, &dir);
    if args.work_dir.is_none() {
        let _ = fs::remove_dir_all(&dir);
    }
    let text = result?;
    print!("{text}");
    if let Some(file) = &args.write {
        write_between_marks(file, &text)?;
        println!("written to {}", file.display());
    }
    Ok(())
}

fn in_dir(args: &CompareArgs, dir: &std::path::Path) -> Result<String> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("rocketcluster");
    let extra = if args.sync_flush {
        "flushDiskType=SYNC_FLUSH\n"
    } else {
        "flushDiskType=ASYNC_FLUSH\n"
    };

    let mut cold = Vec::new();
    for n in 0..COLD_STARTS {
        let ours = servers::start_ours(&dir.join(format!("cold-{n}")), extra)?;
        cold.push(ours.started_in.as_secs_f64() * 1e3);
    }
    let up = median(
        (0..COLD_STARTS)
            .map(|n| servers::time_up(&dir.join(format!("up-{n}"))))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .map(|took| took.as_secs_f64() * 1e3),
    );
    let ours = servers::start_ours(&dir.join("ours"), extra)?;
    let original = servers::start_original(&dir.join("original"), &cache, extra)?;
    let (ours_idle, _) = process::memory(ours.broker_pid())?;
    let (original_idle, _) = process::memory(original.broker_pid())?;
    ours.freeze(true)?;
    original.freeze(true)?;

    let mut rows = Vec::new();
    for shape in &args.loads {
        let (connections, window) = shape
            .split_once(['x', '×'])
            .and_then(|(c, w)| Some((c.parse().ok()?, w.parse().ok()?)))
            .with_context(|| format!("--loads {shape}: expected CONNECTIONSxWINDOW, as 16x32"))?;
        let measure = |servers: &Servers, seconds: f64, warmup: f64| -> Result<Report> {
            // What the last run left dirty is not this run's to write.
            rustix::fs::sync();
            servers.freeze(false)?;
            let report = load::run(&Load {
                kind: Kind::Send {
                    body_size: args.body,
                },
                broker: servers.broker,
                connections,
                window,
                topic: "RocketctlBench".into(),
                queues: 4,
                rate: None,
                warmup: Duration::from_secs_f64(warmup),
                duration: Duration::from_secs_f64(seconds),
                broker_pid: Some(servers.broker_pid()),
            });
            servers.freeze(true)?;
            report
        };
        eprintln!("{shape}: warming the original for {} s …", args.warmup);
        measure(&original, args.warmup.max(1.0), 0.0)?;
        measure(&ours, 2.0, 0.0)?;
        let mut pairs = Vec::new();
        for n in 1..=args.pairs {
            let a = measure(&original, args.duration, 1.0)?;
            let b = measure(&ours, args.duration, 1.0)?;
            eprintln!(
                "{shape} pair {n}: {:.0}/s and {:.0}/s; {:.1} and {:.1} µs; p99 {:.2} and {:.2} ms{}{}",
                a.messages_per_second,
                b.messages_per_second,
                cpu(&a),
                cpu(&b),
                a.p99_ms,
                b.p99_ms,
                if b.failures + a.failures > 0 {
                    format!("; failures {} and {}", a.failures, b.failures)
                } else {
                    String::new()
                },
                if b.void {
                    format!(
                        "; the generator used {:.2} cores against ours: ours is at least this fast",
                        b.client_cores
                    )
                } else {
                    String::new()
                },
            );
            ensure!(
                b.failures == 0,
                "ours refused {} messages: {:?}",
                b.failures,
                b.first_failure
            );
            pairs.push((a, b));
        }
        let column = |f: &dyn Fn(&Report) -> f64| {
            (
                median(pairs.iter().map(|p| f(&p.0))),
                median(pairs.iter().map(|p| f(&p.1))),
            )
        };
        let mut row = |what: &str, unit, f: &dyn Fn(&Report) -> f64, more_is_better: bool, bar| {
            let (original, ours) = column(f);
            let better = pairs
                .iter()
                .map(|(a, b)| {
                    if more_is_better {
                        f(b) / f(a)
                    } else {
                        f(a) / f(b)
                    }
                })
                .collect();
            rows.push(Row {
                what: format!("{shape} {what}"),
                original,
                ours,
                better,
                bar,
                unit,
            });
        };
        row("TPS", "/s", &|r| r.messages_per_second, true, Some(2.0));
        row("broker CPU per message", "µs", &cpu, false, Some(2.5));
        row("p50", "ms", &|r| r.p50_ms, false, None);
        row("p99", "ms", &|r| r.p99_ms, false, None);
    }
    let (_, anonymous) = process::memory(ours.broker_pid())?;
    let (_, original_anonymous) = process::memory(original.broker_pid())?;
    Ok(render(
        args,
        &rows,
        median(cold.iter().copied()),
        original.started_in.as_secs_f64() * 1e3,
        up,
        [ours_idle, original_idle, anonymous, original_anonymous],
    ))
}

fn cpu(r: &Report) -> f64 {
    r.broker_cpu_us_per_message.unwrap_or(f64::NAN)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.collect();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    }
}

fn render(
    args: &CompareArgs,
    rows: &[Row],
    cold_ms: f64,
    original_cold_ms: f64,
    up_ms: f64,
    [idle, original_idle, anonymous, original_anonymous]: [u64; 4],
) -> String {
    let mib = |b: u64| b as f64 / 1048576.0;
    let mut t = String::new();
    let _ = writeln!(
        t,
        "{}, {} cores, Linux {}; {} pairs of {} s each, the original warmed {} s per load; {} B bodies, {}.\n",
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
        std::thread::available_parallelism().map_or(0, usize::from),
        fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim(),
        args.pairs,
        args.duration,
        args.warmup,
        args.body,
        if args.sync_flush {
            "SYNC_FLUSH"
        } else {
            "ASYNC_FLUSH"
        }
    );
    let _ = writeln!(
        t,
        "`rocketctl bench compare --pairs {} --duration {} --warmup {} --loads {}{}`\n",
        args.pairs,
        args.duration,
        args.warmup,
        args.loads.join(","),
        if args.sync_flush { " --sync-flush" } else { "" }
    );
    let _ = writeln!(
        t,
        "| | Apache 4.9.7 | ours | better by (median of pairs) | range | bar |\n|---|---|---|---|---|---|"
    );
    for r in rows {
        let (low, high) = r
            .better
            .iter()
            .fold((f64::MAX, f64::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        let _ = writeln!(
            t,
            "| {} | {:.2} {} | {:.2} {} | {:.2}× | {low:.2}–{high:.2}× | {} |",
            r.what,
            r.original,
            r.unit,
            r.ours,
            r.unit,
            median(r.better.iter().copied()),
            r.bar.map_or("–".into(), |b| format!("≥ {b}×"))
        );
    }
    let _ = writeln!(
        t,
        "| cold start, empty store (ours: to registered, median of {COLD_STARTS}; Apache: to open port, once) | {original_cold_ms:.0} ms | {cold_ms:.0} ms | {:.0}× | | ≤ 100 ms |",
        original_cold_ms / cold_ms
    );
    let _ = writeln!(
        t,
        "| `rocketctl up -d -f examples/single-master.yaml` until ready, median of {COLD_STARTS} | – | {up_ms:.0} ms | – | | ≤ 1000 ms |"
    );
    let _ = writeln!(
        t,
        "| RSS right after the start | {:.0} MiB | {:.1} MiB | {:.0}× | | ≤ 25 MB |",
        mib(original_idle),
        mib(idle),
        original_idle as f64 / idle as f64
    );
    let _ = writeln!(
        t,
        "| anonymous RSS after the loads (Apache: 2 GiB heap) | {:.0} MiB | {:.1} MiB | {:.0}× | | – |",
        mib(original_anonymous),
        mib(anonymous),
        original_anonymous as f64 / anonymous as f64
    );
    t
}

fn write_between_marks(file: &std::path::Path, text: &str) -> Result<()> {
    let old = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let (Some(begin), Some(end)) = (old.find(BEGIN), old.find(END)) else {
        anyhow::bail!("{} has no marks {BEGIN} and {END}", file.display());
    };
    ensure!(
        begin < end,
        "the marks of {} are in the wrong order",
        file.display()
    );
    fs::write(
        file,
        format!("{}{BEGIN}\n{text}{}", &old[..begin], &old[end..]),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
    }

    #[test]
    fn only_what_lies_between_the_marks_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.md");
        fs::write(&file, format!("before\n{BEGIN}\nold\n{END}\nafter\n")).unwrap();
        write_between_marks(&file, "new\n").unwrap();
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            format!("before\n{BEGIN}\nnew\n{END}\nafter\n")
        );
        fs::write(&file, "no marks").unwrap();
        assert!(write_between_marks(&file, "new\n").is_err());
    }
}
