//! The docker-compose example against the product: images, ports, volumes and addresses of the one file, and the property files it mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use broker::config::{BrokerConfig, BrokerRole};
use namesrv::NamesrvConfig;
use remoting::properties::environment_name;
use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn folder() -> PathBuf {
    root().join("examples/compose/2m-2s-sync")
}

fn compose() -> Value {
    serde_saphyr::from_str(&fs::read_to_string(folder().join("docker-compose.yml")).unwrap())
        .unwrap()
}

/// A service with what its anchor gives it, as compose reads `<<`.
fn services(compose: &Value) -> BTreeMap<String, BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for (name, service) in compose["services"].as_object().unwrap() {
        let mut fields: BTreeMap<String, Value> = BTreeMap::new();
        if let Some(anchor) = service.get("<<").and_then(Value::as_object) {
            fields.extend(anchor.clone());
        }
        fields.extend(service.as_object().unwrap().clone());
        fields.remove("<<");
        found.insert(name.clone(), fields);
    }
    found
}

fn strings(value: Option<&Value>) -> Vec<&str> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.map(|v| v.as_str().unwrap()).collect()
}

/// `${NAME:-default}` becomes the default, as in a shell that sets none.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (variable, after) = after.split_once('}').unwrap();
        out.push_str(before);
        out.push_str(variable.split_once(":-").unwrap().1);
        rest = after;
    }
    out + rest
}

/// File here → path in the container, and volume → path, of a service.
fn mounts(service: &BTreeMap<String, Value>) -> (BTreeMap<String, PathBuf>, Vec<(String, String)>) {
    let (mut files, mut volumes) = (BTreeMap::new(), Vec::new());
    for mount in strings(service.get("volumes")) {
        let parts: Vec<&str> = mount.split(':').collect();
        match parts.as_slice() {
            [from, to, "ro"] if from.starts_with("./") => {
                files.insert((*to).to_owned(), folder().join(from));
            }
            [volume, to] => volumes.push(((*volume).to_owned(), (*to).to_owned())),
            _ => panic!("{mount}"),
        }
    }
    (files, volumes)
}

/// The file that a service's command names.
fn config_file(service: &BTreeMap<String, Value>) -> PathBuf {
    let command = strings(service.get("command"));
    let ["-c", path] = command.as_slice() else {
        panic!("{command:?}")
    };
    mounts(service).0.remove(*path).unwrap()
}

fn image(service: &BTreeMap<String, Value>) -> String {
    plain(service["image"].as_str().unwrap())
}

/// Published ports: here → in the container.
fn ports(service: &BTreeMap<String, Value>) -> BTreeMap<u16, u16> {
    let pair = |text: &str| {
        let (here, there) = text.split_once(':').unwrap();
        (here.parse().unwrap(), there.parse().unwrap())
    };
    strings(service.get("ports"))
        .into_iter()
        .map(pair)
        .collect()
}

fn broker_config(path: &Path) -> BrokerConfig {
    let mut config = BrokerConfig::default();
    let warnings = config.apply_file(path, &fs::read(path).unwrap()).unwrap();
    assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
    config.clone().validate().unwrap();
    config
}

#[test]
fn every_image_is_a_target_of_the_dockerfile_with_the_folder_that_its_volume_needs() {
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    for (name, service) in services(&compose()) {
        let image = image(&service);
        let program = image
            .strip_prefix("rocketcluster/")
            .and_then(|i| i.strip_suffix(":dev"))
            .unwrap_or_else(|| panic!("{name}: {image}"));
        let stage = dockerfile
            .split("\n\n")
            .find(|stage| {
                stage
                    .lines()
                    .any(|l| l == format!("FROM scratch AS {program}"))
            })
            .unwrap_or_else(|| panic!("the Dockerfile has no target {program}"));
        for (_, path) in mounts(&service).1 {
            let owned = format!("--chown=65532:65532 /out{path} {path}",);
            assert!(
                stage.contains(&owned) && stage.contains("USER 65532:65532"),
                "{name}: a volume at {path} would belong to root: {stage}"
            );
        }
    }
}

#[test]
fn every_volume_network_and_dependency_is_declared_and_every_address_is_unique() {
    let compose = compose();
    let declared: BTreeSet<&String> = compose["volumes"].as_object().unwrap().keys().collect();
    let subnet = compose["networks"]["rocketmq"]["ipam"]["config"][0]["subnet"]
        .as_str()
        .unwrap()
        .strip_suffix("0/24")
        .unwrap()
        .to_owned();
    let services = services(&compose);
    let (mut used, mut addresses, mut published) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (name, service) in &services {
        for (volume, _) in mounts(service).1 {
            assert!(used.insert(volume.clone()), "{volume} is used twice");
        }
        for needed in strings(service.get("depends_on")) {
            assert!(services.contains_key(needed), "{name} needs {needed}");
        }
        for here in ports(service).into_keys() {
            assert!(published.insert(here), "{here} is published twice");
        }
        if let Some(address) = service["networks"]["rocketmq"]["ipv4_address"].as_str() {
            assert!(address.starts_with(&subnet), "{name}: {address}");
            assert!(addresses.insert(address), "{address} is given twice");
        }
    }
    assert_eq!(used.iter().collect::<BTreeSet<_>>(), declared);
    assert_eq!(addresses.len(), services.len() - 1, "all but the tools");
    let text = fs::read_to_string(folder().join("docker-compose.yml")).unwrap();
    let told: Vec<&str> = ["namesrv-0", "namesrv-1"]
        .iter()
        .map(|n| {
            services[*n]["networks"]["rocketmq"]["ipv4_address"]
                .as_str()
                .unwrap()
        })
        .collect();
    assert!(
        text.contains(&format!("{}:9876;{}:9876", told[0], told[1])),
        "the comment tells other name servers than {told:?}"
    );
}

#[test]
fn its_property_files_make_two_sync_masters_with_a_slave_each() {
    let services = services(&compose());
    let mut groups: BTreeMap<String, Vec<(i64, BrokerRole)>> = BTreeMap::new();
    for (name, service) in services
        .iter()
        .filter(|(_, s)| image(s).contains("/mqbroker:"))
    {
        let config = broker_config(&config_file(service));
        let values = config.values();
        let port = |key: &str| -> u16 { values[key].parse().unwrap() };
        assert_eq!(
            values["advertisedHost"], *name,
            "others find it by its name"
        );
        assert_eq!(values["namesrvAddr"], "namesrv-0:9876;namesrv-1:9876");
        assert_eq!(values["storePathRootDir"], "/data/store");
        let wanted = [
            port("listenPort") - 2,
            port("listenPort"),
            port("haListenPort"),
        ];
        assert_eq!(
            ports(service),
            wanted.map(|p| (p, p)).into(),
            "{name}: clients are told these ports, so they are published as they are"
        );
        // The address for clients elsewhere goes by an environment variable that the broker knows; empty, it counts as not given.
        let variables = service["environment"].as_object().unwrap();
        assert_eq!(
            variables.keys().collect::<Vec<_>>(),
            [&environment_name("brokerIP1")]
        );
        let mut with_environment = config.clone();
        with_environment
            .apply_environment(|name| Some(plain(variables.get(name)?.as_str()?)))
            .unwrap();
        assert_eq!(with_environment.values(), values);
        groups
            .entry(values["brokerName"].clone())
            .or_default()
            .push((config.broker_id, config.broker_role));
    }
    assert_eq!(groups.keys().collect::<Vec<_>>(), ["broker-a", "broker-b"]);
    for (name, mut members) in groups {
        members.sort_by_key(|(id, _)| *id);
        assert_eq!(
            members,
            [(0, BrokerRole::SyncMaster), (1, BrokerRole::Slave)],
            "{name}"
        );
    }
}

#[test]
fn its_name_servers_know_every_key_and_are_published() {
    let services = services(&compose());
    let mut seen = 0;
    for (name, service) in services
        .iter()
        .filter(|(_, s)| image(s).contains("/mqnamesrv:"))
    {
        seen += 1;
        let mut config = NamesrvConfig::default();
        let text = fs::read(config_file(service)).unwrap();
        for property in remoting::properties::Properties::parse(&text)
            .unwrap()
            .iter()
        {
            assert!(
                config.set(&property.key, &property.value).unwrap(),
                "{name}: unknown key {}",
                property.key
            );
        }
        assert_eq!(
            ports(service).into_values().collect::<Vec<_>>(),
            [config.listen_port],
            "{name}"
        );
    }
    assert_eq!(seen, 2);
}
