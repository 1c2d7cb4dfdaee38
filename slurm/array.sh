#!/usr/bin/env bash
# Pre-train several run files as an array; each task runs slurm/pretrain.sh with the nodes and GPUs given here:
#
#   sbatch --array=0-2 [options] slurm/array.sh RUN_A.yaml RUN_B.yaml RUN_C.yaml [-- --dotted.override value …]
#
# Overrides apply to all runs. Set run_dir in each file, since runs cannot share it. --array=0-2%1 runs one at a time.
#SBATCH --job-name=unibert-array
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180

set -euo pipefail
stop() { echo "slurm/array.sh: $1" >&2; exit 1; }
runs=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do runs+=("$1"); shift; done
[ $# -eq 0 ] || shift
[ ${#runs[@]} -ge 1 ] || stop "usage: sbatch --array=0-N [options] slurm/array.sh RUN.yaml … [-- --dotted.override value …]"
last=$((${#runs[@]} - 1)) index=${SLURM_ARRAY_TASK_ID:-none}
[[ $index =~ ^[0-9]+$ && $index -le $last ]] || stop "array index $index has no run file; give sbatch --array=0-$last"
[[ " $*" != *" --run_dir"* ]] || stop "--run_dir would be the same for all runs; set run_dir in each file"
cd "$SLURM_SUBMIT_DIR"
exec slurm/pretrain.sh "${runs[$index]}" "$@"
