#!/usr/bin/env bash
# A real Slurm on one machine, for tests: munged, slurmctld and several slurmd on loopback, without systemd.
#
#   cluster.sh up [DIR]            install what is missing (Debian's packages), start what does not run
#   cluster.sh down [DIR]          stop all of it, and what its jobs left, and remove DIR
#   cluster.sh hold [DIR]          up; down when its standard input ends, so that no cluster outlives who wanted it
#   cluster.sh crash NODE [DIR]    a node loses its power; `up` brings it back
#
# After `up`: `. DIR/env.sh`, then sbatch, squeue and so on. DIR is /tmp/mpips-slurm unless given, and holds all
# state, keys, logs and sockets (so its path must be short); each DIR is a cluster with ports of its own.
# MPIPS_SLURM_NODES (3) nodes n1, n2 ... claim MPIPS_SLURM_CPUS (16) processors each.
#
# Exit codes: 0 done; 77 it cannot be had on this machine, with the reason as the last line; 1 it failed.
#
# A node is a slurmd in UTS, mount, PID and IPC namespaces of its own: it has its own host name (which Open MPI compares
# with Slurm's), process numbers, /dev/shm and $TMPDIR, as a machine has, and everything on it ends with its first
# process. The nodes share the network and all other files.
set -euo pipefail
shopt -s nullglob

SKIP=77
PACKAGES=(munge slurmctld slurmd slurm-client libpmix2)
LOCK=/run/mpips-slurm.lock # one at a time installs packages and picks ports
NODES=${MPIPS_SLURM_NODES:-3}
CPUS=${MPIPS_SLURM_CPUS:-16}

say() { printf 'cluster.sh: %s\n' "$*" >&2; }
skip() { say "no Slurm here: $*"; exit "$SKIP"; }
fail() { say "$*"; exit 1; }

# --- what it takes ------------------------------------------------------------------------------------------------

missing() {
  local package
  for package in "${PACKAGES[@]}"; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

check_machine() {
  local tool
  [ "$(uname -s)" = Linux ] || skip "it takes Linux"
  [ "$(id -u)" = 0 ] || skip "it takes root, for namespaces and packages"
  for tool in unshare flock setsid dpkg-query apt-get; do
    command -v "$tool" >/dev/null || skip "there is no $tool (Debian and its kin have it)"
  done
  in_namespaces mount -t tmpfs tmpfs /mnt 2>/dev/null || skip "this machine or container grants no namespaces"
}

in_namespaces() { unshare --uts --mount --ipc --pid --fork --kill-child --mount-proc "$@"; }

install_packages() {
  local need log policy=/usr/sbin/policy-rc.d made=
  mapfile -t need < <(missing)
  [ ${#need[@]} -gt 0 ] || return 0
  say "installing ${need[*]}"
  log=$(mktemp)
  if [ ! -e $policy ]; then # or else the packages start daemons of their own
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=1
  fi
  # Lists that are there may be old, so they are fetched anew only when they do not do.
  apt_get install "${need[@]}" >"$log" 2>&1 || { apt_get update && apt_get install "${need[@]}"; } >>"$log" 2>&1 || true
  [ -z "$made" ] || rm -f $policy
  mapfile -t need < <(missing)
  [ ${#need[@]} -eq 0 ] || { tail -n 5 "$log" >&2; rm -f "$log"; skip "${need[*]} cannot be installed"; }
  rm -f "$log"
}

apt_get() {
  DEBIAN_FRONTEND=noninteractive timeout -k 5 120 apt-get -q -y --no-install-recommends \
    -o DPkg::Lock::Timeout=60 -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@"
}

# --- configuration ------------------------------------------------------------------------------------------------

# Print the first of 1 + NODES neighbouring ports at which nobody is. They lie below those that systems give out.
free_ports() {
  local base port taken try
  taken=" $(awk 'FNR > 1 { split($2, at, ":"); print at[2] }' /proc/net/tcp /proc/net/tcp6 2>/dev/null | tr '\n' ' ')"
  for ((try = 0; try < 200; try++)); do
    base=$((20000 + RANDOM % 10000))
    for ((port = base; port <= base + NODES; port++)); do
      [[ $taken != *" $(printf %04X "$port") "* ]] || continue 2
    done
    echo "$base"
    return
  done
  fail "no free ports"
}

configure() {
  local port node
  umask 022
  mkdir -p "$DIR"/{munge,state,log,spool,tmp,nodes,pmix}
  [ -s "$DIR/munge/key" ] || (umask 077 && head -c 128 /dev/urandom >"$DIR/munge/key")
  [ -s "$DIR/slurm.conf" ] && return
  port=$(free_ports)
  {
    cat "$(dirname "$SELF")/common.conf" - <<END
ClusterName=mpips
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
AuthInfo=socket=$DIR/munge/socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$DIR/state
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdPidFile=$DIR/spool/%n.pid
SlurmdLogFile=$DIR/log/slurmd-%n.log
SlurmdSpoolDir=$DIR/spool/%n
TmpFS=$DIR/tmp
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmctldTimeout=30
# Jobs that have ended can still be asked about.
MinJobAge=3600
END
    for ((node = 1; node <= NODES; node++)); do
      echo "NodeName=n$node NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=$CPUS RealMemory=64000 State=UNKNOWN"
    done
    echo "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP"
  } >"$DIR/slurm.conf.new"
  mv "$DIR/slurm.conf.new" "$DIR/slurm.conf"
  # Open MPI leaves loopback out, which is right wherever there is anything else.
  {
    printf 'export SLURM_CONF=%q TMPDIR=%q\n' "$DIR/slurm.conf" "$DIR/tmp"
    [ -n "$(interfaces)" ] || echo 'export OMPI_MCA_btl_tcp_if_include=lo'
  } >"$DIR/env.sh"
}

# Print the network interfaces that have a route, other than loopback.
interfaces() { awk 'FNR > 1 && $1 != "lo" { print $1 }' /proc/net/route 2>/dev/null; }

# --- processes ----------------------------------------------------------------------------------------------------

# Print the command line of a process, nothing if it has ended.
command_of() { { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null || true; }

# Print the pid in a file, if a process with DIR in its command line has it: numbers come again.
running() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [[ -n $pid && "$(command_of "$pid")" == *"$DIR/"* ]] && echo "$pid"
}

# Kill the processes whose pids are in these files, and wait until they are gone.
end() {
  local file pid try pids=()
  for file; do pid=$(running "$file") && pids+=("$pid"); done
  [ ${#pids[@]} -eq 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
  for pid in "${pids[@]}"; do
    for ((try = 0; try < 100; try++)); do
      [ -n "$(command_of "$pid")" ] || break
      sleep 0.05
    done
  done
}

# Debian's pmix plugin opens the name without a version, which only the development package has: so the daemons
# see a copy of the library's folder with that name in it, and the machine's own stays as it is.
with_pmix() {
  local library
  for library in /usr/lib/*/pmix2/lib; do
    [ ! -e "$library/libpmix.so" ] || continue
    cp -an "$library/." "$DIR/pmix/"
    ln -sf libpmix.so.2 "$DIR/pmix/libpmix.so"
    mount --bind "$DIR/pmix" "$library"
  done
}

# In its namespaces, a node's first process: what slurmd leaves is this shell's, and nothing is left after it.
live_as() {
  local node=$1
  echo "$node" >/proc/sys/kernel/hostname
  mount --bind "$DIR/hosts" /etc/hosts
  mount -t tmpfs -o mode=1777,size=2g tmpfs /dev/shm
  mount --bind "$DIR/nodes/$node" "$DIR/tmp"
  with_pmix
  /usr/sbin/slurmd -D -N "$node" -f "$DIR/slurm.conf" &
  trap 'kill -TERM $!' TERM
  wait $!
}

start() {
  local node
  [ -n "$(running "$DIR/munge/pid")" ] || {
    rm -f "$DIR"/munge/socket*
    /usr/sbin/munged --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" --pid-file="$DIR/munge/pid" \
      --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed" --num-threads=2 9>&-
  }
  [ -n "$(running "$DIR/slurmctld.pid")" ] ||
    unshare --mount "$SELF" __control </dev/null >>"$DIR/log/control.log" 2>&1 9>&-
  { cat /etc/hosts; for node in $(nodes); do echo "127.0.0.1 $node"; done; } >"$DIR/hosts"
  for node in $(nodes); do
    [ -z "$(running "$DIR/$node.pid")" ] || continue
    mkdir -p "$DIR/nodes/$node" "$DIR/spool/$node"
    chmod 1777 "$DIR/nodes/$node"
    setsid unshare --uts --mount --ipc --pid --fork --kill-child --mount-proc "$SELF" __node "$node" "$DIR/" \
      </dev/null >>"$DIR/log/$node.log" 2>&1 9>&- &
    disown
    echo $! >"$DIR/$node.pid"
  done
}

nodes() { sed -n 's/^NodeName=\([^ ]*\).*/\1/p' "$DIR/slurm.conf"; }

# Wait until every node takes jobs.
await_nodes() {
  local try wanted ready=
  wanted=$(nodes | wc -l)
  for ((try = 0; try < 300; try++)); do
    ready=$(timeout 10 sinfo --noheader --Node --states=idle,mixed,allocated --format=%N 2>/dev/null | sort -u | wc -l)
    [ "$ready" -lt "$wanted" ] || return 0
    sleep 0.1
  done
  tail -n 15 "$DIR"/log/*.log >&2
  timeout 10 sinfo --list-reasons >&2 || true
  fail "$ready of $wanted nodes came up"
}

# --- commands -----------------------------------------------------------------------------------------------------

up() {
  [ ${#DIR} -le 60 ] || fail "$DIR: the path is too long for sockets below it (60 characters at most)"
  [[ $DIR =~ ^/[A-Za-z0-9._/+-]+$ ]] || fail "$DIR: Slurm's configuration takes no such path: letters, digits, . _ + - /"
  check_machine
  ulimit -c 0 # jobs have the daemons' limits here: no core files
  exec 9>"$LOCK"
  flock -w 300 9 || fail "somebody has held $LOCK for five minutes"
  install_packages
  configure
  export SLURM_CONF=$DIR/slurm.conf DIR
  start
  await_nodes
  exec 9>&-
  say "up: . $DIR/env.sh"
}

down() {
  [ -e "$DIR" ] || return 0
  [ -d "$DIR/munge" ] || [ -z "$(ls -A "$DIR")" ] || fail "$DIR: there is no cluster in it"
  end "$DIR"/n*.pid "$DIR/slurmctld.pid" "$DIR/munge/pid" # nodes first: what runs on them ends with them
  rm -rf "$DIR"
}

hold() {
  trap down EXIT
  up
  echo up
  cat >/dev/null
}

crash() {
  [ -n "$(running "$DIR/$1.pid")" ] || fail "there is no node $1 in $DIR"
  end "$DIR/$1.pid"
}

SELF=$(readlink -f "${BASH_SOURCE[0]}")
COMMAND=${1:-}
case $COMMAND in
  up | down | hold) DIR=$(readlink -m "${2:-/tmp/mpips-slurm}"); "$COMMAND" ;;
  crash) [ $# -ge 2 ] || fail "which node?"; DIR=$(readlink -m "${3:-/tmp/mpips-slurm}"); crash "$2" ;;
  __control) with_pmix; exec /usr/sbin/slurmctld -i -f "$DIR/slurm.conf" ;;
  __node) live_as "$2" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$SELF" >&2; exit 2 ;;
esac
