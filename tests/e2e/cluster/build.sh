#!/bin/bash
# Builds Kubernetes (one binary, a link per component) and helm into $BIN, unless they are there. The first time takes some ten CPU minutes.
set -e
. "$(dirname "$0")/env.sh"
V=v1.36.3
if [ ! -x "$BIN/.complete" ]; then
  for q in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    X="$X -X $q.gitVersion=$V -X $q.gitMajor=1 -X $q.gitMinor=36 -X $q.gitTreeState=clean -X $q.gitCommit=module -X $q.buildDate=1970-01-01T00:00:00Z"
  done
  mkdir -p "$BIN"
  export CGO_ENABLED=0
  (cd "$here" && go build -trimpath -ldflags "-s -w $X" -o "$BIN/k8s" .)
  for n in etcd coredns kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl volumes; do
    ln -sf k8s "$BIN/$n"
  done
  h=helm.sh/helm/v3
  H="-X $h/internal/version.version=v3.21.4" # and the Kubernetes that charts are rendered for when there is none to ask
  for q in chartutil lint/rules; do H="$H -X $h/pkg/$q.k8sVersionMajor=1 -X $h/pkg/$q.k8sVersionMinor=36"; done
  (cd "$here/tools" && go build -trimpath -ldflags "-s -w $H" -o "$BIN/" tool)
  install /dev/null "$BIN/.complete"
  # Earlier builds are of no use to anyone: the folder's name says what is in it.
  for old in "$cache"/k8s-*; do [ "$old/bin" = "$BIN" ] || rm -rf "$old"; done
fi
echo "$BIN"
