#!/bin/bash
# The pause image that every pod needs, as an archive in $STATE/images; "demo": also busybox (with fetch) and httpd for check.sh.
set -e
. "$(dirname "$0")/../env.sh"
src=$here/images; out=$BIN/../images; mkdir -p "$out" "$STATE/images"
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
bud() { # name: build $T/name as localhost/name:1 into $out/name.tar
  local b=(buildah --storage-driver vfs --root "$T/s" --runroot "$T/r")
  "${b[@]}" bud -q --isolation chroot -t "localhost/$1:1" "$T/$1" >/dev/null
  rm -f "$out/$1.tar"; "${b[@]}" push -q "localhost/$1:1" "docker-archive:$out/$1.tar:localhost/$1:1"
}
if [ ! -e "$out/pause.tar" ]; then
  mkdir -p "$T/pause"
  gcc -Os -static -s -o "$T/pause/pause" "$src/pause/pause.c"
  printf 'FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n' >"$T/pause/Dockerfile"
  bud pause
fi
if [ "$1" = demo ] && [ ! -e "$out/httpd.tar" ]; then
  r=$T/busybox/root; mkdir -p "$r"/{bin,tmp,etc} "$T/httpd"
  for a in $(/bin/busybox --list); do ln -sf busybox "$r/bin/$a"; done
  rm -f "$r/bin/busybox"; cp /bin/busybox "$r/bin/"
  CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$r/bin/fetch" "$src/fetch/main.go"
  echo 'root:x:0:0:root:/:/bin/sh' >"$r/etc/passwd"
  printf 'FROM scratch\nCOPY root/ /\nENV PATH=/bin\nCMD ["/bin/sh"]\n' >"$T/busybox/Dockerfile"
  printf 'FROM localhost/busybox:1\nEXPOSE 8080\nCMD ["httpd","-f","-p","8080","-h","/data"]\n' >"$T/httpd/Dockerfile"
  bud busybox; bud httpd
fi
cp -u "$out"/*.tar "$STATE/images/"
