# Common settings of the job scripts, which source this file in the folder they were submitted from.

[ ! -f slurm/site.env ] || . slurm/site.env
# A checkout has its environment in .venv; otherwise use the environment that was active when the job was submitted.
venv=${UNIBERT_VENV:-$PWD/.venv}
if [ -z "${UNIBERT_VENV:-}" ] && [ ! -x "$venv/bin/unibert" ] && found=$(command -v unibert); then
  venv=${found%/bin/unibert}
fi
# In a container (UNIBERT_SRUN_ARGS), that environment may exist for the ranks alone.
[ -x "$venv/bin/python" ] || [ -n "${UNIBERT_SRUN_ARGS:-}" ] || { echo "slurm: no virtual environment in $venv; activate the one with UniBERT before sbatch, or set UNIBERT_VENV" >&2; exit 1; }

# Since Slurm 22.05, srun no longer inherits the job's --cpus-per-task.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# By default, each rank would start one thread per core of its node.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# With WARN, NCCL reports only which peer or device failed. Set network interfaces in site.env.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# An asynchronous NCCL error ends the rank, so that srun ends the others; UniBERT's watchdog covers errors NCCL misses.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}

# Cache compiled kernels on the node's own disk, since ranks in a shared home would wait for each other's locks. Each job
# has its own cache, since a killed job may leave a lock or a partial file behind.
job_cache=${UNIBERT_CACHE:-/tmp}/unibert-$SLURM_JOB_ID
export TRITON_CACHE_DIR=$job_cache/triton TORCHINDUCTOR_CACHE_DIR=$job_cache/inductor TORCH_EXTENSIONS_DIR=$job_cache/extensions
remove_caches() { srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 rm -rf "$job_cache" || true; }
