#!/usr/bin/env bash
# End to end on a real Kubernetes, from nothing: images, cluster, scenarios, and the cluster stopped again whatever happened.
#
#   tests/e2e/run.sh [SCENARIO...]     all scenarios, or those whose name contains one of the words
#
# ROCKETCLUSTER_BIN  folder with static release builds (default: built here)
# E2E_KUBECONFIG     use this cluster instead of starting one; E2E_LOAD is then run with each image archive (kind: "kind load image-archive")
# NODES              nodes of the cluster started here (3; a power cut needs two, and three when a group of three has to go on)
# E2E_KEEP           leave namespaces and cluster as they are at the end
set -euo pipefail
e2e=$(cd "$(dirname "$0")" && pwd)
export ROCKETCLUSTER_CACHE=${ROCKETCLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rocketcluster}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROCKETCLUSTER_CACHE/target}
export REPOSITORY=${REPOSITORY:-localhost/rocketcluster} TAG=${TAG:-dev} NODES=${NODES:-3}
say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

need() { # programs that nothing here installs
  local p; for p in "$@"; do command -v "$p" >/dev/null || { echo "tests/e2e/run.sh needs $p" >&2; exit 1; }; done
}
need cargo go mvn javac jlink
[ -z "${E2E_KUBECONFIG:-}" ] || need kubectl helm buildah gcc readelf strip
mkdir -p "$ROCKETCLUSTER_CACHE"
exec 8>"$ROCKETCLUSTER_CACHE/e2e.lock" # one run at a time: a machine has one such cluster
flock -n 8 || { say "waiting for another run"; flock 8; }

cluster=
finish() { # the cluster never outlives the run
  local code=$?
  if [ -n "$cluster" ] && [ -z "${E2E_KEEP:-}" ]; then say "stopping the cluster"; "$e2e/cluster/down.sh" clean; fi
  rm -rf "${archives:-}"
  exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

if [ -z "${ROCKETCLUSTER_BIN:-}" ]; then
  say "release build"
  triple=$(uname -m)-unknown-linux-gnu
  (cd "$e2e/../.." && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$triple" -p rocketctl -p broker -p namesrv -p operator)
  export ROCKETCLUSTER_BIN=$CARGO_TARGET_DIR/$triple/release
fi
say "the suite"
suite=$(cd "$e2e/../.." && cargo test --locked -p tests --test e2e --no-run --message-format=json-render-diagnostics |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)

[ -n "${E2E_KUBECONFIG:-}" ] || "$e2e/cluster/setup.sh"
say "images"
archives=$(mktemp -d)
export KUBECACHEDIR=$archives/kubectl # what kubectl remembers of an earlier cluster at the same address is wrong
"$e2e/../../images/build.sh" "$archives" operator mqnamesrv mqbroker
mkdir "$archives/next" # the same code under another tag, to roll to
TAG=$TAG-next "$e2e/../../images/build.sh" "$archives/next" mqnamesrv mqbroker >/dev/null
clients=$("$e2e/clients/image.sh")

if [ -n "${E2E_KUBECONFIG:-}" ]; then
  export KUBECONFIG=$E2E_KUBECONFIG
  if [ -n "${E2E_LOAD:-}" ]; then
    for tar in "$archives"/*.tar "$archives"/next/*.tar "$clients"; do say "$E2E_LOAD $tar"; $E2E_LOAD "$tar"; done
  fi
else
  say "Kubernetes binaries"
  "$e2e/cluster/build.sh"
  . "$e2e/cluster/env.sh"
  say "the chart"
  "$e2e/../../charts/check.sh"
  "$e2e/cluster/down.sh" clean # what an interrupted run left behind
  "$e2e/cluster/images/build.sh"
  cluster=yes
  say "starting a cluster of $NODES nodes"
  "$e2e/cluster/up.sh" 8>&-
  say "loading images"
  "$e2e/cluster/load-images.sh" "$archives"/*.tar "$archives"/next/*.tar "$clients"
  export E2E_CLUSTER_SCRIPTS=$e2e/cluster
fi
say "scenarios"
"$suite" "$@" 8>&-
say "done"
