#!/usr/bin/env bash
# Pre-train on any number of nodes, one task per GPU, with no ssh and no hostfile:
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=4 slurm/pretrain.sh RUN.yaml [--dotted.override value …]
#
# Submit from a folder in which that path leads to this script. Set partition, account and time with sbatch options or
# in slurm/site.env. The job requeues itself until the run is complete; see docs/slurm.md.
#SBATCH --job-name=unibert
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# On preemption and three minutes before the time limit, Slurm signals this shell; its trap makes the ranks save and stop.
#SBATCH --signal=B:USR1@180

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] slurm/pretrain.sh RUN.yaml [--dotted.override value …]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh

# The ranks meet on the job's first node. The port comes from the job id, so that jobs on the same node do not collide.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${nodes%%$'\n'*}
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# srun starts the ranks without a launcher: a signal would kill the launcher and leave its ranks running.
all_ranks() {
  # shellcheck disable=SC2086 # the site's options are words
  srun --kill-on-bad-exit=1 ${UNIBERT_SRUN_ARGS:-} "$venv/bin/python" -u -m unibert "$@" &
  while kill -0 $! 2>/dev/null; do wait $! || true; done # a signal interrupts wait, not the job step
  wait $!
}
# Only ARRAY_TASK identifies a single task of an array: the job id of its last task is also the id of the whole array.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
trap 'scancel --signal=USR1 "$job"' USR1

again() {
  if [ "${UNIBERT_REQUEUE:-yes}" = no ]; then
    echo "slurm/pretrain.sh: submit the same command again to continue (UNIBERT_REQUEUE=no)"
  else
    scontrol requeue "$job"
  fi
}

status=0 phase=preflight
all_ranks preflight "$@" && phase=pretrain && all_ranks pretrain "$@" || status=$?
echo "slurm/pretrain.sh: ended with status $status"
case $phase-$status in
  # Complete; or a mistake, or a program that cannot run, as another start would find again.
  *-0 | *-1 | *-2 | *-126 | *-127) remove_caches ;;
  # Stopped (75), or ranks were killed or hang. Preflight limits such restarts,
  pretrain-* | *-75 | *-76) again ;;
  # unless it crashes itself.
  *)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${UNIBERT_MAX_RESTARTS:-10}" ]; then
      again
    else
      echo "slurm/pretrain.sh: preflight crashed after $SLURM_RESTART_COUNT restarts (UNIBERT_MAX_RESTARTS); not requeued"
      remove_caches
    fi
    ;;
esac
exit "$status"
