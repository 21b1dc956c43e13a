# Sourced by the other scripts: where things lie and how they are numbered. Nothing is written inside the clone.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${ROCKETCLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rocketcluster}
# The binaries are named by what they are made of, so that a second run finds them and a changed source never meets old ones.
if [ -z "${BIN:-}" ]; then
  BIN=$cache/k8s-$( (cd "$here" && cat go.mod go.sum ./*.go tools/go.mod tools/go.sum build.sh images/*/* && go version) | sha256sum | cut -c1-16)/bin
fi
STATE=${STATE:-$cache/e2e-state}        # everything that runs keeps its files here
NODES=${NODES:-1}                       # 1 to 9
CLUSTER=${CLUSTER:-k8se2e}              # name of the bridge and of the cgroup
BR=$CLUSTER
API=10.240.0.1                          # the host's address on the bridge
node_ip() { echo "10.240.0.$((10 + $1))"; }
pod_net() { echo "10.244.$1"; }
SERVICES=10.96
PATH=$BIN:$PATH
export BIN STATE KUBECONFIG=$STATE/pki/admin.conf
start() { # name command...: a process in a session of its own, its pid and log kept
  local n=$1; shift
  setsid nohup "$@" >>"$STATE/log/$n.log" 2>&1 </dev/null &
  echo $! >"$STATE/pid/$n"
}
alive() { [ -s "$STATE/pid/$1" ] && kill -0 "$(cat "$STATE/pid/$1")" 2>/dev/null; }
stop() { # name [seconds]: TERM, wait, KILL
  local p i; alive "$1" || { rm -f "$STATE/pid/$1"; return 0; }
  p=$(cat "$STATE/pid/$1"); kill -TERM "$p" 2>/dev/null
  for ((i = 0; i < ${2:-10} * 10; i++)); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
  kill -KILL "$p" 2>/dev/null; rm -f "$STATE/pid/$1"; return 0
}
until_ok() { # seconds command...
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "gave up: $*" >&2; return 1; }; sleep 0.2; done
}
