#!/usr/bin/env bash
# images/build.sh OUT [IMAGE...]: the images of the Dockerfile as docker-archives OUT/IMAGE.tar, made with buildah and no Docker engine.
#
# The stages are taken from the Dockerfile itself; only where the binaries come from differs: ROCKETCLUSTER_BIN, a folder with static release builds
# (default: the one that the command below fills). REPOSITORY and TAG name the images: $REPOSITORY/mqbroker:$TAG.
#   RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(uname -m)-unknown-linux-gnu
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd); shift
[ $# -gt 0 ] || set -- operator mqnamesrv mqbroker rocketctl
repository=${REPOSITORY:-localhost/rocketcluster} tag=${TAG:-dev}
bin=${ROCKETCLUSTER_BIN:-${CARGO_TARGET_DIR:-target}/$(uname -m)-unknown-linux-gnu/release}
limit=$((20 * 1024 * 1024)) # bytes in an image: what the project promises

T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
buildah=(buildah --storage-driver vfs --root "$T/storage" --runroot "$T/run")
for image in "$@"; do
  [ -x "$bin/$image" ] || { echo "$bin/$image is missing: build it first" >&2; exit 1; }
  ! readelf -lW "$bin/$image" | grep -q INTERP || { echo "$bin/$image is not a static binary: an empty image cannot run it" >&2; exit 1; }
  context=$T/$image; mkdir -p "$context/data"
  strip -o "$context/$image" "$bin/$image"
  awk -v head="FROM scratch AS $image" '$0 == head {on = 1} on && /^$/ {exit} on {gsub("--from=build |/out/", ""); print}' Dockerfile >"$context/Dockerfile"
  [ -s "$context/Dockerfile" ] || { echo "the Dockerfile has no target $image" >&2; exit 1; }
  size=$(stat -c %s "$context/$image")
  [ "$size" -le "$limit" ] || { echo "$image has $size bytes, more than $limit" >&2; exit 1; }
  "${buildah[@]}" bud -q --isolation chroot -t "$repository/$image:$tag" "$context" >/dev/null
  rm -f "$out/$image.tar"
  "${buildah[@]}" push -q "$repository/$image:$tag" "docker-archive:$out/$image.tar:$repository/$image:$tag"
  awk -v n="$repository/$image:$tag" -v s="$size" 'BEGIN {printf "%-44s %5.1f MiB\n", n, s / 1048576}'
done
