#!/bin/bash
# Stop everything; with "clean", forget all state as well (images to import stay).
. "$(dirname "$0")/env.sh"
for f in "$STATE"/pid/node*; do [ -e "$f" ] && n=${f##*node} && "$here/node-down.sh" $n & done; wait
for c in volumes coredns kube-scheduler kube-controller-manager; do stop $c & done; wait
stop kube-apiserver 15; stop etcd
ip link del $BR 2>/dev/null
for c in /sys/fs/cgroup/*/$CLUSTER; do [ ! -d "$c" ] || find "$c" -depth -type d -exec rmdir {} + 2>/dev/null; done
[ "$1" != clean ] || rm -rf "$STATE"/{etcd,pki,log,pid,volumes,Corefile} "$STATE"/node[0-9]*
exit 0
