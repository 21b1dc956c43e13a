#!/usr/bin/env bash
# Unmodified clients from their registries against a cluster of two masters and one name server: Apache Java client 4.9.8 and
# 5.3.3, Go client, mqadmin of both versions, Apache's benchmark programs; the original servers beside ours on one store or in one group;
# and a group that elects its master, which loses it.
#
#   tests/clients/run.sh                  everything
#   tests/clients/run.sh java-4.9.8 go    only these parts: java-4.9.8 java-5.3.3 binary-4.9.8 binary-5.3.3 go mqadmin-4.9.8 mqadmin-5.3.3 benchmark-4.9.8 benchmark-5.3.3 store-4.9.7 store-5.3.3 replication dledger
#   SCENARIOS=sync,pull tests/clients/run.sh java-4.9.8
#   SERVERS=java tests/clients/run.sh     the same against the original servers (SERVERS_VERSION=4.9.7 or 5.3.3): proves the rig itself
#   NAMESRV=ours SERVERS=java …           our name server under the original brokers
#   KEEP=1                                keeps the cluster's folders also after success
set -uo pipefail
{ # read whole before it runs, so that an edit does not disturb a run
cd "$(dirname "$0")" || exit 2
cache=${ROCKETCLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rocketcluster}
out=$cache/clients
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(java-4.9.8 java-5.3.3 binary-4.9.8 binary-5.3.3 go mqadmin-4.9.8 mqadmin-5.3.3 benchmark-4.9.8 benchmark-5.3.3 store-4.9.7 store-5.3.3 replication dledger)
servers=${SERVERS:-ours}
servers_version=${SERVERS_VERSION:-4.9.7}
work=$out/run-$$
mkdir -p "$work"
began=$SECONDS
has() { local p; for p in "${parts[@]}"; do case $p in $1) return 0 ;; esac; done; return 1; }
say() { printf '%s\n' "$*"; }

# ---- what is needed, built once and kept: a stamp holds the checksum of the sources
package() { # package NAME VERSION POM-FOLDER
  local dir=$out/$1-$2 sum
  sum=$(find "$3" -name '*.java' -o -name pom.xml | sort | xargs cat | sha256sum)
  if [ "$(cat "$dir/stamp" 2>/dev/null)" != "$sum" ]; then
    say "building $1 $2 with Maven"
    rm -rf "$dir"
    mvn -q -B -f "$3/pom.xml" package -Drocketmq.version="$2" -Dout="$dir" || { say "Maven could not build $1 $2"; return 1; }
    printf '%s\n' "$sum" > "$dir/stamp"
  fi
}
if [ "$servers" = java ]; then # nothing to exchange with itself
  for i in "${!parts[@]}"; do case ${parts[i]} in store-* | replication | dledger) unset 'parts[i]' ;; esac; done
fi
for v in 4.9.8 5.3.3; do if has "[!s]*-$v" || has dledger || { [ $v = 4.9.8 ] && { has 'store-*' || has replication; }; }; then package java $v java || exit 1; fi; done
if has go || has dledger; then (cd go && go build -o "$out/go-clients" .) || { say "go build failed"; exit 1; }; fi

open=(--add-opens=java.base/java.nio=ALL-UNNAMED --add-opens=java.base/sun.nio.ch=ALL-UNNAMED --add-opens=java.base/java.lang=ALL-UNNAMED
  --add-opens=java.base/java.util=ALL-UNNAMED -Dio.netty.tryReflectionSetAccessible=true -XX:+UseSerialGC -XX:TieredStopAtLevel=1)

# ---- the cluster: one name server and two masters, each on a loopback address of its own
pids=() members=()
finish() {
  local p
  for p in "${pids[@]+"${pids[@]}"}" "${members[@]+"${members[@]}"}"; do kill "$p" 2>/dev/null; done
  for p in "${pids[@]+"${pids[@]}"}"; do wait "$p" 2>/dev/null; done
  for p in "${members[@]+"${members[@]}"}"; do while kill -0 "$p" 2>/dev/null; do read -rt 0.1 <> <(:) || :; done; done
  for p in $(cat "$work"/home-s*/broker.pid 2>/dev/null); do kill -9 "$p" 2>/dev/null; done
}
trap finish EXIT
trap 'exit 130' INT TERM
net=127.$((100 + $$ / 250 % 100)).$(($$ % 250 + 1))
namesrv_port=29876 # not the standard ones: another server here may have taken them on every address
start() { # start NAME COMMAND...
  local name=$1; shift
  "$@" > "$work/$name.log" 2>&1 &
  pids+=($!)
}
alive() { # says why and gives up when a server ended
  local p; for p in "${pids[@]}"; do
    kill -0 "$p" 2>/dev/null || { say "a server ended early:"; tail -n 20 "$work"/*.log; exit 1; }
  done
}
wait_for() { # wait_for SECONDS WHAT COMMAND...
  local until=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || { say "still waiting for $what"; tail -n 20 "$work"/*.log; exit 1; }
    alive
    read -rt 0.1 <> <(:) || :
  done
  alive
}
listens() { (exec 3<>"/dev/tcp/$1/$2"); }
broker_conf() { # broker_conf NAME ADDRESS PORT
  cat <<CONF
brokerClusterName=clients
brokerName=$1
brokerId=0
brokerRole=ASYNC_MASTER
flushDiskType=ASYNC_FLUSH
brokerIP1=$2
listenPort=$3
namesrvAddr=$namesrv
storePathRootDir=$work/$1
storePathCommitLog=$work/$1/commitlog
CONF
}
start_namesrv() { # start_namesrv ADDRESS [NAME]: ours
  local name=${2:-namesrv}
  printf 'listenPort=29876\nhttpPort=29877\nbindAddress=%s\nkvConfigPath=%s\nconfigStorePath=%s\n' "$1" "$work/$name-kvConfig.json" "$work/$name.properties" > "$work/$name.conf"
  start "$name" "$bin/mqnamesrv" -c "$work/$name.conf"
  wait_for 10 "the name server" listens "$1" $namesrv_port
}
bin=${ROCKETCLUSTER_BIN:-}
if [ -z "$bin" ] && [ "$servers${NAMESRV:-}" != java ]; then
  say "building the servers"
  (cd ../.. && cargo build --release --locked -q -p namesrv -p broker) || exit 1
  bin=$(cd ../.. && cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
fi
# Ours and the original in one replica group, either way round, and a cluster that moves from one to the other while it is used.
original() { (cd ../.. && ORIGINAL_SERVERS=$out ROCKETCLUSTER_BIN=$bin cargo test --release --locked -q -p broker --test original "$@"); }
if has replication; then original --no-run || exit 1; fi
jvm() { # jvm VERSION CLASS OPTIONS...: a server of the original
  local version=$1; shift
  exec java "${open[@]}" --add-exports=java.base/jdk.internal.ref=ALL-UNNAMED -Xms256m -Xmx512m -XX:MaxDirectMemorySize=1g -Duser.home="$work" -Drocketmq.home.dir="$work" \
    -cp "$out/servers-$version/lib/*" "$@"
}
if [ "$servers" = java ] || has 'store-*' || has replication || has dledger; then
  for v in 4.9.7 5.3.3; do
    if has "store-$v" || has replication || { [ $v = 4.9.7 ] && has dledger; } || { [ "$servers" = java ] && [ "$servers_version" = $v ]; }; then package servers $v java/servers || exit 1; fi
  done
  mkdir -p "$work/conf"
  for f in logback_namesrv logback_broker logback_tools rmq.namesrv.logback rmq.broker.logback; do
    printf '<configuration><root level="OFF"/></configuration>\n' > "$work/conf/$f.xml"
  done
fi
if [ "$servers" = java ]; then
  if [ "${NAMESRV:-}" = ours ]; then
    namesrv=$net.1:$namesrv_port
    start_namesrv $net.1
  else
    namesrv_port=19876
    namesrv=127.0.0.1:$namesrv_port
    printf 'listenPort=%s\n' $namesrv_port > "$work/namesrv.conf"
    start namesrv jvm "$servers_version" org.apache.rocketmq.namesrv.NamesrvStartup -c "$work/namesrv.conf"
    wait_for 60 "the name server" listens 127.0.0.1 $namesrv_port
  fi
  port=20911
  for b in broker-a broker-b; do
    { broker_conf $b 127.0.0.1 $port; printf 'mappedFileSizeCommitLog=67108864\nhaListenPort=%s\n' $((port + 5)); } > "$work/$b.conf"
    start $b jvm "$servers_version" org.apache.rocketmq.broker.BrokerStartup -c "$work/$b.conf"
    port=$((port + 100))
  done
else
  namesrv=$net.1:$namesrv_port
  start_namesrv $net.1
  n=11
  for b in broker-a broker-b; do
    { broker_conf $b $net.$n 30911; printf 'httpPort=30913\nbindAddress=%s\n' $net.$n; } > "$work/$b.conf"
    start $b "$bin/mqbroker" -c "$work/$b.conf"
    n=$((n + 1))
  done
fi
client() { # client VERSION ARGUMENTS...: our main class over one version of the Apache client
  local version=$1; shift
  java "${open[@]}" -Xmx768m -Duser.home="$work" -Drocketmq.client.logRoot="$work/rocketmqlogs" -Drocketmq.client.localOffsetStoreDir="$work/offsets-$version" \
    -Drocketmq.client.logUseSlf4j=false $([ "$servers" = java ] || echo -Drocketcluster.servers=true) ${jvm_extra:-} -cp "$out/java-$version/lib/*" rocketcluster.clients.Main "$@" --namesrv "$namesrv"
}
cluster_table() { # cluster_table NAMESRV: who is registered there, asked with the wire's own request 106
  exec 3<>"/dev/tcp/${1%:*}/${1#*:}" || return 1
  local header='{"code":106,"flag":0,"language":"JAVA","opaque":1,"serializeTypeCurrentRPC":"JSON","version":409}'
  printf "\\x00\\x00\\x00\\x$(printf %02x $((${#header} + 4)))\\x00\\x00\\x00\\x$(printf %02x ${#header})%s" "$header" >&3
  timeout 0.5 cat <&3 | tr -d '\0'
  exec 3>&-
}
registered() { # both masters are in the name server's table
  case $(cluster_table "$namesrv") in *broker-a*broker-b* | *broker-b*broker-a*) return 0 ;; esac
  return 1
}
wait_for 60 "the brokers to register" registered
say "cluster of two masters ($servers$([ "$servers" = java ] && echo " $servers_version")) registered at $namesrv after $((SECONDS - began)) s; logs and data in $work"

# ---- the parts, as many at a time as do not disturb each other
failed=0 passed=0 broken=()
part() { # part NAME COMMAND...: in the background, its lines kept
  local name=$1; shift
  ( "$@" > "$work/$name.out" 2> "$work/$name.err"; echo $? > "$work/$name.rc" ) &
}
# A reader of a part's lines: each of its commands closes with "N passed, N failed"; without one the part itself failed.
collect() {
  local name=$1 closing p f
  grep -E '^(PASS|FAIL) |^    ' "$work/$name.out" | sed "s/^\(PASS\|FAIL\) /\1 $name: /"
  closing=$(awk '/^[0-9]+ passed, [0-9]+ failed$/ { p += $1; f += $3; n++ } END { if (n) print p " passed, " f " failed" }' "$work/$name.out")
  read -r p _ f _ <<< "${closing:-0 passed, 1 failed}"
  [ -n "$closing" ] || { say "FAIL $name: ended without its closing line, exit code $(cat "$work/$name.rc" 2>/dev/null)"; tail -n 20 "$work/$name.err"; }
  passed=$((passed + p)) failed=$((failed + f))
  [ "$f" -eq 0 ] || broken+=("$name")
}
inside() { cd "$1" || return; shift; "$@"; } # some commands leave files where they run
group() { # runs the named parts together and prints what they said, in order
  local name jobs=()
  for name in "$@"; do
    has "$name" || continue
    case $name in
      java-*) part "$name" client "${name#*-}" scenarios --only "${SCENARIOS:-}" --suffix "j${name//[^0-9]/}" ;;
      binary-*) jvm_extra=-Drocketmq.serialize.type=ROCKETMQ part "$name" client "${name#*-}" scenarios --suffix "b${name//[^0-9]/}" \
        --only "${SCENARIOS:-sync,async,batch,pull,tags,delay-levels,query-by-id-and-key,offset-search,refusals}" ;;
      go) part go "$out/go-clients" -namesrv "$namesrv" ;;
      mqadmin-*) mkdir -p "$work/home-$name"; part "$name" inside "$work/home-$name" client "${name#*-}" mqadmin --dir "$work/home-$name" --only "${COMMANDS:-}" ;;
      benchmark-*) part "$name" benchmark "${name#*-}" ;;
    esac
    jobs+=($!)
  done
  [ ${#jobs[@]} -eq 0 ] || wait "${jobs[@]}"
  for name in "$@"; do if has "$name"; then collect "$name"; fi; done
}
# Apache's own Producer and Consumer for 20 s; they set the binary header themselves. Good = both move, and no line tells a failure.
benchmark() {
  local version=$1 topic=Benchmark_$$_${1//./} java=(java "${open[@]}" -Xmx512m -Duser.home="$work" -Drocketmq.client.logRoot="$work/rocketmqlogs" -cp "$out/java-$1/lib/*") a b
  client "$version" topic --topic "$topic" --queues 8 || return
  "${java[@]}" org.apache.rocketmq.example.benchmark.Consumer -t "$topic" -g "G_$topic" -p false -n "$namesrv" > "$work/consumer-$version.log" 2>&1 & a=$!
  "${java[@]}" org.apache.rocketmq.example.benchmark.Producer -t "$topic" -w 8 -s 1024 -n "$namesrv" > "$work/producer-$version.log" 2>&1 & b=$!
  sleep 26 # the load itself: both print a line every 10 s
  kill "$a" "$b"; wait "$a" "$b"
  verdict producer "$work/producer-$version.log" 'Send TPS: [1-9]' 'Send Failed: [1-9]|Response Failed: [1-9]|Exception'
  verdict consumer "$work/consumer-$version.log" 'TPS: [1-9]' 'FAIL: [1-9]|fail count: [1-9]|Exception'
  echo "$good passed, $bad failed"
}
# The steps of docs/migration.md, on one folder that our broker and the original run in turn: each finds what the other stored, also what is still delayed, after
# orderly stops, after kill -9 and after retention.
documented() { # documented NAME: the commands under that mark
  awk -v mark="<!-- tests/clients: $1 -->" '$0 ~ mark { found = 1 } found && /^ *```$/ { exit } inside { sub(/^   /, ""); print } found && /^ *```sh$/ { inside = 1 }' ../../docs/migration.md
}
follow() { # follow NAME: runs them in the broker's home
  local commands; commands=$(documented "$1")
  [ -n "$commands" ] || { echo "docs/migration.md has no commands for $1" >&2; return 1; }
  (cd "$home" && exec env PATH="$bin:$PATH" timeout 300 bash -eu -c "$commands")
}
committed() { # committed STORE TOPICS FILLING: the last offset that the filling committed is on disk
  grep -Ezq "\"$2_5@G_$2_$3\":[^}]*3\"?:10" "$1/config/consumerOffset.json"
}
exchange() { # exchange VERSION NUMBER
  local version=$1 home=$work/home-s$1 address=$net.$((13 + $2)) port=$((31911 + 200 * $2)) seen= cut= step kind fill how retain line store=$work/broker-s$1
  local namesrv=$net.2:$namesrv_port good=0 bad=0
  mkdir -p "$home/bin" "$home/conf"
  { broker_conf "broker-s$version" "$address" $port
    printf 'httpPort=%s\nbindAddress=%s\nhaListenPort=%s\n' $((port + 2)) "$address" $((port + 1))
    # Small files, so that there are several; nothing goes by itself.
    printf 'mappedFileSizeCommitLog=2097152\nmappedFileSizeConsumeQueue=40000\nmaxHashSlotNum=5000\nmaxIndexNum=12000\n'
    # The original refuses what waited 200 ms for a thread; on a busy machine that is no fault.
    printf 'waitTimeMillsInSendQueue=10000\ndiskMaxUsedSpaceRatio=95\ncleanFileForciblyEnable=false\nfileReservedTime=1\ndeleteWhen=%02d\n' $((($(date +%-H) + 12) % 24))
  } > "$home/conf/broker.conf"
  # What the original's distribution has in its bin.
  { declare -p open out work; declare -f jvm; printf 'echo $$ > broker.pid\njvm %s org.apache.rocketmq.broker.BrokerStartup "$@"\n' "$version"; } > "$home/bin/run"
  echo 'exec bash bin/run "$@"' > "$home/bin/mqbroker"
  echo 'kill "$(cat broker.pid)"; while kill -0 "$(cat broker.pid)" 2> /dev/null; do read -rt 0.1 <> <(:) || :; done' > "$home/bin/mqshutdown.bash"
  echo 'exec bash bin/mqshutdown.bash' > "$home/bin/mqshutdown"
  for step in java:A:stop ours:B:kill java:C:kill ours:D:stop:yes java:E:stop ours::stop; do
    IFS=: read -r kind fill how retain <<< "$step"
    [ -z "$retain" ] || touch -d '2 hours ago' "$store"/commitlog/* # all of it is expired
    if [ "$kind" = ours ]; then follow check && follow start; else follow start-java; fi || { bad=$((bad + 1)); break; }
    line=$(client 4.9.8 store --topic "Store_${version//./}_$$" --name "broker-s$version" --broker "$address:$port" --state "$store.state" \
      --seen "$seen" --cut "$cut" --fill "$fill" --retain "$retain" | grep -E '^(PASS|FAIL) ') || line=${line:-FAIL ended early}
    echo "${line%% *} $kind broker on the folder: ${line#* }"
    case $line in PASS*) good=$((good + 1)) ;; *) bad=$((bad + 1)); break ;; esac
    if [ "$how" = kill ]; then
      # Committed offsets are written every few seconds; what a kill takes of them is no message.
      wait_for 20 "the offsets on disk" committed "$store" "Store_${version//./}_$$" "$fill"
      kill -9 "$(cat "$home/broker.pid")"
      while kill -0 "$(cat "$home/broker.pid")" 2>/dev/null; do read -rt 0.1 <> <(:) || :; done
    elif [ "$kind" = ours ]; then follow stop
    else follow stop-java; fi
    [ -z "$retain" ] || { cut=$seen seen=; }
    seen=$seen${fill:+${seen:+,}$fill}
  done
  echo "$good passed, $bad failed"
}
# Three members of a group, each on a loopback address of its own.
start_members() {
  local k address peers=
  for k in 0 1 2; do peers=$peers${peers:+;}n$k-$net.$((21 + k)):30951; done
  for k in 0 1 2; do
    address=$net.$((21 + k))
    printf '%s\n' brokerClusterName=elected brokerName=broker-d "brokerIP1=$address" "bindAddress=$address" listenPort=30911 httpPort=30913 "namesrvAddr=$net.3:$namesrv_port" \
      "storePathRootDir=$work/broker-d$k" enableDLegerCommitLog=true dLegerGroup=broker-d "dLegerPeers=$peers" dLegerSelfId=n$k slaveReadEnable=true > "$work/broker-d$k.conf"
    # One of them is killed: that it ended is no failure.
    "$bin/mqbroker" -c "$work/broker-d$k.conf" > "$work/broker-d$k.log" 2>&1 &
    members+=($!)
    disown $! # or the shell would tell of its death
  done
  wait_for 60 "a master of the three" elected_one
}
elected_one() { # the three have a master, and it is in the name server's table
  case $(cluster_table "$net.3:$namesrv_port") in *broker-d*[{,]0:* | *broker-d*'"0":'*) return 0 ;; esac
  return 1
}
# A group of the original with a DLedger log, which our members follow as a second cluster.
start_old_group() {
  start_namesrv $net.4 namesrv-o
  printf '%s\n' brokerClusterName=old brokerName=broker-o brokerIP1=127.0.0.1 listenPort=28911 haListenPort=28916 "namesrvAddr=$net.4:$namesrv_port" "storePathRootDir=$work/broker-o" \
    mappedFileSizeCommitLog=67108864 waitTimeMillsInSendQueue=10000 enableDLegerCommitLog=true dLegerGroup=broker-o dLegerPeers=n0-127.0.0.1:28951 dLegerSelfId=n0 > "$work/broker-o.conf"
  start broker-o jvm 4.9.7 org.apache.rocketmq.broker.BrokerStartup -c "$work/broker-o.conf"
}
has_topic() { grep -qE '"writeQueueNums": ?4' <<< "$(cd "$home" && sh bin/mqadmin topicRoute -n "$NEW" -t "$1")"; }
# The commands of docs/migration.md for such a group: its topics are there on the second cluster, and its consumers finish what they have.
moves() {
  local OLD=$net.4:$namesrv_port NEW=$net.3:$namesrv_port NEW_CLUSTER=elected home=$work/home-d topic=Old_$$ worker good=0 bad=0
  export OLD NEW NEW_CLUSTER
  mkdir -p "$home/bin"
  { declare -p open out work; printf 'exec java "${open[@]}" -Duser.home="$work" -Drocketmq.home.dir="$work" -Drocketmq.client.logRoot="$work/rocketmqlogs" -cp "$out/java-4.9.8/lib/*" org.apache.rocketmq.tools.command.MQAdminStartup "$@"\n'; } > "$home/bin/run"
  echo 'exec bash bin/run "$@"' > "$home/bin/mqadmin"
  namesrv=$OLD servers=java client 4.9.8 work --topic "$topic" --messages 300 > "$work/dledger-work.log" 2>&1 & worker=$!
  wait_for 60 "messages on the old group" grep -q '^sent$' "$work/dledger-work.log"
  follow dledger-topics > "$work/dledger-topics.log"
  if has_topic "$topic"; then echo "PASS moved $topic"; good=$((good + 1)); else echo "FAIL moved: $topic is not on the second cluster"; bad=$((bad + 1)); fi
  if follow dledger-drained > "$work/dledger-drained.log" && wait $worker; then echo "PASS drained after $(paste -sd ' ' "$work/dledger-drained.log")"; good=$((good + 1))
  else echo "FAIL drained: $(tail -n 1 "$work/dledger-work.log")"; bad=$((bad + 1)); fi
  echo "$good passed, $bad failed"
}
old_one() { [[ $(cluster_table "$net.4:$namesrv_port") = *broker-o* ]]; }
# What stock clients do with such a group, and what they see when it loses its master.
elected() {
  local namesrv=$net.3:$namesrv_port k pids_of=
  for k in 0 1 2; do pids_of=$pids_of${pids_of:+,}$net.$((21 + k)):30911=${members[k]}; done
  "$out/go-clients" -namesrv "$namesrv" > "$work/dledger-go.out" & k=$!
  client 5.3.3 scenarios --only "${SCENARIOS:-}" --suffix d533
  wait $k
  cat "$work/dledger-go.out"
  client 4.9.8 failover --name broker-d --pids "$pids_of"
  moves
}
good=0 bad=0
verdict() { # verdict NAME LOG MUST MUST-NOT
  local line; line=$(grep -E "$3" "$2" | tail -n 1)
  if [ -n "$line" ] && ! grep -qE "$4" "$2"; then echo "PASS benchmark $1: $line"; good=$((good + 1))
  else echo "FAIL benchmark $1: $(grep -E "$4" "$2" | head -n 1) $(tail -n 1 "$2")"; bad=$((bad + 1)); fi
}

# These wait most of their time, and have a name server of their own so that they disturb nobody.
exchanges=()
if has 'store-*'; then
  start_namesrv $net.2 namesrv-s
  for v in 4.9.7 5.3.3; do if has store-$v; then part store-$v exchange $v ${#exchanges[@]}; exchanges+=($!); fi; done
fi
if has dledger; then start_namesrv $net.3 namesrv-d; start_members; start_old_group; wait_for 60 "the old group's registration" old_one; fi
group java-4.9.8 java-5.3.3 go
group binary-4.9.8 binary-5.3.3
if has replication; then part replication original; replication=$!; fi
if has dledger; then part dledger elected; dledger=$!; fi
group mqadmin-4.9.8
group mqadmin-5.3.3
group benchmark-4.9.8 benchmark-5.3.3
[ ${#exchanges[@]} -eq 0 ] || wait "${exchanges[@]}"
for v in 4.9.7 5.3.3; do if has store-$v; then collect store-$v; fi; done
if has replication; then wait "$replication"; collect replication; fi
if has dledger; then wait "$dledger"; collect dledger; fi
alive
say "$passed passed, $failed failed in $((SECONDS - began)) s"
if [ $failed -gt 0 ]; then say "failures in: ${broken[*]}; logs in $work"; exit 1; fi
[ $passed -gt 0 ] || { say "nothing ran"; exit 1; }
finish; pids=()
[ -n "${KEEP:-}" ] || rm -rf "$work"
exit 0
}
