//! Reads a RocketCluster from YAML and checks it as an API server would: the CRD's schema and CEL rules first, then what only the operator sees.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use operator_core::api::{self, PullPolicy, RocketCluster};
use operator_core::build::Objects;
use operator_core::validate::{Defaults, ValidatedCluster, validate};
use serde_json::Value;

/// A larger file is not a RocketCluster; etcd would not take it either.
const MAX_FILE: u64 = 1_500_000;
const DEFAULT_NAMESPACE: &str = "default";

/// A checked RocketCluster and what is built from it.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) value: Value,
    pub(crate) cluster: ValidatedCluster,
    pub(crate) objects: Objects,
    /// Keys that the servers do not know.
    pub(crate) warnings: Vec<String>,
}

/// Text of a file, and its problems with the file's name in front.
pub(crate) fn read(path: &Path) -> Result<String> {
    let name = path.display();
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read {name}"))?
        .len();
    if size > MAX_FILE {
        bail!("{name} is too large for a RocketCluster ({size} bytes)");
    }
    std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))
}

/// `old` is what runs now: rules about changes apply between the two.
pub(crate) fn check(path: &Path, text: &str, old: Option<&Value>) -> Result<Manifest> {
    parse(text, old).map_err(|problems| {
        let lines: Vec<String> = problems
            .iter()
            .map(|p| format!("{}: {p}", path.display()))
            .collect();
        anyhow!("{}", lines.join("\n"))
    })
}

/// Every problem that was found, or the manifest.
pub(crate) fn parse(text: &str, old: Option<&Value>) -> Result<Manifest, Vec<String>> {
    let one = |problem: String| vec![problem];
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|e| one(e.to_string()))?;
    let mut found = documents
        .into_iter()
        .filter(|d| d["kind"] == "RocketCluster");
    let Some(mut value) = found.next() else {
        return Err(one(
            "there is no RocketCluster in it (kind: RocketCluster)".to_owned()
        ));
    };
    if found.next().is_some() {
        return Err(one(
            "there is more than one RocketCluster in it; `rocketctl up` starts one at a time"
                .to_owned(),
        ));
    }
    let wanted = format!("{}/{}", api::GROUP, api::VERSION);
    if value["apiVersion"] != wanted.as_str() {
        return Err(one(format!(
            "apiVersion: expected {wanted}, found {}",
            value["apiVersion"]
        )));
    }
    if !value["metadata"]["name"].is_string() {
        return Err(one("metadata.name: missing".to_owned()));
    }
    if value["metadata"]["namespace"].is_null() {
        value["metadata"]["namespace"] = DEFAULT_NAMESPACE.into();
    }

    let schema = schema().ok_or_else(|| {
        one("this program's own definition of RocketCluster cannot be read".to_owned())
    })?;
    let mut problems = Vec::new();
    check_shape(&schema, &value, "", &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    if let Err(errors) = kube_cel::Validator::new().validate(&schema, &value, old) {
        return Err(errors
            .iter()
            .map(|e| prefixed(&e.field_path, &e.message))
            .collect());
    }
    let cluster: RocketCluster =
        serde_json::from_value(value.clone()).map_err(|e| one(e.to_string()))?;
    // No image is ever pulled; the names only have to be valid.
    let defaults = Defaults {
        repository: "local".to_owned(),
        tag: "local".to_owned(),
        pull_policy: PullPolicy::IfNotPresent,
    };
    let cluster = validate(&cluster, &defaults).map_err(|invalid| {
        invalid
            .0
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    })?;
    let mut warnings = Vec::new();
    check_broker_config(&cluster, &mut warnings).map_err(one)?;
    check_name_server_config(&cluster, &mut warnings).map_err(one)?;
    let objects = operator_core::build::build(&cluster);
    Ok(Manifest {
        value,
        cluster,
        objects,
        warnings,
    })
}

/// The broker is part of this program, so what it would refuse at its start is refused here, before anything runs.
fn check_broker_config(
    cluster: &ValidatedCluster,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    use broker::config::{Applied, BrokerConfig, Error, KEYS, Source};
    const PATH: &str = "spec.broker.config";
    let mut config = BrokerConfig::default();
    let source = || Source::Flag(PATH);
    for (key, value) in &cluster.broker.config {
        match config.set(source(), key, value) {
            Ok(Applied::Unknown) => {
                warnings.push(unknown_key(PATH, key, KEYS.iter().map(|k| k.name)))
            }
            Ok(_) => {}
            Err(Error::Value { expected, .. }) => {
                return Err(format!("{PATH}.{key}: expected {expected}, found {value}"));
            }
            Err(e) => return Err(format!("{PATH}: {e}")),
        }
    }
    // An address, so that no name is looked up.
    let checked = config
        .set(source(), "brokerIP1", "127.0.0.1")
        .and_then(|_| config.validate());
    checked.map(drop).map_err(|e| format!("{PATH}: {e}"))
}

fn check_name_server_config(
    cluster: &ValidatedCluster,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    const PATH: &str = "spec.nameServer.config";
    let mut config = namesrv::NamesrvConfig::default();
    for (key, value) in &cluster.name_server.config {
        match config.set(key, value) {
            Ok(true) => {}
            Ok(false) if namesrv::config::WITHOUT_EFFECT.contains(&key.as_str()) => {}
            Ok(false) => warnings.push(unknown_key(
                PATH,
                key,
                namesrv::NamesrvConfig::KEYS.iter().copied(),
            )),
            Err(e) => return Err(format!("{PATH}.{e}")),
        }
    }
    Ok(())
}

fn unknown_key<'a>(path: &str, key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = remoting::properties::nearest(key, known);
    let hint = near
        .map(|n| format!("; did you mean {n}?"))
        .unwrap_or_default();
    format!("{path}: unknown key {key} is ignored{hint}")
}

fn schema() -> Option<Value> {
    let definition = api::crds()
        .into_iter()
        .find(|d| d.spec.names.kind == "RocketCluster")?;
    let version = definition
        .spec
        .versions
        .into_iter()
        .find(|v| v.name == api::VERSION)?;
    serde_json::to_value(version.schema?.open_api_v3_schema?).ok()
}

fn prefixed(path: &str, message: &str) -> String {
    let path = path.trim_start_matches('.');
    if path.is_empty() {
        message.to_owned()
    } else {
        format!("{path}: {message}")
    }
}

/// The structural part of a schema, as far as a RocketCluster uses it: types, unknown and missing fields, enums, bounds.
fn check_shape(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let wanted = schema["type"].as_str();
    let fits = match wanted {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    let mut complain = |text: String| problems.push(prefixed(path, &text));
    if !fits {
        let article = if matches!(wanted, Some("object" | "array" | "integer")) {
            "an"
        } else {
            "a"
        };
        return complain(format!(
            "expected {article} {}, found {value}",
            wanted.unwrap_or_default()
        ));
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|a| !a.contains(value)) {
        let list: Vec<String> = allowed
            .iter()
            .map(|a| a.as_str().map_or_else(|| a.to_string(), str::to_owned))
            .collect();
        return complain(format!(
            "expected one of {}, found {value}",
            list.join(", ")
        ));
    }
    if let Some(number) = value.as_f64() {
        if schema["minimum"].as_f64().is_some_and(|m| number < m) {
            complain(format!(
                "must be at least {}, found {value}",
                schema["minimum"]
            ));
        }
        if schema["maximum"].as_f64().is_some_and(|m| number > m) {
            complain(format!(
                "must be at most {}, found {value}",
                schema["maximum"]
            ));
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        if schema["minLength"].as_u64().is_some_and(|m| length < m) {
            complain("must not be empty".to_owned());
        }
        if schema["maxLength"].as_u64().is_some_and(|m| length > m) {
            complain(format!("may have at most {} letters", schema["maxLength"]));
        }
        let pattern = schema["pattern"].as_str();
        if pattern
            .and_then(|p| regex::Regex::new(p).ok())
            .is_some_and(|r| !r.is_match(text))
        {
            complain(format!(
                "must match {}, found {value}",
                pattern.unwrap_or_default()
            ));
        }
    }
    if let Some(fields) = value.as_object() {
        let known = schema["properties"].as_object();
        for required in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            if fields.get(required).is_none_or(Value::is_null) {
                complain(format!("{required} is missing"));
            }
        }
        let open = known.is_none() || schema["x-kubernetes-preserve-unknown-fields"] == true;
        for (name, field) in fields {
            let inner = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            // These belong to Kubernetes, not to the schema of a kind.
            let common = path.is_empty()
                && matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status");
            if common
                || open
                    && known.is_none_or(|k| !k.contains_key(name))
                    && !schema["additionalProperties"].is_object()
            {
                continue;
            }
            if let Some(schema) = known.and_then(|k| k.get(name)) {
                check_shape(schema, field, &inner, problems);
            } else if schema["additionalProperties"].is_object() {
                check_shape(&schema["additionalProperties"], field, &inner, problems);
            } else {
                let near = remoting::properties::nearest(
                    name,
                    known.into_iter().flat_map(|k| k.keys().map(String::as_str)),
                );
                let hint = near
                    .map(|n| format!("; did you mean {n}?"))
                    .unwrap_or_default();
                problems.push(prefixed(path, &format!("unknown field {name}{hint}")));
            }
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check_shape(
            &schema["items"],
            item,
            &format!("{path}[{index}]"),
            problems,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(spec: &str) -> String {
        format!(
            "apiVersion: rocketcluster.io/v1alpha1\nkind: RocketCluster\nmetadata: {{name: demo}}\nspec: {spec}\n"
        )
    }

    fn problem(text: &str) -> String {
        parse(text, None).map_or_else(|problems| problems.join(" | "), |_| "none".to_owned())
    }

    #[test]
    fn a_small_cluster_gets_its_objects() {
        let manifest = parse(&cluster("{mode: single-master}"), None).unwrap();
        assert_eq!(
            (
                manifest.cluster.name.as_str(),
                manifest.cluster.namespace.as_str()
            ),
            ("demo", "default")
        );
        assert_eq!(manifest.objects.stateful_sets.len(), 2);
        assert!(manifest.objects.config_of("demo-broker-0-0").is_some());
    }

    #[test]
    fn every_mistake_is_a_sentence_with_its_place() {
        assert!(problem("kind: Pod").contains("there is no RocketCluster"));
        assert!(problem("a: [1").contains("line 1"), "{}", problem("a: [1"));
        let version = problem(&cluster("{mode: single-master}").replace("v1alpha1", "v9"));
        assert!(
            version.contains("apiVersion: expected rocketcluster.io/v1alpha1"),
            "{version}"
        );
        let mode = problem(&cluster("{mode: single}"));
        assert!(
            mode.starts_with("spec.mode: expected one of single-master"),
            "{mode}"
        );
        assert_eq!(problem(&cluster("{}")), "spec: mode is missing");
        let unknown = problem(&cluster("{mode: single-master, nameserver: {replicas: 1}}"));
        assert_eq!(
            unknown,
            "spec: unknown field nameserver; did you mean nameServer?"
        );
        let kind = problem(&cluster("{mode: single-master, broker: {groups: many}}"));
        assert_eq!(
            kind,
            "spec.broker.groups: expected an integer, found \"many\""
        );
        let rule = problem(&cluster("{mode: single-master, broker: {groups: 2}}"));
        assert!(
            rule.contains("single-master has one broker group"),
            "{rule}"
        );
        let owned = problem(&cluster(
            "{mode: single-master, broker: {config: {brokerName: x}}}",
        ));
        assert!(owned.contains("spec.broker.config.brokerName"), "{owned}");
    }

    #[test]
    fn the_servers_own_checks_come_first_too() {
        let wrong = problem(&cluster(
            "{mode: single-master, broker: {config: {flushDiskType: SYNC_FLSH}}}",
        ));
        assert!(wrong.starts_with("spec.broker.config.flushDiskType: expected ASYNC_FLUSH or SYNC_FLUSH, found SYNC_FLSH"), "{wrong}");
        let wrong = problem(&cluster(
            "{mode: single-master, nameServer: {config: {orderMessageEnable: perhaps}}}",
        ));
        assert_eq!(
            wrong,
            "spec.nameServer.config.orderMessageEnable: expected true or false, found `perhaps`"
        );
        let odd = parse(
            &cluster("{mode: single-master, broker: {config: {fileReservedTme: 3}}}"),
            None,
        )
        .unwrap();
        assert_eq!(
            odd.warnings,
            vec![
                "spec.broker.config: unknown key fileReservedTme is ignored; did you mean fileReservedTime?"
            ]
        );
    }

    #[test]
    fn rules_about_changes_apply_between_two_files() {
        let old = parse(&cluster("{mode: multi-master, broker: {groups: 3}}"), None)
            .unwrap()
            .value;
        let fewer = parse(
            &cluster("{mode: multi-master, broker: {groups: 2}}"),
            Some(&old),
        )
        .unwrap_err()
        .join("");
        assert!(
            fewer.contains("broker groups cannot be removed yet"),
            "{fewer}"
        );
        assert!(
            parse(
                &cluster("{mode: multi-master, broker: {groups: 4}}"),
                Some(&old)
            )
            .is_ok()
        );
    }
}
