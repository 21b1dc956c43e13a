#!/bin/bash
# Makes the image of the client pods, once, and prints the archive's path: a jlinked runtime of this machine's JDK with the few libraries it needs,
# the unmodified Java clients 4.9.8 and 5.3.3 with Client.java, and the Go client. No base image, no shell; /pause keeps the pod alive for `kubectl exec`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${ROCKETCLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rocketcluster}
repository=${REPOSITORY:-localhost/rocketcluster}
hash=$( (cd "$here" && cat image.sh java/* go/* ../cluster/images/pause/pause.c && java -version 2>&1 && go version && echo "$repository") | sha256sum | cut -c1-16)
out=$cache/e2e-clients-$hash/clients.tar
if [ ! -s "$out" ]; then
  T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
  r=$T/root; mkdir -p "$r/java/classes" "$r/tmp" "$r/etc"
  gcc -Os -static -s -o "$r/pause" "$here/../cluster/images/pause/pause.c"
  (cd "$here/go" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$r/go-client" .)
  for v in 4.9.8 5.3.3; do # the JNI library of the server's RocksDB store is no part of a client
    mvn -q -B -f "$here/java/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies -Drocketmq.version=$v \
      -DoutputDirectory="$r/java/$v" -DincludeScope=runtime -DexcludeArtifactIds=rocketmq-rocksdb >&2
    javac -nowarn -cp "$r/java/$v/*" -d "$r/java/classes" "$here/java/Client.java" # the same source for both; the older one's classes are replaced by the same
  done
  home=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")
  "$home/bin/jlink" --strip-debug --no-header-files --no-man-pages --generate-cds-archive --output "$r/jre" \
    --add-modules java.base,java.logging,java.management,java.naming,java.sql,java.xml,java.desktop,jdk.unsupported,jdk.crypto.ec,jdk.management >&2
  # What the runtime's own libraries are linked with, at the same paths, and the loader.
  find "$r/jre" \( -name '*.so' -o -name java \) ! -name 'libawt*' ! -name libsplashscreen.so ! -name libjsound.so ! -name 'lib*font*.so' ! -name liblcms.so ! -name libjavajpeg.so \
    -exec ldd {} + 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// {print $3} $1 ~ /^\/lib.*ld-/ {print $1}' | grep -v "$r" | sort -u |
    while read -r lib; do mkdir -p "$r$(dirname "$lib")"; cp -L "$lib" "$r$lib"; done
  echo 'client:x:65532:65532::/tmp:/' >"$r/etc/passwd"
  cat >"$T/Dockerfile" <<'D'
FROM scratch
COPY root/ /
USER 65532:65532
ENV JAVA_TOOL_OPTIONS="-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Duser.home=/tmp" LD_LIBRARY_PATH=/lib/x86_64-linux-gnu:/lib/aarch64-linux-gnu
ENTRYPOINT ["/pause"]
D
  chmod 1777 "$r/tmp"
  b=(buildah --storage-driver vfs --root "$T/s" --runroot "$T/r")
  "${b[@]}" bud -q --isolation chroot -t "$repository/clients:dev" "$T" >/dev/null
  mkdir -p "$(dirname "$out")"
  "${b[@]}" push -q "$repository/clients:dev" "docker-archive:$out.new:$repository/clients:dev"
  mv "$out.new" "$out"
  for old in "$cache"/e2e-clients-*; do [ "$old" = "$(dirname "$out")" ] || rm -rf "$old"; done
fi
echo "$out"
