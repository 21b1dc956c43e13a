//! Settings of the operator itself; the chart gives them as environment variables.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use operator_core::api::PullPolicy;
use operator_core::validate::Defaults;

/// `operator run`
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Where the images of brokers and name servers come from: `REPOSITORY/mqbroker:TAG`
    #[arg(
        long,
        env = "ROCKETCLUSTER_IMAGE_REPOSITORY",
        default_value = "rocketcluster"
    )]
    pub image_repository: String,
    /// Tag of those images
    #[arg(long, env = "ROCKETCLUSTER_IMAGE_TAG", default_value = env!("CARGO_PKG_VERSION"))]
    pub image_tag: String,
    /// When nodes pull them
    #[arg(
        long,
        env = "ROCKETCLUSTER_IMAGE_PULL_POLICY",
        value_enum,
        default_value = "IfNotPresent"
    )]
    pub image_pull_policy: Pull,
    /// Namespaces to serve, separated by commas; empty: all
    #[arg(
        long,
        env = "ROCKETCLUSTER_WATCH_NAMESPACES",
        default_value = "",
        hide_default_value = true
    )]
    pub watch_namespaces: String,
    /// Elect a leader among the replicas of the operator
    #[arg(long, env = "ROCKETCLUSTER_LEADER_ELECTION", default_value_t = false, action = clap::ArgAction::Set, default_missing_value = "true", num_args = 0..=1)]
    pub leader_election: bool,
    /// Name of the Lease that they elect by
    #[arg(
        long,
        env = "ROCKETCLUSTER_LEASE_NAME",
        default_value = "rocketcluster-operator"
    )]
    pub lease_name: String,
    /// Name of this replica
    #[arg(long, env = "POD_NAME", default_value = "operator")]
    pub pod_name: String,
    /// Namespace of the Lease
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub pod_namespace: String,
    /// Form of the log
    #[arg(
        long,
        env = "ROCKETCLUSTER_LOG_FORMAT",
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// Address of /livez, /readyz, /startupz and /metrics
    #[arg(
        long,
        env = "ROCKETCLUSTER_HTTP_ADDRESS",
        default_value = "0.0.0.0:8080"
    )]
    pub http_address: SocketAddr,
    /// RocketClusters that are worked on at the same time
    #[arg(long, env = "ROCKETCLUSTER_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Json,
    Text,
}

/// As a pod spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    #[value(name = "Always")]
    Always,
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    #[value(name = "Never")]
    Never,
}

impl RunArgs {
    /// What a RocketCluster gets when it names no image.
    pub fn defaults(&self) -> Defaults {
        Defaults {
            repository: self.image_repository.clone(),
            tag: self.image_tag.clone(),
            pull_policy: match self.image_pull_policy {
                Pull::Always => PullPolicy::Always,
                Pull::IfNotPresent => PullPolicy::IfNotPresent,
                Pull::Never => PullPolicy::Never,
            },
        }
    }

    /// Namespaces to serve; empty: all.
    pub fn namespaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .watch_namespaces
            .split(',')
            .map(str::trim)
            .filter(|n| !n.is_empty())
            .map(str::to_owned)
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Wrapped {
        #[command(flatten)]
        args: RunArgs,
    }

    fn parse(arguments: &[&str]) -> RunArgs {
        let all = ["operator"].iter().chain(arguments);
        Wrapped::try_parse_from(all).unwrap().args
    }

    #[test]
    fn flags() {
        let args = parse(&[]);
        assert!(args.namespaces().is_empty() && !args.leader_election);
        assert_eq!(args.defaults().pull_policy, PullPolicy::IfNotPresent);
        let args = parse(&[
            "--watch-namespaces= b,a,,b ",
            "--leader-election=true",
            "--image-repository=localhost/rocketcluster",
            "--image-tag=1",
            "--image-pull-policy=Never",
            "--log-format=json",
        ]);
        assert_eq!(args.namespaces(), ["a", "b"]);
        assert!(args.leader_election);
        assert_eq!(
            args.defaults(),
            Defaults {
                repository: "localhost/rocketcluster".to_owned(),
                tag: "1".to_owned(),
                pull_policy: PullPolicy::Never
            }
        );
        // As the chart writes it when nothing is listed.
        assert!(parse(&["--watch-namespaces="]).namespaces().is_empty());
        assert!(Wrapped::try_parse_from(["operator", "--concurrency=0"]).is_err());
    }
}
