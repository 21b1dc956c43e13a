//! Figures for `/metrics`.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use remoting::protocol::request_code;

use crate::route_info::Sizes;

/// Bounded: codes without a name share one label.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Default)]
pub(crate) struct Metrics {
    requests: Family<Code, Counter<u64, AtomicU64>>,
}

impl Metrics {
    pub(crate) fn count(&self, code: i32) {
        self.requests
            .get_or_create(&Code {
                code: request_code::name(code),
            })
            .inc();
    }

    pub(crate) fn text(&self, sizes: Sizes, config_hash: &str) -> String {
        let mut registry = Registry::with_prefix("rocketmq_namesrv");
        registry.register(
            "requests",
            "Requests received, by code",
            self.requests.clone(),
        );
        let figures = [
            ("brokers", "Registered brokers (addresses)", sizes.brokers),
            (
                "broker_names",
                "Registered broker names",
                sizes.broker_names,
            ),
            ("topics", "Topics with at least one queue", sizes.topics),
        ];
        for (name, help, value) in figures {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        }
        let hash = vec![("hash", config_hash.to_owned())];
        registry.register(
            "config",
            "Hash of the file the process started with",
            Info::new(hash),
        );
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &registry);
        out
    }
}
