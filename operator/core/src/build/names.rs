//! The name of every object, from the cluster's name.

/// Client Service, StatefulSet, ConfigMap and PodDisruptionBudget of the name servers.
pub fn name_server(cluster: &str) -> String {
    format!("{cluster}-namesrv")
}

/// Headless Service of the name servers.
pub fn name_server_nodes(cluster: &str) -> String {
    format!("{cluster}-namesrv-nodes")
}

/// A name server.
pub fn name_server_pod(cluster: &str, ordinal: i32) -> String {
    format!("{cluster}-namesrv-{ordinal}")
}

/// StatefulSet, headless Service, ConfigMap and PodDisruptionBudget of a broker group.
pub fn broker_group(cluster: &str, group: i32) -> String {
    format!("{cluster}-broker-{group}")
}

/// A broker and its own Service.
pub fn broker_pod(cluster: &str, group: i32, ordinal: i32) -> String {
    format!("{cluster}-broker-{group}-{ordinal}")
}

/// The service account of all pods.
pub fn service_account(cluster: &str) -> String {
    format!("{cluster}-rocketmq")
}

/// `brokerName` of a group.
pub fn broker_name(prefix: &str, group: i32) -> String {
    format!("{prefix}-{group}")
}

/// DNS name of a Service within the Kubernetes cluster.
pub fn service_host(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc")
}
