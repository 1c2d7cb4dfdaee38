#!/usr/bin/env bash
# Score a model on one GPU:
#
#   sbatch --gpus=1 slurm/evaluate.sh RUN_DIR/model --retrieval DIR [--option value …]
#SBATCH --job-name=unibert-evaluate
#SBATCH --ntasks=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] slurm/evaluate.sh MODEL --retrieval DIR [--option value …]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh
trap remove_caches EXIT
srun "$venv/bin/python" -u -m unibert evaluate "$@"
