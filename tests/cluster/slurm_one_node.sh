#!/usr/bin/env bash
# A real Slurm of one node on a machine without systemd, to try array jobs on: as root, on Debian or Ubuntu. Not in CI.
#
#   tests/cluster/slurm_one_node.sh start /tmp/slurm     # installs what is missing, starts the daemons, waits for the node
#   export SLURM_CONF=/tmp/slurm/slurm.conf
#   flowprior tables --slurm job.sh && sbatch job.sh && squeue
#   tests/cluster/slurm_one_node.sh stop /tmp/slurm
#
# The folder holds configuration, state and logs of slurmctld and slurmd. The node has all cores of the machine and no
# GPU; jobs are neither limited nor isolated (no cgroups), and run as whoever submits them.
set -euo pipefail

action=${1:-} folder=$(realpath -m "${2:-/tmp/slurm}")
host=$(hostname -s)

start() {
  if ! command -v slurmctld slurmd munged > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge
  fi
  mkdir -p "$folder/state" "$folder/spool" "$folder/log"
  cat > "$folder/slurm.conf" <<EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
  export SLURM_CONF=$folder/slurm.conf
  mkdir -p /run/munge
  chown munge: /run/munge
  if ! munge -n > /dev/null 2>&1; then
    [ -s /etc/munge/munge.key ] || su -s /bin/sh munge -c mungekey || mungekey
    chown munge: /etc/munge/munge.key
    su -s /bin/sh munge -c "munged --pid-file=/run/munge/munged.pid"
  fi
  slurmctld
  slurmd
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%t 2> /dev/null)" != idle ] || break
    sleep 1
  done
  sinfo
  [ "$(sinfo --noheader --format=%t)" = idle ] || { tail "$folder"/log/*.log; exit 1; }
}

stop() {
  for daemon in slurmd slurmctld; do
    [ ! -f "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" || true
  done
  [ ! -f /run/munge/munged.pid ] || kill "$(cat /run/munge/munged.pid)" || true
}

case $action in
  start | stop) "$action" ;;
  *)
    sed -n '2,11p' "$0"
    exit 2
    ;;
esac
