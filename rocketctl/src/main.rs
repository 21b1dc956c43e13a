//! A stand-in until the command line is here: only the load generator.

#[cfg(target_os = "linux")] // epoll and /proc
mod bench;

#[cfg(target_os = "linux")]
#[derive(clap::Parser)]
struct Cli {
    #[command(subcommand)]
    command: bench::BenchCommand,
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    bench::run(&<Cli as clap::Parser>::parse().command)
}

#[cfg(not(target_os = "linux"))]
fn main() {}
