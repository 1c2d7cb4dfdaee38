#!/usr/bin/env bash
# Work on a study with an array of jobs of one GPU, each of which does its share:
#
#   sbatch --array=0-7 --gpus=1 slurm/study.sh STUDY.yaml [--processes N]
#
# The same command goes on with what is left. `unibert study report STUDY.yaml` then compares the arms.
#SBATCH --job-name=unibert-study
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
# On preemption and three minutes before the time limit, Slurm signals the step; its trainings save and stop.
#SBATCH --signal=USR1@180

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch --array=0-N [options] slurm/study.sh STUDY.yaml [--processes N]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh
part=${SLURM_ARRAY_TASK_ID:-0}/${SLURM_ARRAY_TASK_COUNT:-1}
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
status=0
srun "$venv/bin/python" -u -m unibert study "$@" --part "$part" || status=$?
case $status in
  75) scontrol requeue "$job" ;; # stopped, and can go on
  *) remove_caches ;;
esac
exit "$status"
