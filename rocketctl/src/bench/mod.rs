//! `rocketctl bench`: a load generator for any RocketMQ broker, and the comparison with the original in one run.
//!
//! Times are never a test: the machine's speed drifts, so what is worth quoting is the median of ratios of pairs that ran in turn.

mod compare;
mod cost;
mod failover;
mod frames;
mod load;
mod process;
mod rows;
mod servers;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};

use load::{Kind, Load, Report};

#[derive(Subcommand, Debug)]
pub(crate) enum BenchCommand {
    /// Send messages and measure.
    Send {
        #[command(flatten)]
        common: Common,
        /// Bytes of each body.
        #[arg(long, default_value_t = 1024)]
        body: usize,
    },
    /// Pull messages that are there already (send some first) and measure.
    Pull {
        #[command(flatten)]
        common: Common,
        /// Most messages of one answer.
        #[arg(long, default_value_t = 32)]
        count: u32,
    },
    /// Start the Apache 4.9.7 broker and ours in turn on the same load, and print the medians of the paired ratios. Needs a JDK 17 and Maven.
    Compare(compare::CompareArgs),
    /// Count instructions, system calls and hand-offs of a send, and fail when there are more than there may be. Needs valgrind and strace.
    Check(cost::CheckArgs),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Common {
    /// Broker to load, host:port. No name server is asked. Default: the first of the running local cluster, else 127.0.0.1:10911.
    #[arg(long)]
    broker: Option<String>,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests in flight on each connection.
    #[arg(long, default_value_t = 1)]
    window: usize,
    #[arg(long, default_value = "RocketctlBench")]
    topic: String,
    /// Queues to spread the connections over.
    #[arg(long, default_value_t = 4)]
    queues: u32,
    /// Send each message to the next queue instead of each connection's to one.
    #[arg(long)]
    around: bool,
    /// Open loop: requests per second in all. Default: as fast as answers come.
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds to measure.
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// Seconds before that.
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
    /// The broker's process, for its CPU time. Default: who listens on that port here.
    #[arg(long)]
    pid: Option<u32>,
    #[arg(short, long, value_parser = ["table", "json"], default_value = "table")]
    output: String,
}

/// Bounds that keep a load a load, not an attack on the machine.
const MAX_CONNECTIONS: usize = 10_000;
const MAX_IN_FLIGHT: usize = 200_000;
const MAX_SECONDS: f64 = 3_600.0;
const MAX_QUEUES: u32 = 65_535;

impl Common {
    fn load(&self, kind: Kind, local_broker: Option<String>) -> Result<Load> {
        ensure!(
            (1..=MAX_CONNECTIONS).contains(&self.connections),
            "--connections: 1 to {MAX_CONNECTIONS}"
        );
        ensure!(
            self.window >= 1 && self.connections * self.window <= MAX_IN_FLIGHT,
            "--window: connections × window from 1 to {MAX_IN_FLIGHT}"
        );
        ensure!(
            (1..=MAX_QUEUES).contains(&self.queues),
            "--queues: 1 to {MAX_QUEUES}"
        );
        ensure!(
            self.rate.is_none_or(|r| r >= 1.0),
            "--rate: at least 1 a second"
        );
        ensure!(
            (0.1..=MAX_SECONDS).contains(&self.duration)
                && (0.0..=MAX_SECONDS).contains(&self.warmup),
            "--duration, --warmup: up to {MAX_SECONDS} seconds"
        );
        let address = self.broker.clone().or(local_broker);
        let broker = resolve(address.as_deref().unwrap_or("127.0.0.1:10911"))?;
        Ok(Load {
            kind,
            broker,
            connections: self.connections,
            window: self.window,
            topic: self.topic.clone(),
            queues: self.queues,
            around: self.around,
            rate: self.rate,
            warmup: Duration::from_secs_f64(self.warmup),
            duration: Duration::from_secs_f64(self.duration),
            broker_pids: self
                .pid
                .or_else(|| {
                    broker
                        .ip()
                        .is_loopback()
                        .then(|| process::listener_of(broker))
                        .flatten()
                })
                .into_iter()
                .collect(),
        })
    }
}

fn resolve(address: &str) -> Result<SocketAddr> {
    address
        .to_socket_addrs()
        .with_context(|| format!("--broker {address}: expected host:port"))?
        .next()
        .with_context(|| format!("no address for {address}"))
}

/// `local_broker` is a broker of the local cluster, if one is running.
pub(crate) fn run(command: &BenchCommand, local_broker: Option<String>) -> Result<()> {
    let (common, kind) = match command {
        BenchCommand::Send { common, body } => (common, Kind::Send { body_size: *body }),
        BenchCommand::Pull { common, count } => (common, Kind::Pull { count: *count }),
        BenchCommand::Compare(args) => return compare::run(args),
        BenchCommand::Check(args) => return cost::check(args),
    };
    let report = load::run(&common.load(kind, local_broker)?)?;
    if common.output == "json" {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    ensure!(
        report.messages > 0,
        "no message went through; first failure: {}",
        report.first_failure.as_deref().unwrap_or("none")
    );
    Ok(())
}

fn print_report(r: &Report) {
    println!(
        "{:>6} connections × {} in flight, {:.1} s: {} messages, {} failures",
        r.connections, r.window, r.seconds, r.messages, r.failures
    );
    println!("{:>14.0} messages/s", r.messages_per_second);
    println!(
        "{:>14.3} ms p50   {:.3} ms p99   {:.3} ms p99.9   {:.3} ms max",
        r.p50_ms, r.p99_ms, r.p999_ms, r.max_ms
    );
    match r.broker_cpu_us_per_message {
        Some(us) => println!("{us:>14.2} µs of broker CPU per message"),
        None => println!(
            "             ? µs of broker CPU per message (its process is not visible from here)"
        ),
    }
    println!(
        "{:>14.2} cores used by this generator{}",
        r.client_cores,
        if r.void {
            "   VOID: the generator was the bottleneck"
        } else {
            ""
        }
    );
    if let Some(failure) = &r.first_failure {
        println!("first failure: {failure}");
    }
}
