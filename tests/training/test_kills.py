"""A run that is killed again and again, in its checkpoints' writing too, is the run that was left alone."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.training.compare import lines_without_timing
from tests.training.processes import fork_ranks, statuses, wait_for_line
from unibert.training.checkpoint.folder import complete_checkpoints, describe
from unibert.training.ranks.failures import EXIT_LOST_RANKS

# Large enough that a checkpoint of it is being written for most of the run: 4 million parameters, a checkpoint every
# other step.
SETTINGS = [
    '--model.config={"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}',
    "--training.checkpoint_every=2",
    "--training.keep_checkpoints=2",
    "--training.evaluate_every=0",
    "--training.ds_config=zero1",
]
MAX_LIFE = 6
"""Steps after a start's first, however long they take on this machine. Four of them leave a checkpoint for certain,
since one that begins waits for the one before."""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fifteen_kills_at_random_moments(run_file, tmp_path):
    moments = random.Random(0)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    words = ["pretrain", str(run_file), *SETTINGS, f"--training.tokens={200 * 8 * 64}"]
    printed = tmp_path / "printed.txt"
    checkpoints, metrics = killed / "checkpoints", killed / "metrics.jsonl"
    half_written, resumed_from = 0, []
    # Fifteen, and more where few of them met a checkpoint half written.
    for kill in range(40):
        if kill >= 15 and half_written >= 3:
            break
        before = newest_step(checkpoints)
        # What the last sitting wrote after its newest checkpoint is read once more before the first step.
        forgotten = metrics.stat().st_mtime_ns if metrics.exists() else 0
        ranks = fork_ranks([*words, f"--run_dir={killed}"], 2, printed)
        while forgotten and metrics.stat().st_mtime_ns == forgotten:
            assert ranks[0].is_alive(), printed.read_text()
            time.sleep(0.01)
        wait_for_line(metrics, step=before + 1)
        began = time.monotonic()
        wait_for_line(metrics, step=before + 1 + moments.randrange(MAX_LIFE))
        time.sleep(moments.uniform(0, 1) * max(0.1, (time.monotonic() - began) / MAX_LIFE))
        victims = ((0,), (1,), (0, 1))[kill % 3]
        for victim in victims:
            ranks[victim].kill()
        ended = statuses(ranks, timeout=200)
        assert ended == [-signal.SIGKILL if rank in victims else EXIT_LOST_RANKS for rank in (0, 1)], (
            printed.read_text()
        )
        half_written += any(checkpoints.glob(".partial-step-*"))
        for checkpoint in complete_checkpoints(checkpoints):
            assert describe(checkpoint)["files"]
        resumed_from.append(newest_step(checkpoints))
    # It gets on, some kills met a checkpoint half written, and nothing was ever damaged.
    assert resumed_from == sorted(resumed_from)
    assert resumed_from[-1] >= 10
    assert half_written >= 3
    assert not list(checkpoints.glob("damaged-*"))

    seen = lines_without_timing(killed)
    assert [line["step"] for line in seen] == list(range(1, len(seen) + 1))
    # The same run left alone, for as far as the killed one has come.
    ranks = fork_ranks([*words, f"--run_dir={undisturbed}"], 2, printed)
    wait_for_line(undisturbed / "metrics.jsonl", step=len(seen))
    for rank in ranks:
        rank.kill()
        rank.join()
    assert lines_without_timing(undisturbed)[: len(seen)] == seen


def newest_step(checkpoints: Path) -> int:
    found = complete_checkpoints(checkpoints)
    return describe(found[-1])["step"] if found else 0
