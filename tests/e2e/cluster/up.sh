#!/bin/bash
# Start what is not running: bridge, etcd, control plane, CoreDNS, $NODES nodes; wait until all is ready.
set -e
. "$(dirname "$0")/env.sh"
mkdir -p "$STATE"/{log,pid,images}; mkdir -p -m 700 "$STATE/etcd"
"$here/certs.sh"
P=$STATE/pki
node_ready() { kubectl get --raw /api/v1/nodes/node$1/proxy/healthz && kubectl wait --for=condition=Ready --timeout=5s node/node$1; }
dns_ready() { exec 3<>/dev/tcp/$API/8181 && printf "GET /ready HTTP/1.0\r\n\r\n" >&3 && grep -q "200 OK" <&3; }
sysctl -qw net.ipv4.ip_forward=1 fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288
[ ! -e /proc/sys/net/bridge ] || sysctl -qw net.bridge.bridge-nf-call-iptables=0
ip link show $BR >/dev/null 2>&1 || { ip link add $BR type bridge; ip addr add $API/24 dev $BR; ip link set $BR up; }
ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -Hn)"
alive etcd || start etcd "$BIN/etcd" --name e --data-dir "$STATE/etcd" --listen-client-urls http://127.0.0.1:12379 \
  --advertise-client-urls http://127.0.0.1:12379 --listen-peer-urls http://127.0.0.1:12380 \
  --initial-advertise-peer-urls http://127.0.0.1:12380 --initial-cluster e=http://127.0.0.1:12380 \
  --unsafe-no-fsync --log-level warn
alive kube-apiserver || start kube-apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:12379 \
  --bind-address=$API --advertise-address=$API --secure-port=6443 --service-cluster-ip-range=$SERVICES.0.0/16 \
  --client-ca-file=$P/ca.crt --tls-cert-file=$P/apiserver.crt --tls-private-key-file=$P/apiserver.key \
  --kubelet-client-certificate=$P/kubelet-client.crt --kubelet-client-key=$P/kubelet-client.key \
  --kubelet-certificate-authority=$P/ca.crt --kubelet-preferred-address-types=InternalIP \
  --requestheader-client-ca-file=$P/front-ca.crt --requestheader-allowed-names=front-proxy-client \
  --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
  --requestheader-extra-headers-prefix=X-Remote-Extra- --proxy-client-cert-file=$P/front-proxy-client.crt \
  --proxy-client-key-file=$P/front-proxy-client.key --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --service-account-key-file=$P/sa.pub --service-account-signing-key-file=$P/sa.key \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --enable-aggregator-routing=true \
  --allow-privileged=true --default-not-ready-toleration-seconds=${EVICT:-30} \
  --default-unreachable-toleration-seconds=${EVICT:-30} --v=${V:-1}
until_ok 60 kubectl get --raw /readyz
alive kube-controller-manager || start kube-controller-manager "$BIN/kube-controller-manager" \
  --kubeconfig=$P/controller-manager.conf --authentication-kubeconfig=$P/controller-manager.conf \
  --authorization-kubeconfig=$P/controller-manager.conf --use-service-account-credentials=true \
  --service-account-private-key-file=$P/sa.key --root-ca-file=$P/ca.crt --cluster-signing-cert-file=$P/ca.crt \
  --cluster-signing-key-file=$P/ca.key --leader-elect=false --bind-address=127.0.0.1 \
  --node-monitor-period=2s --node-monitor-grace-period=20s --v=${V:-1}
alive kube-scheduler || start kube-scheduler "$BIN/kube-scheduler" --kubeconfig=$P/scheduler.conf \
  --authentication-kubeconfig=$P/scheduler.conf --authorization-kubeconfig=$P/scheduler.conf \
  --leader-elect=false --bind-address=127.0.0.1 --v=${V:-1}
for ((i = 1; i <= NODES; i++)); do "$here/node-up.sh" $i; done
kubectl apply -f "$here/manifests/system.yaml" >>"$STATE/log/up.log"
cat >"$STATE/Corefile" <<C
.:53 {
    bind $API
    errors
    health $API:8081
    ready $API:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig $P/coredns.conf
        pods insecure
        ttl 5
    }
    cache 5
    loadbalance
}
C
alive coredns || start coredns "$BIN/coredns" -conf "$STATE/Corefile"
alive volumes || start volumes "$BIN/volumes" -kubeconfig "$P/volumes.conf" -dir "$STATE/volumes" -class local
for ((i = 1; i <= NODES; i++)); do until_ok 60 node_ready $i; done
until_ok 30 dns_ready
until_ok 30 kubectl get serviceaccount default # without it a first bare pod is refused
