#!/bin/bash
# Proves on a running cluster (up.sh) what the suite builds on; for whoever changes these scripts. Ends with the number of failures.
. "$(dirname "$0")/env.sh"
"$here/setup.sh" demo && "$here/images/build.sh" demo && "$here/load-images.sh" || exit 1
bad=0; k=kubectl
ok() { local n=$1; shift; local o; if o=$("$@" 2>&1); then echo "ok   $n"; else echo "FAIL $n: $(echo "$o" | tail -3)"; bad=$((bad + 1)); fi; }
no() { local n=$1 want=$2; shift 2; local o; if o=$("$@" 2>&1); then echo "FAIL $n: allowed"; bad=$((bad + 1)); elif grep -q "$want" <<<"$o"; then echo "ok   $n ($want)"; else echo "FAIL $n: $o"; bad=$((bad + 1)); fi; }
has() { local w=$1; shift; "$@" 2>&1 | grep -q -- "$w"; }
$k delete -f "$here/manifests/demo.yaml" --ignore-not-found --grace-period=1 --wait >/dev/null 2>&1
$k delete pvc,pod --all --grace-period=1 --wait >/dev/null 2>&1
$k apply -f "$here/manifests/demo.yaml" >/dev/null
$k run t --image=localhost/busybox:1 --restart=Never --command -- sleep 36000 >/dev/null
ok "StatefulSet rolls out" $k rollout status sts/web --timeout=60s
ok "pod t ready" $k wait --for=condition=Ready pod/t --timeout=30s
ok "claims bound" has 'Bound Bound' $k get pvc -o 'jsonpath={.items[*].status.phase}'
sleep 6
ok "pod name in DNS" $k exec t -- fetch web-0.web.default.svc.cluster.local web-1.web.default.svc.cluster.local
ok "ClusterIP by name" has web- $k exec t -- fetch http://web-vip/who
ok "NodePort from a pod" has web- $k exec t -- fetch http://$(node_ip 1):30080/who
ok "NodePort from the host" has web- curl -s -m 3 http://$(node_ip 1):30080/who
$k scale sts/web --replicas=1 >/dev/null; $k delete pod web-1 --wait --grace-period=1 --ignore-not-found >/dev/null; sleep 6
ok "a pod reaches itself by its Service" has "200 OK" $k exec web-0 -- sh -c "printf 'GET /who HTTP/1.0\r\n\r\n' | nc $($k get svc web-vip -o 'jsonpath={.spec.clusterIP}') 80"
$k scale sts/web --replicas=2 >/dev/null; ok "scaled back" $k rollout status sts/web --timeout=60s
$k exec web-1 -- touch /data/notready; sleep 9
ok "not ready: out of the plain headless Service" has 'web-ready \[[0-9.]*\]$' $k exec t -- fetch web-ready
ok "not ready: still in with publishNotReadyAddresses" $k exec t -- fetch web-1.web
no "eviction refused by the PDB" 'disruption budget' $k create --raw /api/v1/namespaces/default/pods/web-0/eviction -f <(echo '{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"web-0","namespace":"default"}}')
$k exec web-1 -- rm /data/notready; ok "ready again" $k wait --for=condition=Ready pod/web-1 --timeout=30s
$k patch pdb web -p '{"spec":{"minAvailable":1}}' >/dev/null; sleep 1
u=$($k get pod web-0 -o 'jsonpath={.metadata.uid}'); v=$($k get pvc data-web-0 -o 'jsonpath={.spec.volumeName}')
ok "eviction allowed" $k create --raw /api/v1/namespaces/default/pods/web-0/eviction -f <(echo '{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"web-0","namespace":"default"}}')
until_ok 30 sh -c "[ \"\$(kubectl get pod web-0 -o jsonpath={.metadata.uid})\" != $u ]"; ok "pod comes back" $k wait --for=condition=Ready pod/web-0 --timeout=30s
ok "with its data" has '^[2-9]' $k exec web-0 -- sh -c 'grep -c web-0 /data/who'
ok "and its volume" test "$v" = "$($k get pvc data-web-0 -o 'jsonpath={.spec.volumeName}')"
ok "volume grows" $k patch pvc data-web-0 -p '{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}'
ok "claim says so" until_ok 10 sh -c 'kubectl get pvc data-web-0 -o jsonpath={.status.capacity.storage} | grep 128Mi'
ok "exec has stdin" has hello sh -c 'echo hello | kubectl exec -i t -- cat'
$k port-forward pod/web-0 18080:8080 >/dev/null 2>&1 & pf=$!; ok "port-forward" until_ok 5 curl -sf http://127.0.0.1:18080/who; kill $pf
ok "logs" has 'response:200' $k logs web-0 --tail=50
ok "CRD" $k apply --server-side -f "$here/manifests/crd.yaml"; ok "CRD established" $k wait --for=condition=Established crd/widgets.demo.example.com --timeout=10s
w() { echo '{"apiVersion":"demo.example.com/v1","kind":"Widget","metadata":{"name":"a"},"spec":{"min":'$1',"max":2,"name":"'$2'"}}'; }
ok "object by server-side apply" $k apply --server-side --field-manager=one -f <(w 1 a)
no "CEL rule" 'min must not exceed max' $k apply --server-side --field-manager=one -f <(w 3 a)
no "CEL transition rule" 'immutable' $k apply --server-side --field-manager=one -f <(w 1 b)
no "field ownership conflict" 'conflict' $k apply --server-side --field-manager=two -f <(w 2 a)
no "unknown field (server dry run)" 'unknown field\|strict decoding' $k apply --dry-run=server --validate=strict -f <(echo '{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"x"},"spec":{"replica":1,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}')
$k create sa limited >/dev/null 2>&1; $k create role limited --verb=get,list --resource=pods >/dev/null 2>&1; $k create rolebinding limited --role=limited --serviceaccount=default:limited >/dev/null 2>&1
tok=$($k create token limited); as="kubectl --kubeconfig=/dev/null --server=https://$API:6443 --certificate-authority=$STATE/pki/ca.crt --token=$tok"
ok "RBAC lets a service account read pods" $as get pods; no "RBAC keeps it from secrets" forbidden $as get secrets
ok "API's ClusterIP answers in a pod" has 'unknown authority' $k exec t -- fetch https://kubernetes.default/healthz
ok "service account token in a pod" $k exec t -- test -s /var/run/secrets/kubernetes.io/serviceaccount/token
ok "Job" sh -c 'kubectl delete job j --ignore-not-found >/dev/null; kubectl create job j --image=localhost/busybox:1 -- true && kubectl wait --for=condition=Complete job/j --timeout=30s'
ok "Deployment rolls out" sh -c 'kubectl delete deploy d --ignore-not-found >/dev/null; kubectl create deploy d --image=localhost/busybox:1 -- sleep 3600 && kubectl rollout status deploy/d --timeout=30s'
$k delete deploy/d job/j pod/t --wait=false --grace-period=1 >/dev/null
echo "$bad failures"; exit $bad
