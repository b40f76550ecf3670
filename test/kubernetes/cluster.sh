#!/usr/bin/env bash
# cluster.sh: one node of Kubernetes in mount, network, pid, ipc and uts namespaces of its own. Needs root.
#
#   run         brings it up in the foreground, says "ready", and ends with its standard input
#   up          the same in the background
#   in CMD...   runs CMD inside, kubectl is set up there
#   reboot      of the node: everything that runs is killed, mounts and loop devices are gone, disks stay
#   down        ends it, and removes what any of these left when they were killed
#   cgroup      the name of its cgroup
#
# The namespaces' first process is the cluster's life: with it the kernel ends every process and every mount in them.
# The cluster's daemons hold a lock on $STATE/lock, so it is known without looking at process ids whether any is left.
# What the kernel does not end, cgroups and loop devices, is removed by `run` at its end, or by the next `up` or `down`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./state.sh
here=$PWD

fail() { echo "cluster.sh: $*" >&2; exit 1; }

# cgroups: our cgroup in every hierarchy of this machine.
cgroups() {
  local hierarchy
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo "/sys/fs/cgroup/$CGROUP"; return; fi
  for hierarchy in /sys/fs/cgroup/*/; do
    if [ -e "${hierarchy}cgroup.procs" ]; then echo "$hierarchy$CGROUP"; fi
  done
}

make_cgroups() {
  local cgroup file controller
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done
  fi
  for cgroup in $(cgroups); do
    mkdir -p "$cgroup"
    for file in cpuset.cpus cpuset.mems; do # nothing can enter a cpuset of cgroup v1 that has none
      if [ "${cgroup%/*}" != /sys/fs/cgroup ] && [ -e "$cgroup/$file" ]; then cat "${cgroup%/*}/$file" >"$cgroup/$file"; fi
    done
  done
}

# loops: the loop devices of files below $RUN, those of files on such a device, and those that a kubelet puts on a raw volume's device, to keep
# it. By inode: the path that the kernel shows is that of a mount namespace which is gone. What is on top comes first.
loops() {
  [ -d "$RUN" ] || return 0
  {
    find "$RUN" -xdev -type f -printf 'file %i\n'
    stat --format='node %Hd:%Ld %i %Hr:%Lr' /dev/loop[0-9]*
    losetup --list --noheadings -O NAME,MAJ:MIN,BACK-MAJ:MIN,BACK-INO | sed 's/^/loop /'
  } | awk -v disk="$(stat -c %Hd:%Ld "$RUN")" '
    $1 == "file" { file[disk " " $2] = 1 }
    $1 == "node" { device[$2 " " $3] = $4 }
    $1 == "loop" {
      on = $4 " " $5
      name[$3] = $2; below[$3] = on in device ? device[on] : $4
      if (on in file) ours[$3] = 1
    }
    END {
      do { more = 0; for (d in name) if (!(d in ours) && (below[d] in ours)) { ours[d] = more = 1 } } while (more)
      for (d in ours) for (up = below[d]; up in ours; up = below[up]) depth[d]++
      for (left = length(ours); left > 0; deepest++) for (d in ours) if (depth[d] + 0 == deepest) { order[left--] = name[d] }
      for (i = 1; i in order; i++) print order[i]
    }'
}

# detach ends them, one at a look: one that is below another may end with that one by itself, and be somebody else's the next moment.
detach() {
  local tries left
  for tries in {1..100}; do
    left=$(loops)
    [ -n "$left" ] || return 0
    set -- $left
    shift $((tries % $#))
    losetup --detach "$1" 2>/dev/null || true
    sleep 0.1
  done
  echo "cluster.sh: still attached:" $left >&2
}

# clean removes what a life has left. Nothing of it runs any more.
clean() {
  local cgroup tries
  for cgroup in $(cgroups); do
    for tries in {1..100}; do # a process that was killed leaves its cgroup a moment later
      [ -d "$cgroup" ] || break
      find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
    done
    [ ! -d "$cgroup" ] || echo "cluster.sh: $cgroup is still in use" >&2
  done
  detach
  rm -rf --one-file-system "$RUN"
}

run() {
  [ "$(id -u)" = 0 ] || fail "needs root"
  local first command
  for command in containerd runc iptables ip openssl /usr/lib/cni/bridge etcd kubelet; do
    command -v "$command" >/dev/null || fail "there is no $command; \`make test-kubernetes\` installs and builds what is needed"
  done
  exec 3<&0 9>>"$STATE/lock"
  flock -n 9 || fail "already runs; end it with: $here/cluster.sh down"
  clean
  rm -rf "$LOG"
  mkdir -p "$LOG" "$RUN"/{conf/cni,etcd,home,root,run,tmp,var/lib/kubelet/volumeplugins,var/log}
  chmod 1777 "$RUN/tmp"
  sed "s|@RUN@|$RUN|g; s|@CGROUP@|$CGROUP|g" conf/containerd.toml >"$RUN/conf/containerd.toml"
  sed "s|@RUN@|$RUN|g; s|@CGROUP@|$CGROUP|g" conf/kubelet.yaml >"$RUN/conf/kubelet.yaml"
  cp conf/bridge.conflist "$RUN/conf/cni/"
  echo "nameserver 127.0.0.1" >"$RUN/conf/resolv.conf" # there is no DNS
  ./credentials.sh "$RUN/credentials"
  make_cgroups

  setpriv --pdeathsig KILL cat <&3 >/dev/null 9>&- &
  lifeline=$!
  exec 3<&-
  ns=
  trap 'exit 143' TERM INT HUP
  trap 'end "$ns" "$lifeline"' EXIT
  while true; do
    # Each dies with the one before: this script, unshare, the first process of the namespaces.
    setpriv --pdeathsig KILL unshare --mount --net --pid --ipc --uts --propagation private --fork --kill-child \
      "$here/inside.sh" </dev/null &
    ns=$!
    wait -n -p first "$ns" "$lifeline" || true
    if [ "$first" = "$lifeline" ]; then break; fi
    [ -e "$RUN/reboot" ] || fail "the cluster has ended; its logs are in $LOG"
    # What a machine that loses its power does not have when it comes back.
    detach
    rm -rf --one-file-system "$RUN/run" "$RUN/tmp" "$RUN/root" "$RUN/reboot"
    mkdir -p "$RUN"/{root,run,tmp}
    chmod 1777 "$RUN/tmp"
  done
}

# end NS LIFELINE: the end of `run`.
end() {
  trap '' TERM INT HUP
  kill -9 "$2" 2>/dev/null || true
  if [ -e "$RUN/pid" ]; then kill -9 "$(cat "$RUN/pid")" 2>/dev/null || true; else kill -9 "$1" 2>/dev/null || true; fi
  wait "$1" 2>/dev/null || true # unshare waits for the last process of the namespaces
  clean
}

up() {
  local keeper
  mkdir -p "$STATE"
  rm -f "$STATE/input" "$STATE/up.log" # another life's "ready"
  mkfifo "$STATE/input" # opened for writing, too, it never ends
  setsid "$here/cluster.sh" run <>"$STATE/input" >"$STATE/up.log" 2>&1 &
  keeper=$!
  until grep -qs '^ready' "$STATE/up.log"; do
    kill -0 "$keeper" 2>/dev/null || { cat "$STATE/up.log" >&2; exit 1; }
    sleep 0.1
  done
  cat "$STATE/up.log"
}

down() {
  local deadline=$((SECONDS + 60))
  exec 9>>"$STATE/lock"
  until flock -n 9; do
    [ ! -e "$RUN/pid" ] || kill -9 "$(cat "$RUN/pid" 2>/dev/null)" 2>/dev/null || true
    [ $SECONDS -lt $deadline ] || fail "still runs after 60 s; its processes hold $STATE/lock"
    sleep 0.1
  done
  clean
}

reboot() {
  local deadline=$((SECONDS + 120))
  [ -e "$RUN/pid" ] || fail "does not run; start it with: $here/cluster.sh up"
  rm -f "$RUN/ready"
  touch "$RUN/reboot"
  kill -9 "$(cat "$RUN/pid")"
  until [ -e "$RUN/ready" ]; do
    [ $SECONDS -lt $deadline ] || fail "not ready 120 s after a reboot; its logs are in $LOG"
    sleep 0.1
  done
}

inside() {
  if flock -n "$STATE/lock" true || ! [ -e "$RUN/pid" ]; then fail "does not run; start it with: $here/cluster.sh up"; fi
  export KUBECONFIG=$RUN/credentials/admin.kubeconfig HOME=$RUN/home
  exec nsenter -t "$(cat "$RUN/pid")" --mount --net --pid --ipc --uts -- "$@"
}

case ${1:-} in
  run | up | down | reboot) [ $# = 1 ] || fail "$1 takes no arguments"; "$1" ;;
  in) shift; [ $# -gt 0 ] || fail "in: which command?"; inside "$@" ;;
  cgroup) echo "$CGROUP" ;;
  *) sed -n '2,9s/^# \?//p' "$here/cluster.sh"; exit 2 ;;
esac
