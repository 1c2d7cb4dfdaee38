#!/usr/bin/env bash
# Pre-train on any number of nodes, one task per GPU, with no ssh and no hostfile:
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 slurm/pretrain.sh RUN.yaml [--dotted.override value …]
#
# Partition, account and time are ordinary sbatch options. Submit from the repository's folder; the virtual environment
# is .venv there, or the one that UNIBERT_VENV names. The same command continues a run that was cut off.
#SBATCH --job-name=unibert
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# A minute and a half before the time limit the ranks are asked to save a checkpoint and stop.
#SBATCH --signal=B:USR1@90

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch [options] slurm/pretrain.sh RUN.yaml [--dotted.override value …]" >&2; exit 1; }
cd "$SLURM_SUBMIT_DIR"
venv=${UNIBERT_VENV:-.venv}
[ -x "$venv/bin/python" ] || { echo "slurm/pretrain.sh: no virtual environment in $venv; make one with 'make demo' or set UNIBERT_VENV" >&2; exit 1; }

# The ranks meet on the job's first node; the port comes from the job id, so that jobs that share a node do not collide.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

srun --kill-on-bad-exit=1 "$venv/bin/python" -u -m unibert pretrain "$@" &
step=$!

# The batch shell gets the signal; only ranks started by srun directly can be told.
trap 'scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
while kill -0 "$step" 2>/dev/null; do wait "$step" && status=0 || status=$?; done
exit "${status:-1}"
