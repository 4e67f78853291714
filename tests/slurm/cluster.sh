#!/usr/bin/env bash
# A Slurm cluster of this machine alone, for tests: two processors, two GPUs in name, no cgroups. Needs root.
#
#     eval "$(tests/slurm/cluster.sh start [FOLDER])"    # sets SLURM_CONF; FOLDER is made where none is given
#     tests/slurm/cluster.sh status [FOLDER]
#     tests/slurm/cluster.sh stop [FOLDER]               # ends jobs and daemons, and removes FOLDER
#
# Without FOLDER, status and stop take that of SLURM_CONF. Daemons that cannot start say why in FOLDER/*.log.
set -euo pipefail

fail() { echo "cluster.sh: $*" >&2; exit 1; }

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }

needed() {
    local pair
    for pair in slurmctld:slurm-wlm slurmd:slurm-wlm squeue:slurm-wlm munged:munge; do
        PATH="$PATH:/usr/sbin" command -v "${pair%:*}" > /dev/null ||
            fail "${pair%:*} is not installed; apt-get install -y --no-install-recommends slurm-wlm munge"
    done
    [ "$(id -u)" = 0 ] || fail "the daemons start jobs as any user; run as root"
}

free_ports() {
    python3 -c 'import socket
found = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in found))'
}

configure() {
    local control node name
    read -r control node < <(free_ports)
    name=$(hostname -s)
    head -c 1024 /dev/urandom > munge.key
    chmod 600 munge.key
    mkdir -p state spool
    # A job that was sent back starts again after cred_expire; config_overrides: what the machine has is not looked at.
    printf 'Name=gpu File=/dev/%s\n' null zero > gres.conf
    cat > slurm.conf <<CONF
ClusterName=tests
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$control
SlurmdPort=$node
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$PWD/munge.socket,cred_expire=5
StateSaveLocation=$PWD/state
SlurmdSpoolDir=$PWD/spool
SlurmctldPidFile=$PWD/slurmctld.pid
SlurmdPidFile=$PWD/slurmd.pid
SlurmctldLogFile=$PWD/slurmctld.log
SlurmdLogFile=$PWD/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=5
UnkillableStepTimeout=600
MinJobAge=86400
NodeName=$name NodeAddr=127.0.0.1 CPUs=2 RealMemory=65536 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

runs() { grep -aq "$1" "/proc/$2/cmdline" 2> /dev/null; }  # one that ended and was not waited for has no command line

alive() { [ -s "$1.pid" ] && runs "$1" "$(cat "$1.pid")"; }

ready() { [ "$(timeout 10 sinfo --noheader --format=%T 2> /dev/null | grep -cE '^(idle|mixed|allocated)')" = 1 ]; }

start() {
    needed
    local folder=${1:-$(mktemp -d -t slurm.XXXXXX)}
    mkdir -p "$folder"
    cd "$folder"
    [ -e slurm.conf ] || configure
    export SLURM_CONF=$PWD/slurm.conf PATH=$PATH:/usr/sbin
    # --force: temporary folders are nobody else's
    alive munged || munged --key-file="$PWD/munge.key" --socket="$PWD/munge.socket" --pid-file="$PWD/munged.pid" \
        --log-file="$PWD/munged.log" --seed-file="$PWD/munge.seed" --num-threads=2 --force >&2
    alive slurmctld || slurmctld >&2
    alive slurmd || slurmd >&2
    for _ in $(seq 60); do
        if ready; then
            printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
            return
        fi
        sleep 1
    done
    tail -n 5 ./*.log >&2
    fail "the node was not ready within a minute; see $PWD/*.log"
}

stop() {
    cd "$1"
    export SLURM_CONF=$PWD/slurm.conf
    if alive slurmctld && ready; then
        timeout 10 scancel --user=root || true
        for _ in $(seq 20); do [ -n "$(timeout 10 squeue --noheader)" ] || break; sleep 1; done
    fi
    local daemon number
    for daemon in slurmd slurmctld munged; do
        alive $daemon || continue
        number=$(cat $daemon.pid)
        kill "$number"
        for _ in $(seq 50); do runs $daemon "$number" || continue 2; sleep 0.2; done
        kill -KILL "$number" || true
    done
    cd /
    rm -rf "$1"
}

folder() {  # that of a cluster, as a whole path
    local given=${1:-$(dirname "${SLURM_CONF:-}")}
    [ -e "$given/munge.key" ] || fail "$given holds no cluster of this command; give the FOLDER that it was started in"
    (cd "$given" && pwd)
}

case ${1:-} in
    start) start "${@:2:1}" ;;
    status)
        where=$(folder "${@:2:1}")
        SLURM_CONF=$where/slurm.conf timeout 10 sinfo
        ;;
    stop)
        where=${2:-$(dirname "${SLURM_CONF:-}")}
        [ ! -e "$where" ] || { where=$(folder "$where") && stop "$where"; }
        ;;
    *) usage ;;
esac
