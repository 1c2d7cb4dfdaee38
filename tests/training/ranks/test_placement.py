"""A rank's place, its GPU, and whether it speaks for its machine, from the environment alone."""

import pytest

from tests.training.processes import placement
from unibert.errors import UserError
from unibert.training.ranks.placement import device_index, is_first_of_machine, place_from_environment


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (["MASTER_PORT"], "has RANK but MASTER_PORT is missing;"),
        (["LOCAL_RANK", "MASTER_ADDR"], "has RANK but LOCAL_RANK and MASTER_ADDR are missing;"),
    ],
)
def test_an_environment_that_lacks_a_variable(absent, said, monkeypatch):
    for name, value in placement(0, 2, 29500).items():
        monkeypatch.setenv(name, value)
    assert place_from_environment() == (0, 0, 2, 2)
    for name in absent:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=said):
        place_from_environment()


@pytest.mark.parametrize(
    ("environment", "local_rank", "num_visible", "index"),
    [
        ({}, 3, 8, 3),
        ({"SLURM_GPUS_ON_NODE": "8"}, 3, 8, 3),
        ({"SLURM_GPUS_ON_NODE": "8"}, 3, 1, 0),  # --gpus-per-task=1
        ({"SLURM_GPUS_PER_TASK": "a100:1"}, 3, 1, 0),
        ({"SLURM_GPUS_ON_NODE": "1"}, 3, 1, None),  # eight ranks for one GPU
        ({}, 3, 1, None),
        ({}, 3, 0, None),
        ({}, 0, 1, 0),
    ],
)
def test_the_gpu_of_a_rank(environment, local_rank, num_visible, index, monkeypatch):
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert device_index(local_rank, 8, num_visible) == index


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [
        ({}, True),
        ({"RANK": "3", "LOCAL_RANK": "3"}, False),
        # DeepSpeed's LOCAL_RANK is that of the device.
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "RANK": "3", "LOCAL_RANK": "0"},
            False,
        ),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}, False),
        # The deepspeed launcher, started on two nodes by srun.
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "RANK": "3", "LOCAL_RANK": "3"},
            False,
        ),
    ],
)
def test_the_rank_that_speaks_for_a_machine(environment, speaks, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_of_machine() is speaks
