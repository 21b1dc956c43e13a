#!/usr/bin/env bash
# Everything the project proves about itself, in one command. Names what this machine cannot run; under CI=true that is a failure.
#
#   ./test.sh                        all stages this machine can run
#   ./test.sh lint unit disk cost clients e2e  only these
#
# Caches lie outside the clone (cargo's target folder, the Kubernetes binaries, client jars), so a second run is quick and an empty cache is only slow.
set -uo pipefail
cd "$(dirname "$0")" || exit 2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rocketcluster
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
export ROCKETCLUSTER_CACHE=$cache
[ "${CI:-}" != true ] || export CARGO_INCREMENTAL=0 # nothing is built twice there: it would only fill the disk
mkdir -p "$cache"
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(lint unit disk cost clients e2e)

passed=() failed=() skipped=()
step() { # step NAME COMMAND...: runs it, keeps the verdict, goes on
  local name=$1 began=$SECONDS; shift
  printf '\n==> %s: %s\n' "$name" "$*"
  if "$@"; then passed+=("$name ($((SECONDS - began)) s)"); else failed+=("$name"); printf '==> FAILED: %s\n' "$name"; return 1; fi
}
skip() { skipped+=("$1: $2"); printf '\n==> skipped: %s: %s\n' "$1" "$2"; }
missing() { # missing PROGRAM...: the first of them that is not here
  local p; for p in "$@"; do command -v "$p" >/dev/null || { echo "$p"; return 0; }; done; return 1
}
may_mount() { # how to run something that mounts file systems which nobody else sees
  local how; for how in "unshare --mount" "unshare --map-root-user --mount"; do
    if $how mount -t tmpfs small-disk /mnt 2>/dev/null; then echo "$how"; return 0; fi
  done; return 1
}
triple=$(uname -m)-unknown-linux-gnu
release() { # the binaries that clients and images use: static, so that they run in an empty image
  RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$triple" -p rocketctl -p broker -p namesrv -p operator
}
built=
with_release() { # builds once, whoever asks first
  [ -n "$built" ] || { if step "release build" release; then built=yes; else built=no; fi; }
  export ROCKETCLUSTER_BIN=$CARGO_TARGET_DIR/$triple/release
  [ "$built" = yes ]
}

for stage in "${stages[@]}"; do
  case $stage in
    lint)
      step "format" cargo fmt --all --check
      step "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
      step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet ;;
    unit)
      step "unit and integration" cargo test --workspace --locked --no-fail-fast ;;
    disk)
      if mount_alone=$(may_mount); then step "a disk that fills up" $mount_alone cargo test -p store --locked --test small_disk -- --ignored
      else skip "a disk that fills up" "may not mount a small file system here (needs root, or namespaces for users)"; fi ;;
    cost) # counts, not times: they repeat on a loaded machine
      if [ "$(uname -s)" = Linux ] && missing valgrind strace >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get install -y -q valgrind strace >/dev/null || { apt-get update -q >/dev/null && apt-get install -y -q valgrind strace >/dev/null; }
      fi
      if [ "$(uname -s)" != Linux ]; then skip "cost" "needs Linux (strace)"
      elif m=$(missing valgrind strace); then skip "cost" "no $m on this machine"
      elif with_release; then step "instructions and system calls of a send" "$ROCKETCLUSTER_BIN/rocketctl" bench check; fi ;;
    clients)
      if m=$(missing java mvn go); then skip "clients" "no $m on this machine"
      elif [ "$(uname -s)" != Linux ]; then skip "clients" "needs Linux (127.0.0.0/8 on loopback)"
      elif with_release; then step "unmodified clients" tests/clients/run.sh; fi ;;
    e2e)
      if [ -z "${E2E_KUBECONFIG:-}" ] && [ "$(id -u)" != 0 ]; then skip "e2e" "needs root to start a Kubernetes here, or E2E_KUBECONFIG for an existing one"
      elif m=$(missing java mvn go); then skip "e2e" "no $m on this machine"
      elif [ "$(uname -s)" != Linux ]; then skip "e2e" "needs Linux"
      elif with_release; then step "end to end on Kubernetes" tests/e2e/run.sh; fi ;;
    *) echo "unknown stage: $stage (lint, unit, disk, cost, clients, e2e)" >&2; exit 2 ;;
  esac
done

printf '\n'
for x in "${passed[@]+"${passed[@]}"}"; do echo "passed   $x"; done
for x in "${failed[@]+"${failed[@]}"}"; do echo "FAILED   $x"; done
for x in "${skipped[@]+"${skipped[@]}"}"; do echo "skipped  $x"; done
echo "${#passed[@]} passed, ${#failed[@]} failed, ${#skipped[@]} skipped"
[ ${#failed[@]} -eq 0 ] || exit 1
if [ "${CI:-}" = true ] && [ ${#skipped[@]} -gt 0 ]; then echo "a skip is a failure under CI=true" >&2; exit 1; fi
