#!/usr/bin/env bash
# A real SLURM on this machine: Debian's munged, slurmctld and N slurmd, each node with its own hostname and address, and
# with eight GPUs that are copies of /dev/null: jobs hold them and see them in CUDA_VISIBLE_DEVICES, and torch finds none.
#
#   slurm_cluster.sh up FOLDER N         start node1..nodeN and say `ready`; all of it ends when standard input ends
#   slurm_cluster.sh enter FOLDER COMMAND...   run sbatch, scontrol, ... on the controller's host
#   slurm_cluster.sh crash FOLDER NODE   power cut: the network first, so that nobody hears a goodbye, then every process
#   slurm_cluster.sh start FOLDER NODE   switch a crashed node on again
#   slurm_cluster.sh down FOLDER         end a cluster from outside
#
# The controller's host is one network, PID, mount and hostname namespace, every node another inside it. Nothing
# outside sees their addresses, so any number of clusters run side by side; when the outer namespace's first process
# ends, the kernel ends every process and takes every interface away: there is nothing to leave behind but FOLDER.
# The file system is shared, as over NFS. Needs root. No accounting: finished jobs are in `scontrol show job`.
set -euo pipefail
umask 022
self=$(realpath "$0")
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
NET=10.77.0
CPUS_PER_NODE=64
GPUS_PER_NODE=8

die() { echo "slurm_cluster.sh: $*" >&2; exit 1; }

await() { # SECONDS WHAT COMMAND...: until the command succeeds
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "$what did not come up; see $folder/log"
        sleep 0.1
    done
}

check_parts() { # one line that names what is missing
    local command
    [ "$(id -u)" -eq 0 ] || die "needs root"
    for command in slurmctld slurmd sbatch munged unshare nsenter ip pgrep; do
        command -v $command >/dev/null || die "$command is not installed (slurm-wlm munge iproute2 procps util-linux)"
    done
    mknod "$folder/try" c 1 3 2>/dev/null || die "may not make device files here"
    rm "$folder/try"
    unshare --net --pid --mount --uts --ipc --fork --mount-proc ip link add name try type bridge 2>/dev/null ||
        die "may not make namespaces or network bridges here"
}

write_config() { # N
    local number
    mkdir -p "$folder"/{log,pids,state,spool}
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    {
        echo "127.0.0.1 localhost"
        echo "$NET.254 head"
        for ((number = 1; number <= $1; number++)); do echo "$NET.$number node$number"; done
    } >"$folder/hosts"
    # SLURM numbers GPUs by their files, which must be devices of their own: with plain ones CUDA_VISIBLE_DEVICES stays unset.
    for ((number = 0; number < GPUS_PER_NODE; number++)); do mknod -m 666 "$folder/gpu$number" c 1 3; done
    echo "NodeName=node[1-$1] Name=gpu File=$folder/gpu[0-$((GPUS_PER_NODE - 1))]" >"$folder/gres.conf"
    # cred_expire (5 or more) is also how long a requeued job waits; the timeouts are short so that a death is noticed in half a minute.
    cat >"$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=head($NET.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/pids/slurmctld
SlurmdPidFile=$folder/pids/slurmd-%n
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
DefMemPerCPU=10
MaxArraySize=8
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
NodeName=node[1-$1] NodeAddr=$NET.[1-$1] CPUs=$CPUS_PER_NODE RealMemory=1000 Gres=gpu:$GPUS_PER_NODE
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF DefaultTime=60
PartitionName=spare Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 DefaultTime=60
CONF
}

host() { # NAME ADDRESS DEVICE: what every host of the cluster sets up in its namespaces
    hostname "$1"
    mount --bind "$folder/hosts" /etc/hosts
    mount -t tmpfs -o mode=1777 shm /dev/shm
    ip link set lo up
    ip addr add "$2/24" dev "$3"
    ip link set "$3" up
}

apart() { # COMMAND...: becomes it, in namespaces of its own that end with it
    exec unshare --net --pid --mount --uts --ipc --fork --kill-child --mount-proc -- "$@"
}

nodes_ready() { # N
    [ "$(timeout 5 sinfo --noheader --Node --partition=gpu --format=%T | grep -c '^idle$')" -eq "$1" ]
}

start_node() { # NODE: its first process, then its cable
    local node=$1 outer inner
    apart "$self" as_node "$folder" "$node" </dev/null >>"$folder/log/$node.out" 2>&1 &
    outer=$!
    echo "$outer" >"$folder/pids/$node"
    await 10 "$node" pgrep -P "$outer"
    inner=$(pgrep -P "$outer")
    ip link add "to_$node" type veth peer name eth0 netns "$inner"
    ip link set "to_$node" master nodes up
}

as_node() { # NODE: the first process of a node, which collects orphans and lives as long as its slurmd
    await 10 "network of $1" ip link show eth0
    host "$1" "$NET.${1#node}" eth0
    slurmd -D -b # as after a reboot: what ran here before is requeued
}

as_head() { # N: the first process of the cluster
    local number
    ip link add nodes type bridge
    host head "$NET.254" nodes
    munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/pids/munged" --seed-file="$folder/munge.seed" --log-file="$folder/log/munged.log" \
        </dev/null >>"$folder/log/munged.log" 2>&1 &
    await 10 munged munge --socket="$folder/munge.socket" --no-input
    slurmctld -D </dev/null >>"$folder/log/slurmctld.out" 2>&1 &
    await 30 slurmctld timeout 5 scontrol ping
    for ((number = 1; number <= $1; number++)); do start_node "node$number"; done
    await 60 "every node" nodes_ready "$1"
    echo ready
    cat >/dev/null
}

up() { # N
    [[ ${1:-} =~ ^[1-9][0-9]?$ ]] || die "up FOLDER N: N is 1 to 99"
    check_parts
    write_config "$1"
    echo $$ >"$folder/pids/cluster"
    apart "$self" as_head "$folder" "$1"
}

enter() { # COMMAND...
    local outer
    outer=$(cat "$folder/pids/cluster" 2>/dev/null) || die "$folder: no cluster is up"
    exec nsenter --target "$(pgrep -P "$outer")" --mount --uts --ipc --net --pid --wd="$PWD" -- "$@"
}

inside() { [ "$(hostname)" = head ] || enter "$self" "$@"; }

crash() { # NODE
    inside crash "$folder" "$1"
    ip link del "to_$1"
    kill -s KILL "$(cat "$folder/pids/$1")"
}

start() { # NODE
    inside start "$folder" "$1"
    start_node "$1"
}

down() {
    local outer
    outer=$(cat "$folder/pids/cluster" 2>/dev/null) || return 0
    kill -s KILL "$(pgrep -P "$outer")" 2>/dev/null || true
}

action=${1:-help}
case $action in
    up | enter | crash | start | down | as_head | as_node) ;;
    *) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$self"; exit 2 ;;
esac
folder=${2:?names no folder}
mkdir -p "$folder"
folder=$(realpath "$folder")
export SLURM_CONF=$folder/slurm.conf
"$action" "${@:3}"
