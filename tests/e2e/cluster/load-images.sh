#!/bin/bash
# load-images.sh file.tar...: give image archives to every running node, at the same time (no argument: all of $STATE/images).
. "$(dirname "$0")/env.sh"
[ $# -gt 0 ] || set -- "$STATE"/images/*.tar
pids=()
for s in "$STATE"/node*/run/containerd/containerd.sock; do
  (for t in "$@"; do ctr -a "$s" -n k8s.io image import "$t" >/dev/null || exit 1; done) & pids+=($!)
done
for p in "${pids[@]}"; do wait "$p" || exit 1; done
