//! The process: log, probes, signals, election, controllers.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use kube::{Api, Client};
use operator_core::api::RocketCluster;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, RunArgs};
use crate::context::Context;
use crate::controller;
use crate::inspect::Wire;
use crate::lease::Elector;
use crate::metrics::Metrics;

/// Serves until told to stop.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    match args.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.with_ansi(std::io::stdout().is_terminal()).init(),
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?
        .block_on(serve(args))
}

async fn serve(args: RunArgs) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = shutdown.clone();
    let signals = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stop.cancelled() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });

    let metrics = Arc::new(Metrics::default());
    let health = Arc::new(Health {
        metrics: metrics.clone(),
        started: AtomicBool::new(false),
    });
    let _http = remoting::http::serve(args.http_address, health.clone())
        .with_context(|| format!("cannot listen on {}", args.http_address))?;

    let client = Client::try_default()
        .await
        .context("no way to the Kubernetes API")?;
    check(&client, &args).await?;
    health.started.store(true, Ordering::Relaxed);

    let context = Arc::new(Context::new(
        client.clone(),
        args.defaults(),
        Arc::new(Wire::default()),
        metrics.clone(),
        Some(args.pod_name.clone()),
    ));
    let namespaces = args.namespaces();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        ?namespaces,
        images = args.image_repository,
        tag = args.image_tag,
        "serving RocketClusters"
    );
    let work = |term: CancellationToken| async {
        metrics.leads(true);
        controller::run(context, &namespaces, args.concurrency, term).await;
        metrics.leads(false);
    };
    let lost = if args.leader_election {
        Elector::new(
            client,
            &args.pod_namespace,
            &args.lease_name,
            &args.pod_name,
        )
        .lead(shutdown.clone(), work)
        .await
    } else {
        work(shutdown.child_token()).await;
        false
    };
    shutdown.cancel();
    signals.await.context("signal handler")?;
    anyhow::ensure!(!lost, "another replica may lead now");
    Ok(())
}

/// Two mistakes of an installation, told at once instead of by watches that fail for ever.
async fn check(client: &Client, args: &RunArgs) -> anyhow::Result<()> {
    let one = kube::api::ListParams::default().limit(1);
    let api: Api<kube::core::PartialObjectMeta<RocketCluster>> = match args.namespaces().first() {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    api.list(&one)
        .await
        .map(drop)
        .context("cannot list RocketClusters: is the definition installed (kubectl apply --server-side -f crds/), and may this account read it?")
}

struct Health {
    metrics: Arc<Metrics>,
    started: AtomicBool,
}

impl remoting::http::Health for Health {
    fn live(&self) -> Result<(), String> {
        Ok(())
    }

    // A replica that waits for the Lease is as ready as it can be.
    fn ready(&self) -> Result<(), String> {
        self.started()
    }

    fn started(&self) -> Result<(), String> {
        if self.started.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("not connected to the Kubernetes API yet".to_owned())
        }
    }

    fn metrics(&self) -> String {
        self.metrics.text()
    }
}
