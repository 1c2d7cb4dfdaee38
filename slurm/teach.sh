#!/usr/bin/env bash
# Write a teacher's vectors into a corpus, with one rank per GPU and one that coordinates them:
#
#   sbatch --gpus-per-node=8 --ntasks-per-node=9 slurm/teach.sh CORPUS --teacher MODEL --output DIR --sequence_length N
#
# This needs the MPI of slurm/corpus.sh. The same command goes on with an interrupted one.
#SBATCH --job-name=unibert-teach
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] slurm/teach.sh CORPUS --teacher MODEL --output DIR --sequence_length N [--option value …]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh
export PATH=$venv/bin:$PATH
exec mpirun -n "$SLURM_NTASKS" "$venv/bin/python" -m unibert corpus teach "$@"
