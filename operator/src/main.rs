use std::process::ExitCode;

use clap::{Parser, Subcommand};
use operator::config::RunArgs;

/// The RocketCluster operator.
#[derive(Parser)]
#[command(name = "operator", version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the RocketClusters of a Kubernetes until told to stop
    Run(Box<RunArgs>),
    /// Prints the custom resource definition
    Crd,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => operator::run::run(*args),
        Command::Crd => operator_core::api::crds_yaml()
            .map(|text| print!("{text}"))
            .map_err(anyhow::Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
