#!/usr/bin/env bash
# Pre-train on any number of nodes, one task per GPU, with no ssh and no hostfile:
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 slurm/pretrain.sh RUN.yaml [--dotted.override value …]
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
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# srun starts the ranks without a launcher: a signal would kill the launcher and leave its ranks running.
all_ranks() {
  srun --kill-on-bad-exit=1 "$venv/bin/python" -u -m unibert "$@" &
  while kill -0 $! 2>/dev/null; do wait $! || true; done # a signal interrupts wait, not the job step
  wait $!
}
# Only ARRAY_TASK identifies a single task of an array: the job id of its last task is also the id of the whole array.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
trap 'scancel --signal=USR1 "$job"' USR1

status=0
all_ranks preflight "$@" && all_ranks pretrain "$@" || status=$?
echo "slurm/pretrain.sh: ended with status $status"
case $status in
  0 | 1) remove_caches ;; # complete, or a mistake that another start would repeat
  *) scontrol requeue "$job" ;; # stopped (75), or ranks were killed or hang; preflight limits such restarts
esac
exit "$status"
