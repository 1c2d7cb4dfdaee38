"""What the processes of a run import, which takes them longer than a short run: imported once by the server that forks
them for the tests."""

import os

# Threads are counted as torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"
# Without it torch would ask for GPUs in a way that its forks could not use them after.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
import transformers.models.modernbert.modeling_modernbert  # noqa: F401

import unibert.training.loop
import unibert.training.retrieval  # noqa: F401
