#!/usr/bin/env bash
# charts/check.sh: the chart lints, renders in every shape, refuses bad values, and deploy/operator.yaml is what it renders. Needs helm.
set -euo pipefail
cd "$(dirname "$0")"
chart=rocketcluster-operator
helm lint --strict "$chart" >/dev/null || { helm lint --strict "$chart" >&2; exit 1; }

shapes=(
  ""
  "--set replicas=2,podDisruptionBudget.enabled=true,networkPolicy.enabled=true"
  "--set watchNamespaces={a,b} --set serviceAccount.create=false,serviceAccount.name=mine"
  "--set serviceMonitor.enabled=true,serviceMonitor.labels.release=prometheus --set imagePullSecrets[0].name=s --set podLabels.a=b,podAnnotations.c=d"
)
for shape in "${shapes[@]}"; do
  # shellcheck disable=SC2086 # several arguments
  rendered=$(helm template x "$chart" $shape)
  for forbidden in pods/exec secrets 'resources: \["\*"\]' 'verbs: \["\*"\]'; do
    if grep -q "$forbidden" <<<"$rendered"; then echo "the chart asks for $forbidden ($shape)" >&2; exit 1; fi
  done
done

for bad in replicas=0 replicas=x image.pullPolicy=Sometimes image.repository= unknown=1 'watchNamespaces={A_b}' log.format=xml; do
  if helm template x "$chart" --set "$bad" >/dev/null 2>&1; then echo "the chart accepts $bad" >&2; exit 1; fi
done

../deploy/render.sh --check
