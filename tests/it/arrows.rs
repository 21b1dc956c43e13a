//! Which member may use which: Cargo refuses cycles, not every unwanted edge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every member and the members it may use. `store` and `operator-core` stand alone: no socket in the
/// one, no Kubernetes client in the other.
const ARROWS: &[(&str, &[&str])] = &[
    ("remoting", &[]),
    ("store", &[]),
    ("operator-core", &[]),
    ("fault-proxy", &[]),
    ("namesrv", &["remoting"]),
    ("broker", &["remoting", "store"]),
    ("operator", &["operator-core", "remoting"]),
    (
        "rocketctl",
        &["operator-core", "remoting", "broker", "namesrv"],
    ),
    (
        "tests",
        &[
            "remoting",
            "store",
            "operator-core",
            "namesrv",
            "broker",
            "operator",
            "rocketctl",
        ],
    ),
];

/// Crates that a member must not name, with the reason.
const KEPT_OUT: &[(&str, &str, &str)] = &[
    (
        "store",
        "tokio",
        "the store opens no socket and runs no task",
    ),
    ("store", "hyper", "the store opens no socket"),
    (
        "operator-core",
        "tokio",
        "building objects needs no runtime",
    ),
    (
        "broker",
        "kube",
        "the data plane does not pay for Kubernetes",
    ),
    (
        "namesrv",
        "kube",
        "the data plane does not pay for Kubernetes",
    ),
    (
        "remoting",
        "kube",
        "the data plane does not pay for Kubernetes",
    ),
];

/// Name and dependencies of a manifest; those for tests alone are left out.
fn manifest(path: &Path) -> (String, BTreeSet<String>) {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut name, mut uses, mut section) = (String::new(), BTreeSet::new(), String::new());
    for line in text
        .lines()
        .map(|line| line.split('#').next().unwrap().trim())
    {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(['[', ']']).to_owned();
            // `[dependencies.name]` is a dependency as well.
            if let Some((kind, dependency)) = section.rsplit_once('.')
                && kind.ends_with("dependencies")
                && kind != "dev-dependencies"
            {
                uses.insert(dependency.to_owned());
            }
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key.trim().split('.').next().unwrap();
            if section == "package" && key == "name" {
                name = value.trim().trim_matches('"').to_owned();
            } else if section.ends_with("dependencies") && section != "dev-dependencies" {
                uses.insert(key.to_owned());
            }
        }
    }
    (name, uses)
}

/// The derive of custom resources comes from the `kube` crate; its client must not come with it.
#[test]
fn building_objects_needs_no_client() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("operator/core/Cargo.toml")).unwrap();
    let kube = text.lines().find(|line| line.starts_with("kube ")).unwrap();
    assert!(kube.contains("default-features = false"), "{kube}");
    for feature in ["client", "runtime", "workspace"] {
        assert!(!kube.contains(feature), "{kube}");
    }
}

#[test]
fn members_use_only_what_they_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let workspace = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members = workspace
        .lines()
        .find_map(|line| line.strip_prefix("members = ["))
        .unwrap();
    let members: BTreeMap<String, BTreeSet<String>> = members
        .trim_end_matches(']')
        .split(',')
        .map(|member| {
            manifest(
                &root
                    .join(member.trim().trim_matches('"'))
                    .join("Cargo.toml"),
            )
        })
        .collect();
    let known: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    assert_eq!(
        members.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        known.keys().copied().collect(),
        "every member has its line in ARROWS"
    );
    for (member, uses) in &members {
        for used in uses.iter().filter(|used| known.contains_key(used.as_str())) {
            assert!(
                known[member.as_str()].contains(&used.as_str()),
                "{member} must not use {used}"
            );
        }
        for (who, what, why) in KEPT_OUT {
            assert!(
                member != who || !uses.contains(*what),
                "{who} must not use {what}: {why}"
            );
        }
    }
}
