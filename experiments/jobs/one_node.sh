#!/bin/bash
# Starts a Slurm cluster of one node on this machine, to try job scripts, as root:
#
#   apt-get install slurm-wlm munge
#   source experiments/jobs/one_node.sh start /tmp/slurm
#   sbatch ...; squeue; scontrol show job 1; cat /tmp/slurm/slurmctld.log
#   bash experiments/jobs/one_node.sh stop /tmp/slurm
#
# All of it stays in the folder: nothing in /etc is read or changed. `start` exports SLURM_CONF, by
# which the commands of Slurm find the cluster. Jobs that are requeued wait 10 s, not two minutes.

action=$1 folder=$2 node=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf
case $action in
start)
    mkdir -p "$folder"/{state,spool}
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 700 "$folder/state" && chmod 600 "$folder/munge.key"
    cat >"$SLURM_CONF" <<EOF
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-6817}
SlurmdPort=${SLURMD_PORT:-6818}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobRequeue=1
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed"
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N "$node"
    for _ in $(seq 60); do
        sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
        sleep 1
    done
    sinfo
    ;;
stop)
    for daemon in slurmd slurmctld munged; do
        [ -f "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")"
    done
    true
    ;;
*)
    echo "usage: source one_node.sh start|stop FOLDER" >&2
    false
    ;;
esac
