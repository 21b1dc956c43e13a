//! The rows of the comparison: the original and ours in turn, A B A B …, on the same load, and what is measured of ours alone. Only medians of paired
//! ratios are quoted against the original; what is absolute has an absolute bar.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::cost::CheckArgs;
use super::failover;
use super::load::{self, Load, Report};
use super::rows;
use super::servers::{self, Mode, Servers, Side};

#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// What to measure; `all` is every row.
    #[arg(
        long,
        value_enum,
        default_value = "send,start,memory",
        value_delimiter = ','
    )]
    rows: Vec<Row>,
    /// Pairs of runs for each load.
    #[arg(long, default_value_t = 5)]
    pub(super) pairs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 5.0)]
    pub(super) duration: f64,
    /// Seconds that the original is warmed on each load first: its JIT needs them.
    #[arg(long, default_value_t = 30.0)]
    pub(super) warmup: f64,
    /// Loads of the row `send`: connections × in flight, comma-separated.
    #[arg(long, default_value = "16x1,64x1,16x32", value_delimiter = ',')]
    pub(super) loads: Vec<String>,
    /// Messages of the row `backlog`, 100 B each: 300 bytes of disk each.
    #[arg(long, default_value_t = 1_000_000)]
    pub(super) backlog: u64,
    /// Seconds of the row `first-second` that its first second is compared with.
    #[arg(long, default_value_t = 60.0)]
    pub(super) minute: f64,
    /// Kills and hand-overs of the row `failover`.
    #[arg(long, default_value_t = 20)]
    pub(super) kills: usize,
    /// A folder on a device that is made slow, for the row `throttled`.
    #[arg(long)]
    pub(super) throttled_dir: Option<PathBuf>,
    /// Write each row into this Markdown file, between its marks.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Where the servers' stores lie meanwhile (15 GB at most by default). Default: a temporary folder.
    #[arg(long)]
    work_dir: Option<PathBuf>,
}

/// One block of the table; its name stands in the marks of the Markdown file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Row {
    /// Closed loops, ASYNC_FLUSH: TPS, broker CPU per message, p50, p99.
    Send,
    /// 5,000 sends a second whatever the answers do: p50, p99.
    Open,
    /// TPS with SYNC_FLUSH at 1x1, 16x1, 64x1.
    SyncFlush,
    /// CPU per message of pulls of 32 from memory.
    Pull,
    /// Memory, idle and with 100 connections.
    Memory,
    /// From the command to registered, on an empty store; `rocketctl up` until ready.
    Start,
    /// From kill -9 to registered again: a million messages; ten thousand queues.
    Restart,
    /// CPU per message with 4 and with 10,000 queues written in turn.
    Queues,
    /// Loss of hot sends while somebody reads a backlog from its beginning.
    Backlog,
    /// Latency of sends under ASYNC_FLUSH while every fdatasync takes 200 ms (strace).
    Stall,
    /// The same on a slow device (--throttled-dir).
    Throttled,
    /// TPS of the first second after a start against the time after it.
    FirstSecond,
    /// User instructions, system calls and hand-offs per send (valgrind, strace).
    Cost,
    /// SYNC_MASTER with a slave, against the original's and against our own ASYNC_MASTER.
    SyncMaster,
    /// Three that elect their master.
    Dledger,
    /// How long they take no sends: their master killed, and a hand-over (`--kills` of each).
    Failover,
    All,
}

const ALL: [Row; 16] = [
    Row::Send,
    Row::Open,
    Row::SyncFlush,
    Row::Pull,
    Row::Memory,
    Row::Start,
    Row::Restart,
    Row::Queues,
    Row::Backlog,
    Row::Stall,
    Row::Throttled,
    Row::FirstSecond,
    Row::Cost,
    Row::SyncMaster,
    Row::Dledger,
    Row::Failover,
];

/// Seconds before each run that are not counted.
const SHORT_WARMUP: f64 = 1.0;

/// Where a run may put things, and how long it lasts.
pub(super) struct Bench<'a> {
    pub(super) args: &'a CompareArgs,
    pub(super) dir: PathBuf,
    cache: PathBuf,
}

/// A line of the table.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) what: String,
    pub(super) original: String,
    pub(super) ours: String,
    pub(super) better: String,
    pub(super) range: String,
    pub(super) bar: String,
    pub(super) met: Option<bool>,
}

impl Line {
    /// An absolute figure of ours that must not be over `bar`.
    pub(super) fn at_most(what: impl Into<String>, ours: f64, unit: &str, bar: f64) -> Self {
        Line {
            what: what.into(),
            original: "–".into(),
            ours: format!("{} {unit}", figure(ours)),
            better: "–".into(),
            range: String::new(),
            bar: format!("≤ {bar} {unit}"),
            met: Some(ours <= bar),
        }
    }

    /// The same with nothing asked of it.
    pub(super) fn reported(what: impl Into<String>, ours: f64, unit: &str) -> Self {
        Line {
            bar: "–".into(),
            met: None,
            ..Self::at_most(what, ours, unit, f64::MAX)
        }
    }

    pub(super) fn original(self, value: f64, unit: &str, better: f64) -> Self {
        Line {
            original: format!("{} {unit}", figure(value)),
            better: format!("{better:.2}×"),
            ..self
        }
    }
}

/// Three significant digits, and thousands apart.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (n, digit) in digits.chars().enumerate() {
                if n > 0 && digit.is_ascii_digit() && (digits.len() - n) % 3 == 0 {
                    out.push(',');
                }
                out.push(digit);
            }
            out
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A column of a paired run.
pub(super) struct Measure {
    what: &'static str,
    unit: &'static str,
    value: fn(&Report) -> f64,
    more_is_better: bool,
    /// At least so many times better.
    bar: Option<f64>,
}

impl Measure {
    pub(super) fn tps(bar: f64) -> Self {
        Measure {
            what: "TPS",
            unit: "/s",
            value: |r| r.messages_per_second,
            more_is_better: true,
            bar: Some(bar),
        }
    }

    pub(super) fn cpu(bar: f64) -> Self {
        Measure {
            what: "broker CPU per message",
            unit: "µs",
            value: |r| r.broker_cpu_us_per_message.unwrap_or(f64::NAN),
            more_is_better: false,
            bar: Some(bar),
        }
    }

    pub(super) fn p50() -> Self {
        Measure {
            what: "p50",
            unit: "ms",
            value: |r| r.p50_ms,
            more_is_better: false,
            bar: None,
        }
    }

    pub(super) fn p99(bar: Option<f64>) -> Self {
        Measure {
            what: "p99",
            value: |r| r.p99_ms,
            bar,
            ..Self::p50()
        }
    }
}

pub(super) fn run(args: &CompareArgs) -> Result<()> {
    ensure!((1..=50).contains(&args.pairs), "--pairs: 1 to 50");
    ensure!((1..=1_000).contains(&args.kills), "--kills: 1 to 1,000");
    let rows: Vec<Row> = match args.rows.contains(&Row::All) {
        true => ALL.to_vec(),
        false => args.rows.clone(),
    };
    if let Some(file) = &args.write {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        for row in &rows {
            find_marks(&text, &name_of(*row))
                .with_context(|| format!("{} has no place for the row", file.display()))?;
        }
    }
    let name = format!("rocketctl-compare-{}", std::process::id());
    let bench = Bench {
        args,
        dir: args
            .work_dir
            .clone()
            .unwrap_or_else(std::env::temp_dir)
            .join(name),
        cache: cache_dir()?,
    };
    let mut failed = Vec::new();
    for row in rows {
        eprintln!("row {} …", name_of(row));
        fs::create_dir_all(&bench.dir)?;
        let lines = bench.row(row);
        let _ = fs::remove_dir_all(&bench.dir);
        match lines {
            Ok(lines) => {
                let text = bench.render(row, &lines);
                print!("\n{text}");
                if let Some(file) = &args.write {
                    write_between_marks(file, &name_of(row), &text)?;
                }
            }
            // One row that cannot be measured here does not keep the others from it.
            Err(error) => {
                eprintln!("row {}: {error:#}", name_of(row));
                failed.push(name_of(row));
            }
        }
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// Runs a measurement of ours alone in a folder of its own.
pub(super) fn for_check<T>(args: &CheckArgs, measure: fn(&Bench<'_>) -> Result<T>) -> Result<T> {
    let name = format!("rocketctl-check-{}", std::process::id());
    let args = CompareArgs {
        rows: Vec::new(),
        pairs: 1,
        duration: 1.0,
        warmup: 1.0,
        loads: Vec::new(),
        backlog: 0,
        minute: 1.0,
        kills: 0,
        throttled_dir: None,
        write: None,
        work_dir: args.work_dir.clone(),
    };
    let bench = Bench {
        dir: args
            .work_dir
            .clone()
            .unwrap_or_else(std::env::temp_dir)
            .join(name),
        args: &args,
        cache: PathBuf::new(),
    };
    fs::create_dir_all(&bench.dir)?;
    let measured = measure(&bench);
    let _ = fs::remove_dir_all(&bench.dir);
    measured
}

fn cache_dir() -> Result<PathBuf> {
    Ok(std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("rocketcluster"))
}

fn name_of(row: Row) -> String {
    row.to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Bench<'_> {
    fn row(&self, row: Row) -> Result<Vec<Line>> {
        match row {
            Row::Send => rows::send(self),
            Row::Open => rows::open(self),
            Row::SyncFlush => rows::sync_flush(self),
            Row::Pull => rows::pull(self),
            Row::Memory => rows::memory(self),
            Row::Start => rows::start(self),
            Row::Restart => rows::restart(self),
            Row::Queues => rows::queues(self),
            Row::Backlog => rows::backlog(self),
            Row::Stall => rows::stall(self),
            Row::Throttled => rows::throttled(self),
            Row::FirstSecond => rows::first_second(self),
            Row::Cost => rows::cost(self),
            Row::SyncMaster => rows::sync_master(self),
            Row::Dledger => rows::dledger(self),
            Row::Failover => failover::measure(self),
            Row::All => bail!("`all` is not a row"),
        }
    }

    pub(super) fn start(&self, side: Side, mode: Mode, extra: &str) -> Result<Servers> {
        self.check_space()?;
        let dir = self.dir.join(match side {
            Side::Original => "original",
            Side::Baseline => "baseline",
            Side::Ours => "ours",
        });
        servers::start(side, mode, &dir, &self.cache, extra)
    }

    /// Ours alone, under another program.
    pub(super) fn start_under(&self, wrap: &[String], extra: &str) -> Result<Servers> {
        self.check_space()?;
        let dir = self.dir.join("ours");
        servers::start_under(wrap, Side::Ours, Mode::Alone, &dir, &self.cache, extra)
    }

    /// Ours alone, elsewhere.
    pub(super) fn start_in(&self, dir: &Path, extra: &str) -> Result<Servers> {
        servers::start(Side::Ours, Mode::Alone, dir, &self.cache, extra)
    }

    /// Brokers refuse sends on a disk that is nearly full, so a run that comes near it would measure that.
    fn check_space(&self) -> Result<()> {
        const LEAST_FREE: f64 = 0.25;
        let disk = rustix::fs::statvfs(&self.dir)?;
        let free = disk.f_bavail as f64 / (disk.f_blocks - disk.f_bfree + disk.f_bavail) as f64;
        ensure!(
            free > LEAST_FREE,
            "{}: only {:.0} % of the disk is free; see --work-dir",
            self.dir.display(),
            free * 100.0
        );
        Ok(())
    }

    /// The same load on both in turn. `load` is asked for the load of each side; both are frozen while they are not measured.
    pub(super) fn pairs(
        &self,
        label: &str,
        [original, ours]: [&Servers; 2],
        load: &dyn Fn(&Servers) -> Load,
        measures: &[Measure],
    ) -> Result<Vec<Line>> {
        let measure = |servers: &Servers, seconds: f64, warmup: f64| -> Result<Report> {
            // What the last run left dirty is not this run's to write.
            rustix::fs::sync();
            servers.freeze(false)?;
            let report = load::run(&Load {
                warmup: Duration::from_secs_f64(warmup),
                duration: Duration::from_secs_f64(seconds),
                ..load(servers)
            });
            servers.freeze(true)?;
            report
        };
        original.freeze(true)?;
        ours.freeze(true)?;
        // It is the JIT that needs warmth, and what it takes meanwhile needs disk.
        let warmup = match original.side {
            Side::Original => self.args.warmup.max(SHORT_WARMUP),
            _ => SHORT_WARMUP,
        };
        eprintln!("{label}: warming for {warmup} s …");
        measure(original, warmup, 0.0)?;
        measure(ours, SHORT_WARMUP, 0.0)?;
        let mut pairs = Vec::new();
        for n in 1..=self.args.pairs {
            let a = measure(original, self.args.duration, SHORT_WARMUP)?;
            let b = measure(ours, self.args.duration, SHORT_WARMUP)?;
            eprintln!("{label} pair {n}: {}", said(&a, &b));
            ensure!(
                b.failures == 0,
                "ours refused {} messages: {:?}",
                b.failures,
                b.first_failure
            );
            pairs.push((a, b));
        }
        original.freeze(false)?;
        ours.freeze(false)?;
        Ok(measures.iter().map(|m| m.line(label, &pairs)).collect())
    }

    fn render(&self, row: Row, lines: &[Line]) -> String {
        let args = self.args;
        let mut t = String::new();
        let _ = writeln!(
            t,
            "{}, {} cores, Linux {}, {}: `rocketctl bench compare --rows {} --pairs {} --duration {} --warmup {}`\n",
            jiff::Timestamp::now().strftime("%Y-%m-%d"),
            std::thread::available_parallelism().map_or(0, usize::from),
            fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim(),
            cpu_model(),
            name_of(row),
            args.pairs,
            args.duration,
            args.warmup,
        );
        let _ = writeln!(
            t,
            "| | {} | ours | better by | range | bar | met |\n|---|---|---|---|---|---|---|",
            if lines.iter().any(|line| line.original != "–") {
                "compared with"
            } else {
                "–"
            }
        );
        for line in lines {
            let _ = writeln!(
                t,
                "| {} | {} | {} | {} | {} | {} | {} |",
                line.what,
                line.original,
                line.ours,
                line.better,
                line.range,
                line.bar,
                match line.met {
                    Some(true) => "yes",
                    Some(false) => "**no**",
                    None => "–",
                }
            );
        }
        t
    }
}

fn cpu_model() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(
            || "CPU unknown".to_owned(),
            |(_, name)| name.trim().to_owned(),
        )
}

fn said(a: &Report, b: &Report) -> String {
    let cpu = |r: &Report| r.broker_cpu_us_per_message.unwrap_or(f64::NAN);
    let mut text = format!(
        "{:.0}/s and {:.0}/s; {:.1} and {:.1} µs; p99 {:.2} and {:.2} ms",
        a.messages_per_second,
        b.messages_per_second,
        cpu(a),
        cpu(b),
        a.p99_ms,
        b.p99_ms,
    );
    if a.failures + b.failures > 0 {
        let _ = write!(text, "; failures {} and {}", a.failures, b.failures);
    }
    if b.void {
        let _ = write!(
            text,
            "; the generator used {:.2} cores against ours: ours is at least this fast",
            b.client_cores
        );
    }
    text
}

impl Measure {
    fn line(&self, label: &str, pairs: &[(Report, Report)]) -> Line {
        let better: Vec<f64> = pairs
            .iter()
            .map(|(a, b)| {
                let (a, b) = ((self.value)(a), (self.value)(b));
                if self.more_is_better { b / a } else { a / b }
            })
            .collect();
        let middle = median(better.iter().copied());
        let (low, high) = better
            .iter()
            .fold((f64::MAX, f64::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        let side = |f: &dyn Fn(&(Report, Report)) -> f64| {
            format!("{} {}", figure(median(pairs.iter().map(f))), self.unit)
        };
        Line {
            what: format!("{label} {}", self.what),
            original: side(&|p| (self.value)(&p.0)),
            ours: side(&|p| (self.value)(&p.1)),
            better: format!("{middle:.2}×"),
            range: format!("{low:.2}–{high:.2}×"),
            bar: self.bar.map_or("–".into(), |bar| format!("≥ {bar}×")),
            met: self.bar.map(|bar| middle >= bar),
        }
    }
}

/// `16x32`: connections and requests in flight on each.
pub(super) fn shape(text: &str) -> Result<(usize, usize)> {
    text.split_once(['x', '×'])
        .and_then(|(c, w)| Some((c.parse().ok()?, w.parse().ok()?)))
        .with_context(|| format!("--loads {text}: expected CONNECTIONSxWINDOW, as 16x32"))
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.collect();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    }
}

/// The bytes between the marks of a row.
fn find_marks(text: &str, row: &str) -> Result<std::ops::Range<usize>> {
    let (begin, end) = (
        format!("<!-- bench {row}: begin -->\n"),
        format!("<!-- bench {row}: end -->"),
    );
    let from = text
        .find(&begin)
        .with_context(|| format!("no mark {}", begin.trim()))?
        + begin.len();
    let length = text[from..]
        .find(&end)
        .with_context(|| format!("no mark {end} behind {}", begin.trim()))?;
    Ok(from..from + length)
}

fn write_between_marks(file: &Path, row: &str, text: &str) -> Result<()> {
    let mut old =
        fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    old.replace_range(find_marks(&old, row)?, text);
    fs::write(file, old)?;
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
    fn figures_have_three_digits_or_their_thousands_apart() {
        for (value, text) in [
            (0.123, "0.12"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234.0, "1,234"),
            (1_234_567.0, "1,234,567"),
            (123_456.0, "123,456"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn only_what_lies_between_the_marks_of_a_row_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.md");
        let with = |text: &str| {
            format!(
                "before\n<!-- bench send: begin -->\n{text}<!-- bench send: end -->\n<!-- bench open: begin -->\nkept\n<!-- bench open: end -->\n"
            )
        };
        fs::write(&file, with("old\n")).unwrap();
        write_between_marks(&file, "send", "new\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), with("new\n"));
        assert!(write_between_marks(&file, "pull", "new\n").is_err());
    }

    #[test]
    fn every_row_has_its_place_in_the_documentation() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
        let text = fs::read_to_string(file).unwrap();
        for row in ALL {
            find_marks(&text, &name_of(row)).unwrap();
        }
    }
}
