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
# On preemption and three minutes before the time limit, the study's trainings save and stop.
#SBATCH --signal=USR1@180

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch --array=0-N [options] slurm/study.sh STUDY.yaml [--processes N]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh
trap remove_caches EXIT
# The trainings are single processes, which would take Slurm's variables for those of ranks.
part=${SLURM_ARRAY_TASK_ID:-0}/${SLURM_ARRAY_TASK_COUNT:-1}
srun --export=ALL "$venv/bin/python" -u -m unibert study "$@" --part "$part"
