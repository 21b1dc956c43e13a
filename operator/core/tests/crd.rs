//! The definition in `crds/` is the one that the types make, and Kubernetes can take it.

use operator_core::api;

#[test]
fn the_committed_definitions_are_the_generated_one() {
    let generated = api::crds_yaml().unwrap();
    for file in ["crds", "charts/rocketcluster-operator/crds"] {
        let path = format!(
            "{}/../../{file}/rocketclusters.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        let committed = std::fs::read_to_string(&path).unwrap();
        assert!(
            committed == generated,
            "{file}/rocketclusters.yaml is old: cargo run -p operator-core --bin crdgen | tee crds/rocketclusters.yaml > charts/rocketcluster-operator/crds/rocketclusters.yaml"
        );
    }
}

#[test]
fn a_client_side_apply_can_hold_it() {
    for crd in api::crds() {
        let size = serde_json::to_vec(&crd).unwrap().len();
        assert!(size < api::MAX_CRD_BYTES / 2, "{size} bytes");
    }
}

#[test]
fn every_string_and_list_of_ours_is_bounded() {
    fn walk(path: &str, schema: &serde_json::Value, missing: &mut Vec<String>) {
        let kind = schema["type"].as_str();
        if kind == Some("string") && schema["maxLength"].is_null() && schema["enum"].is_null() {
            missing.push(path.to_owned());
        }
        if kind == Some("array") && schema["maxItems"].is_null() {
            missing.push(path.to_owned());
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            // What Kubernetes itself defines is bounded by the size of an object only, and no rule of ours looks into it.
            let embedded = [
                "affinity",
                "tolerations",
                "topologySpreadConstraints",
                "resources",
                "imagePullSecrets",
                "env",
            ];
            let sources = ["configMap", "secret", "emptyDir", "persistentVolumeClaim"];
            if !embedded.contains(&name.as_str()) && !sources.contains(&name.as_str()) {
                walk(&format!("{path}.{name}"), property, missing);
            }
        }
        walk_in(path, &schema["items"], missing);
    }
    fn walk_in(path: &str, items: &serde_json::Value, missing: &mut Vec<String>) {
        if items.is_object() {
            walk(&format!("{path}[]"), items, missing);
        }
    }
    for crd in api::crds() {
        let crd = serde_json::to_value(&crd).unwrap();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut missing = Vec::new();
        walk("spec", spec, &mut missing);
        assert!(missing.is_empty(), "no bound: {missing:?}");
    }
}
