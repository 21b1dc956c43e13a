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

/// DNS name of a broker's pod, for the others of its group: it is there as long as the pod is, ready or not.
pub fn broker_pod_host(cluster: &str, namespace: &str, group: i32, ordinal: i32) -> String {
    format!(
        "{}.{}",
        broker_pod(cluster, group, ordinal),
        service_host(&broker_group(cluster, group), namespace)
    )
}

/// `dLegerSelfId` of a broker.
pub fn member_id(ordinal: i32) -> String {
    format!("n{ordinal}")
}

/// The ordinal of a `dLegerSelfId`.
pub fn member_ordinal(id: &str) -> Option<i32> {
    id.strip_prefix('n')?.parse().ok()
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
