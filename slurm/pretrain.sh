#!/usr/bin/env bash
# Pre-train on any number of nodes, one task per GPU, with no ssh and no hostfile:
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 slurm/pretrain.sh RUN.yaml [--dotted.override value …]
#
# Submit where that path leads to this script. Partition, account and time are sbatch options or stand in
# slurm/site.env.
# The job puts itself back into the queue until the run is complete: docs/slurm.md.
#SBATCH --job-name=unibert
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Three minutes before the time limit, or when preempted, this shell is told, and tells the ranks to save and stop.
#SBATCH --signal=B:USR1@180

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] slurm/pretrain.sh RUN.yaml [--dotted.override value …]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh

# The ranks meet on the job's first node; the port comes from the job id, so that jobs that share a node do not collide.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# Plain ranks, with no launcher between them and srun: a launcher that is signalled dies and leaves its ranks running.
all_ranks() {
  srun --kill-on-bad-exit=1 "$venv/bin/python" -u -m unibert "$@" &
  while kill -0 $! 2>/dev/null; do wait $! || true; done # a signal ends wait, not the step
  wait $!
}
# One task of an array goes by that name alone: the job id of its last task is the id of the whole array too.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
trap 'scancel --signal=USR1 "$job"' USR1

status=0
all_ranks preflight "$@" && all_ranks pretrain "$@" || status=$?
echo "slurm/pretrain.sh: ended with status $status"
case $status in
  0 | 1) remove_caches ;; # complete, or a mistake that another start would only repeat
  *) scontrol requeue "$job" ;; # stopped (75), or ranks were killed or hang: preflight counts such starts
esac
exit "$status"
