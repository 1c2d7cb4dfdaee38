"""A mistake that one rank alone has met ends all of them with its status, and no launcher has to see to that."""

import re
import resource

import pytest

from tests.training.compare import lines_without_timing
from tests.training.processes import fork_ranks, start_without_launcher, statuses, wait_for_line
from unibert.training.checkpoint.folder import complete_checkpoints, step_of

LIMIT_BYTES = 2 << 30
"""A start of a rank takes 1.3 GiB of addresses."""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_memory_says_so_and_the_other_ends_alike(rank, run_file, tmp_path):
    # 262,144 tokens in one micro-batch, of which the feed-forward layers alone keep some GiB.
    words = [
        "pretrain",
        str(run_file),
        "--training.global_batch_size=8192",
        "--training.micro_batch_size=4096",
        f"--training.tokens={8192 * 64}",
    ]
    printed = tmp_path / "printed.txt"
    limit = {rank: lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))}
    ranks = start_without_launcher(words, 2, printed, limit)
    ended = [one.wait(timeout=120) for one in ranks]
    output = printed.read_text()
    assert ended == [1, 1], output
    [sentence] = re.findall("unibert: error: .*", output)
    assert re.fullmatch(
        rf"unibert: error: rank {rank} \(\S+\): the machine's memory is used up; lower training.micro_batch_size \(now "
        r"4096\), which leaves the batches as they are, or lower stream.num_workers or stream.window_shards",
        sentence,
    )
    assert "Traceback" not in output


@pytest.mark.slow
def test_no_checkpoint_is_ahead_of_metrics_that_could_not_be_written(run_file, tmp_path):
    undisturbed, run_dir = tmp_path / "undisturbed", tmp_path / "run"
    words = ["pretrain", str(run_file), "--training.checkpoint_every=1", f"--training.tokens={60 * 8 * 64}"]
    metrics, aside, printed = run_dir / "metrics.jsonl", tmp_path / "metrics.jsonl", tmp_path / "printed.txt"
    ranks = fork_ranks([*words, f"--run_dir={run_dir}"], 2, printed)
    wait_for_line(metrics, step=5)
    # The same file by another name, and a full disk in its place.
    aside.hardlink_to(metrics)
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    full.replace(metrics)
    # A rank that nobody ended would wait for a collective for 15 minutes.
    ended = statuses(ranks, timeout=120)
    output = printed.read_text()
    assert ended == [1, 1], output
    assert re.findall("unibert: error: .*", output) == [
        f"unibert: error: rank 0: {metrics}: cannot be written (No space left on device); fix that, and the same "
        "command continues from the newest checkpoint"
    ]
    assert "Traceback" not in output
    aside.replace(metrics)
    newest = step_of(complete_checkpoints(run_dir / "checkpoints")[-1])
    assert newest <= [line["step"] for line in lines_without_timing(run_dir) if "loss" in line][-1]
    for folder in (run_dir, undisturbed):
        ranks = fork_ranks([*words, f"--run_dir={folder}"], 2, printed)
        assert statuses(ranks, timeout=200) == [0, 0], printed.read_text()
    assert lines_without_timing(run_dir) == lines_without_timing(undisturbed)
