#!/usr/bin/env bash
# Run a benchmark on one node, preferably exclusively:
#
#   sbatch --exclusive --gpus=1 slurm/bench.sh kernels|stream|gpu [--option value …]
#SBATCH --job-name=unibert-bench
#SBATCH --ntasks=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] slurm/bench.sh kernels|stream|gpu [--option value …]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh
trap remove_caches EXIT
srun "$venv/bin/python" -u -m unibert bench "$@"
