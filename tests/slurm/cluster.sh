#!/usr/bin/env bash
# A temporary SLURM cluster on one Debian machine, as root, for the tests beside this file: two nodes of 4 CPUs
# and 2 "GPUs" (device files that nothing reads) each, accounting, and a partition `urgent` that preempts `gpu`.
#   cluster.sh start | stop | accounting on|off | node NAME kill|start
# It writes only into $SLURM_LAB (default /tmp/slurm-lab); $SLURM_CONF must be $SLURM_LAB/slurm.conf.
set -euo pipefail
lab=${SLURM_LAB:-/tmp/slurm-lab}
export SLURM_CONF=$lab/slurm.conf

configuration() {
  cat <<EOF
ClusterName=lab
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$lab/ctld
SlurmdSpoolDir=$lab/spool/%n
SlurmctldPidFile=$lab/run/slurmctld.pid
SlurmdPidFile=$lab/run/slurmd-%n.pid
SlurmctldLogFile=$lab/log/slurmctld.log
SlurmdLogFile=$lab/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
KillWait=30
MaxArraySize=301
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/linux
NodeName=n[1-2] NodeHostname=localhost Port=[17001-17002] CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
$1
EOF
}

accounts="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStorageTRES=gres/gpu"

wait_for() { for _ in $(seq 60); do "$@" >/dev/null 2>&1 && return 0; sleep 0.5; done; echo "timed out: $*" >&2; return 1; }

end() { # stop the daemon whose pid is in a file
  [ -f "$1" ] || return 0
  kill "$(cat "$1")" 2>/dev/null || true
  for _ in $(seq 40); do kill -0 "$(cat "$1" 2>/dev/null)" 2>/dev/null || return 0; sleep 0.25; done
}

install() {
  command -v slurmctld >/dev/null && command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm slurmdbd munge mariadb-server >/dev/null
}

accounting_daemons() {
  cat >"$lab/slurmdbd.conf" <<EOF
AuthType=auth/munge
DbdHost=localhost
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$lab/log/slurmdbd.log
PidFile=$lab/run/slurmdbd.pid
EOF
  chmod 600 "$lab/slurmdbd.conf"
  if ! mysqladmin ping >/dev/null 2>&1; then
    setsid mariadbd --user=mysql --innodb-buffer-pool-size=64M >"$lab/log/mariadb.log" 2>&1 </dev/null &
    echo $! >"$lab/run/mariadbd.pid"
    wait_for mysqladmin ping
  fi
  mysql -e "drop database if exists slurm_acct_db; create database slurm_acct_db; create or replace user 'slurm'@'localhost' identified by 'slurm'; grant all on slurm_acct_db.* to 'slurm'@'localhost';"
  slurmdbd
  wait_for sacctmgr -n show cluster
  sacctmgr -n show cluster lab | grep -q lab || sacctmgr -i add cluster lab >/dev/null
}

start() {
  install
  mkdir -p "$lab"/{ctld,spool,log,run} /run/munge /run/mysqld
  chown munge /run/munge && chown mysql /run/mysqld
  configuration "$accounts" >"$SLURM_CONF"
  printf 'NodeName=n%s Name=gpu File=%s\n' 1 /dev/null 1 /dev/zero 2 /dev/null 2 /dev/zero >"$lab/gres.conf"
  pgrep -x munged >/dev/null || su munge -s /bin/sh -c /usr/sbin/munged
  accounting_daemons
  slurmctld
  wait_for scontrol ping
  slurmd -N n1
  slurmd -N n2
  wait_for idle
}

idle() { [ "$(sinfo -h -t idle -o %D | head -1)" = 2 ]; }

nobody() { [ -z "$(squeue -h)" ]; }

accounting() {
  end "$lab/run/slurmctld.pid"
  if [ "$1" = on ]; then configuration "$accounts"; else configuration ""; fi >"$SLURM_CONF"
  slurmctld
  wait_for scontrol ping
}

node() {
  if [ "$2" = kill ]; then
    kill -KILL "$(cat "$lab/run/slurmd-$1.pid")"
    pkill -KILL -f "slurmstepd: .*" || true
  else
    slurmd -N "$1"
  fi
}

stop() {
  scancel -u root 2>/dev/null && wait_for nobody || true
  for name in slurmd-n1 slurmd-n2 slurmctld slurmdbd mariadbd; do end "$lab/run/$name.pid"; done
}

case ${1:-} in
start) start ;;
stop) stop ;;
accounting) accounting "$2" ;;
node) node "$2" "$3" ;;
*) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
