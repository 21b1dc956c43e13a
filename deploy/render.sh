#!/usr/bin/env bash
# deploy/render.sh [--check]: writes deploy/operator.yaml, the chart with its defaults, for `kubectl apply --server-side -f crds/ -f deploy/`. Needs helm.
set -euo pipefail
cd "$(dirname "$0")/.."
render() {
  cat <<'HEAD'
# Made by deploy/render.sh from the chart; do not edit.
apiVersion: v1
kind: Namespace
metadata:
  name: rocketcluster-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
HEAD
  # The chart of a release that Helm does not manage says so.
  helm template rocketcluster charts/rocketcluster-operator --namespace rocketcluster-system --kube-version 1.34.0 --skip-tests |
    sed -e '/helm.sh\/chart:/d' -e 's/managed-by: Helm/managed-by: kubectl/' -e '/^# Source:/d'
}
if [ "${1:-}" = --check ]; then
  render | diff - deploy/operator.yaml || { echo "deploy/operator.yaml is not what the chart renders: run deploy/render.sh" >&2; exit 1; }
else
  render >deploy/operator.yaml
fi
