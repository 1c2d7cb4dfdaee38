"""Runs over damaged shards, over a server that vanishes, and without their loader process."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import start
from tests.training.processes import start_without_launcher, wait_for_line
from unibert.corpus.manifest import Manifest

# One of the corpus's six blocks may be damaged.
SOME = "--stream.max_damaged_share=0.1"


def flip_a_bit(shard: Path) -> None:
    """In the tokens of the first block: behind a tar header of 512 bytes and a .npy header of 128."""
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)


def metrics(run_dir: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_a_little_damage_is_told_counted_and_left_out(run_file, own_corpus, unibert):
    shard = Manifest.load(own_corpus).shards_of("en")[0]
    flip_a_bit(own_corpus / shard.path)
    status, output = unibert("pretrain", str(run_file), f"--corpus={own_corpus}", SOME)
    assert status == 0, output
    sentence = "content differs from the manifest's digest; copy it again; its damaged blocks will be skipped"
    assert output.count(f"unibert: {own_corpus / shard.path}: {sentence}") == 1
    counted = [line["skipped_blocks"] for line in metrics(run_file.parent / "run")]
    assert counted[-1].keys() == {shard.path}
    # It was met again in every epoch.
    assert counted[-1][shard.path] > 1


def test_damage_beyond_the_limit_is_refused_before_the_start(run_file, own_corpus, unibert):
    for code in ("en", "ru"):
        flip_a_bit(own_corpus / Manifest.load(own_corpus).shards_of(code)[0].path)
    status, output = unibert("pretrain", str(run_file), f"--corpus={own_corpus}", "--stream.max_damaged_share=0")
    assert status == 1
    assert "copy it again; in all, 2 shards with 2 blocks are damaged, and stream.max_damaged_share allows 0" in output
    assert "Traceback" not in output
    assert not (run_file.parent / "run").exists()


def test_a_damaged_heldout_shard_is_refused_before_the_start(run_file, own_corpus, unibert):
    shard = Manifest.load(own_corpus).shards_of("de", "heldout")[0]
    flip_a_bit(own_corpus / shard.path)
    status, output = unibert("pretrain", str(run_file), f"--corpus={own_corpus}", "--stream.max_damaged_share=1")
    assert status == 1
    assert f"unibert: error: {own_corpus / shard.path}: content differs" in output
    assert "held-out shards must be whole" in output


@pytest.mark.slow
def test_damage_that_comes_up_later_ends_all_ranks(run_file, own_corpus):
    words = ["pretrain", str(run_file), f"--corpus={own_corpus}", "--training.tokens=2_000_000", SOME]
    process = start(words, ranks=2)
    wait_for_line(run_file.parent / "run" / "metrics.jsonl", step=3)
    for code in ("en", "ru"):
        for shard in Manifest.load(own_corpus).shards_of(code):
            flip_a_bit(own_corpus / shard.path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert output.count("unibert: error: ") == 1
    assert "damaged blocks by step" in output
    assert "stream.max_damaged_share (0.1) allows 1; find them with `unibert corpus verify`" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_vanished_server_ends_all_ranks(run_file, corpus, tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(corpus)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        url = f"http://127.0.0.1:{port}"
        words = [
            "pretrain",
            str(run_file),
            f"--stream.shards_url={url}",
            "--stream.retry_seconds=2",
            "--training.tokens=2_000_000",
            "--training.evaluate_every=0",
        ]
        process = start(words, ranks=2)
        wait_for_line(run_file.parent / "run" / "metrics.jsonl", step=3)
    finally:
        server.kill()
        server.wait()
    # Up to a window of steps from memory, then the retries, then the launcher's own pause.
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert output.count("unibert: error:") == 1
    assert f"{url}/" in output
    assert "the server did not deliver the shard within 2 s (the transfer failed: exit status 7)" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_loader_process_is_a_sentence_wherever_it_is_noticed(run_file, tmp_path):
    words = ["pretrain", str(run_file), "--stream.num_workers=1", "--training.tokens=2_000_000"]
    printed = tmp_path / "printed.txt"
    ranks = start_without_launcher(words, 2, printed)
    wait_for_line(run_file.parent / "run" / "metrics.jsonl", step=3)
    rank = ranks[1].pid
    (loader,) = (
        int(child)
        for child in Path(f"/proc/{rank}/task/{rank}/children").read_text().split()
        if "from multiprocessing" not in Path(f"/proc/{child}/cmdline").read_text()
    )
    os.kill(loader, signal.SIGKILL)
    ended = [one.wait(timeout=120) for one in ranks]
    output = printed.read_text()
    assert ended == [1, 1], output
    assert re.findall("unibert: error: .*", output) == [
        "unibert: error: rank 1: a loader process was killed, most likely because memory ran out; lower "
        "stream.num_workers or stream.window_shards"
    ]
    assert "Traceback" not in output
