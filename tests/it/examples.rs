//! What the operator renders is what the servers read: neither crate sees the other, so only this keeps them from drifting apart.

use std::fs;
use std::path::{Path, PathBuf};

use broker::config::BrokerConfig;
use operator_core::api::RocketCluster;
use operator_core::validate::{Defaults, validate};

fn example(name: &str) -> RocketCluster {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    let mut cluster: RocketCluster =
        serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    cluster.metadata.namespace = Some("shop".to_owned());
    cluster
}

fn rendered(name: &str) -> Vec<(String, String)> {
    let valid = validate(&example(name), &Defaults::default()).unwrap();
    let objects = operator_core::build::build(&valid);
    objects
        .config_maps
        .into_iter()
        .flat_map(|m| m.data.unwrap_or_default())
        .collect()
}

#[test]
fn every_example_renders_files_that_the_servers_read_without_a_warning() {
    for (name, brokers) in [
        ("single-master.yaml", 1),
        ("multi-master.yaml", 2),
        ("2m-2s-async.yaml", 4),
        ("2m-2s-sync.yaml", 4),
        ("dledger.yaml", 3),
    ] {
        let files = rendered(name);
        let mut seen = 0;
        for (file, text) in &files {
            if !file.contains("-broker-") {
                continue;
            }
            seen += 1;
            let mut config = BrokerConfig::default();
            let warnings = config.apply_file(Path::new(file), text.as_bytes()).unwrap();
            assert!(warnings.is_empty(), "{name} {file}: {warnings:?}");
            let values = config.values();
            let value = |key: &str| values[key].as_str();
            let pod = file.strip_suffix(".conf").unwrap();
            assert_eq!(value("brokerClusterName"), "demo");
            assert_eq!(value("advertisedHost"), format!("{pod}.shop.svc"));
            assert_eq!(value("namesrvAddr"), "demo-namesrv-nodes.shop.svc:9876");
            assert_eq!(value("mappedFileSizeCommitLog"), "67108864");
            config.validate().unwrap();
        }
        assert_eq!(seen, brokers, "{name}: {files:?}");
    }
}
