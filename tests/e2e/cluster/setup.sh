#!/bin/bash
# What the cluster needs from Debian or Ubuntu, installed when missing (as root). "demo": what check.sh needs as well.
set -e
declare -A package=([containerd]=containerd [runc]=runc [buildah]=buildah [iptables]=iptables [nft]=nftables [conntrack]=conntrack [gcc]=gcc
  [openssl]=openssl [pgrep]=procps [ip]=iproute2 [curl]=curl)
want=()
for p in "${!package[@]}"; do command -v "$p" >/dev/null || want+=("${package[$p]}"); done
[ -x /usr/lib/cni/ptp ] || [ -n "$CNI_BIN" ] || want+=(containernetworking-plugins)
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || [ -e /usr/lib/aarch64-linux-gnu/libc.a ] || want+=(libc6-dev)
[ "$1" != demo ] || [ -x /bin/busybox ] || want+=(busybox-static)
[ ${#want[@]} -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] || { echo "missing, and only root can install them: ${want[*]}" >&2; exit 1; }
echo "installing ${want[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${want[@]}" >/dev/null
