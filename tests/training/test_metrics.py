"""What a run logs of its speed."""

import gzip
import json

import pytest
import torch

from tests.training.conftest import LANGUAGES, VOCAB_SIZE
from unibert.model.config import AdversaryConfig, MLMConfig, ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.model.unibert import UniBERT
from unibert.training.config import RunConfig, TrainingConfig
from unibert.training.metrics import Throughput
from unibert.training.metrics_file import read_metrics
from unibert.training.utilisation import Utilisation


def test_the_time_of_measurements_does_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    throughput = Throughput(100)
    clock[0] += 2
    with throughput.paused():
        clock[0] += 30
    clock[0] += 3
    # The steps before the measurement count, and so do those after it.
    assert throughput.since_last(600) == pytest.approx(500 / 5)
    clock[0] += 4
    assert throughput.since_last(1000) == pytest.approx(400 / 4)


def test_the_utilisation_counts_what_the_tokens_need(monkeypatch):
    """By hand: layers, attention within documents, logits of masked positions, the discriminator."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    student = build_masked_lm(ModelConfig(config=sizes | {"local_attention": 16}), VOCAB_SIZE, 64)
    model = UniBERT(student, len(LANGUAGES), mlm=MLMConfig(), adversary=AdversaryConfig())
    config = RunConfig(run_dir="", corpus="", training=TrainingConfig(tokens=2**20), adversary=AdversaryConfig())
    utilisation = Utilisation(model, config, torch.device("cpu"), torch.float32, world_size=2)
    monkeypatch.setattr("unibert.training.utilisation.device_peak", lambda *_: 1e-3)
    layers = 2 * (4 * 64 * 64 + 3 * 64 * 96)
    attention = 2 * 64 * (40 + 17)  # the first layer sees the document, the second 8 tokens on either side
    head = 0.25 * (64 * 64 + 64 * VOCAB_SIZE)
    adversary = (3 * 64 * 64 + 4 * 64 * 3) / 3 / 40
    flops = 6 * (layers + attention + head + adversary)
    assert utilisation.flops_per_token(tokens=400, masked=100, documents=10) == pytest.approx(flops)
    assert utilisation.share(1000.0, tokens=400, masked=100, documents=10) == pytest.approx(1000 * flops / 2e9)


def test_a_line_tells_where_the_time_went_and_who_is_late(run_file, tmp_path, unibert):
    words = ["pretrain", str(run_file), "--training.tokens=2048", "--training.log_every=2", "--profile=2:3"]
    status, output = unibert(*words, "--training.evaluate_every=0", ranks=2)
    assert status == 0, output
    run_dir = run_file.parent / "run"
    for line in read_metrics(run_dir / "metrics.jsonl").training:
        parts = line["seconds_per_step"]
        assert set(parts) == {"data", "forward", "backward", "update"}
        assert sum(parts.values()) <= 8 * 64 / line["tokens_per_second"]
        assert 0 < line["mfu"] < 1
        assert line["slowest_rank"]["rank"] in (0, 1)
        assert line["slowest_rank"]["times_median"] >= 1
    trace = json.loads(gzip.decompress((run_dir / "profile" / "steps-2-3.json.gz").read_bytes()))
    assert sum(event.get("name") == "Optimizer.step#AdamW.step" for event in trace["traceEvents"]) == 2
    assert "AdamW" in (run_dir / "profile" / "steps-2-3.txt").read_text()
