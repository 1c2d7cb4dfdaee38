"""``unibert plan`` from the command line."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from tests.refusals import refused
from tests.reports.test_inspection import write_manifest
from unibert.bench.gpu.short_training import TrainingSize
from unibert.cli import main
from unibert.model.config import AdversaryConfig, DistillationConfig, MLMConfig, ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.model.teacher import Teacher
from unibert.model.unibert import UniBERT

GIB = 2**30
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
H100 = ("--gpu", "h100", "--vocab_size", "500")


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    """Undo after each test what the command sets for its own process."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    run = {
        "run_dir": str(tmp_path / "run"),
        "corpus": str(tmp_path / "corpus"),
        "training": {"tokens": 1_000_000, "global_batch_size": 64, "micro_batch_size": 4, "sequence_length": 128},
        "stream": {"lanes": 16, "masking_rate": [[0, 0.3], [1, 0.1]]},
        "model": {"config": SIZES},
        "adversary": {},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    model = build_masked_lm(ModelConfig(config=SIZES | {"hidden_size": 128}), 500, 128)
    model.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def printed(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    main(["plan", *map(str, words)])
    return capsys.readouterr().out


def figures(tmp_path: Path, *words: Any) -> dict[str, Any]:
    main(["plan", *map(str, words), "--output", str(tmp_path / "plan.json")])
    return json.loads((tmp_path / "plan.json").read_text())


def row_of(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(f"{name} "))


def test_parameters_are_those_of_the_model_that_is_built(run_file, teacher, tmp_path, capsys):
    distilled = (f"--distillation.teacher={teacher}", "--distillation.hidden=1", "--distillation.projection=learned")
    plan = figures(tmp_path, run_file, "--gpus", 1, *H100, *distilled)
    student = build_masked_lm(ModelConfig(config=SIZES), 500, 128)
    taught_by = build_masked_lm(ModelConfig(config=SIZES | {"hidden_size": 128}), 500, 128)
    model = UniBERT(
        student,
        plan["languages"],
        mlm=MLMConfig(),
        adversary=AdversaryConfig(),
        teacher=Teacher(taught_by),
        distillation=DistillationConfig(teacher="", hidden=1.0, projection="learned"),
    )
    assert sum(plan["parameters"].values()) == sum(parameter.numel() for parameter in model.parameters())
    assert plan["parameters"]["adversary"] == sum(p.numel() for p in model.discriminator.parameters())
    assert plan["teacher_parameters"] == sum(parameter.numel() for parameter in taught_by.parameters())
    assert plan["exported_bytes"] == 4 * sum(parameter.numel() for parameter in student.parameters())
    assert row_of(capsys.readouterr().out, "layers")[1] == f"{plan['parameters']['layers']:,}"


def test_weights_gradients_and_optimizer_by_stage(run_file, tmp_path):
    """Compare with DeepSpeed's estimators, which support bf16 and stages 2 and 3."""
    plan = figures(tmp_path, run_file, "--nodes", 2, "--gpus", 4, *H100)
    parameters, largest = sum(plan["parameters"].values()), 500 * 64
    entries = {entry["ds_config"]: entry for entry in plan["memory"]}
    states = {name: entry["memory"]["states"] for name, entry in entries.items()}
    on_device = {name: s["weights"] + s["gradients"] + s["optimizer"] for name, s in states.items()}
    shard = parameters / 8

    _, stage_2 = estimate_zero2_model_states_mem_needs(parameters, 4, 2, cpu_offload=False)
    assert on_device["zero2"] == pytest.approx(stage_2, abs=1)
    assert entries["zero2"]["deepspeed_estimate_gib"] * GIB == stage_2
    assert on_device["zero1"] - on_device["zero2"] == 2 * (parameters - shard)
    assert entries["zero1"]["deepspeed_estimate_gib"] is None

    for name, offload in (("zero3", False), ("zero3_offload", True)):
        _, stage_3, _ = estimate_zero3_model_states_mem_needs(
            parameters, largest, 4, 2, cpu_offload=offload, cpu_offload_params=offload
        )
        assert entries[name]["deepspeed_estimate_gib"] * GIB == stage_3
        # It counts two gathered copies of the largest parameter instead of all weights, which stay gathered, and a
        # shard's gradients.
        assert on_device[name] == pytest.approx(stage_3 - 4 * largest + 2 * parameters + 2 * shard, abs=1)
    assert states["zero1_offload"]["optimizer"] == 0
    assert states["zero1_offload"]["host"] == 16 * shard + 2 * parameters
    assert states["zero3_offload"]["host"] == pytest.approx(16 * shard + 2 * shard + 2 * shard)
    # The rest is rank 0's copy of a checkpoint: its share of the state and, unless they are sharded, the weights.
    copies = {name: entry["memory"]["host"] - states[name]["host"] for name, entry in entries.items()}
    shard_of_state = 12 * parameters // 8
    assert copies["zero1"] == copies["zero1_offload"] == shard_of_state + 2 * parameters
    assert copies["zero3"] == shard_of_state
    # Two buffers of the ds_config's 50 million elements, since it overlaps communication.
    assert states["zero1"]["buffers"] == 2 * 2 * 50e6


def test_recommendation_and_sources_of_the_figures(run_file, capsys):
    text = printed(capsys, run_file, "--gpus", 1, *H100)
    words = " ".join(text.split())
    assert "1 × 1 = 1 NVIDIA H100 80GB HBM3; each 989.4 TFLOP/s (dense bf16, data sheet), 79.6 GiB, 3.35 TB/s" in words
    assert "500 pieces, 107 languages; as given; there is no corpus yet" in words
    assert "from other trainers' published speeds on H100s (Ettin, arXiv 2507.11412;" in words
    assert "not measured with UniBERT: run 'unibert bench gpu'" in words
    assert "20.0% of the tokens masked" in words
    assert row_of(text, "zero1")[-1] == "yours"
    flags = words.partition("recommended --training")[2].partition(":")[0].split()
    assert flags == [".ds_config", "zero1", "--training.micro_batch_size", "64"]
    assert "8,192 tokens per micro-batch; below 32,768 a GPU is likely slower" in words
    text = printed(capsys, run_file, "--gpus", 1, *H100, "--training.micro_batch_size", 64)
    assert row_of(text, "zero1")[-2:] == ["recommended,", "yours"]
    # Not larger than necessary: 256 of 1024 sequences have 32,768 tokens.
    text = printed(capsys, run_file, "--gpus", 1, *H100, "--training.global_batch_size", 1024)
    assert "--training.micro_batch_size 256" in " ".join(text.split())


def test_sharding_or_offloading_is_recommended_where_it_is_needed(run_file, capsys):
    """A model of 1.2e9 parameters, whose unsharded state alone fills a GPU."""
    sizes = {"hidden_size": 2048, "num_hidden_layers": 26, "num_attention_heads": 32, "intermediate_size": 3072}
    large = [f"--model.config.{key}={size}" for key, size in sizes.items()]
    words = [run_file, "--gpu", "rtx4090", "--vocab_size", 50_000, *large, "--training.micro_batch_size=16"]
    text = printed(capsys, *words, "--gpus", 1)
    assert row_of(text, "zero1")[-2:] == ["large,", "yours"]
    assert "zero1 with a micro-batch of 16 does not fit: it needs" in " ".join(text.split())
    assert row_of(text, "zero1_offload")[-1] == "recommended"
    text = printed(capsys, *words, "--gpus", 16)
    assert "--training.ds_config zero1 " in " ".join(text.split())
    out, sentence = refused(capsys, "plan", *words, "--gpus", 1, "--model.config.num_hidden_layers=260")
    assert (
        "the run does not fit: with a micro-batch of one sequence of 128 tokens, zero3_offload still needs" in sentence
    )
    assert (
        "of the 24.0 GiB of a rtx4090 may be used; set training.activation_checkpointing to 1, or choose a larger GPU"
        in sentence
    )
    assert row_of(out, "zero3_offload")[-2:] == ["too", "large"]


def test_time_and_exchange(run_file, tmp_path):
    alone = figures(tmp_path, run_file, "--gpus", 1, *H100)
    assert alone["exchange_seconds_per_step"] == 0
    assert alone["tokens"] == 1_007_616
    assert alone["steps"] == 123
    flops = sum(alone["flops_per_token"].values())
    assert alone["tokens_per_second"] == pytest.approx(alone["efficiency"] * 989.4e12 / flops)
    assert alone["seconds"] == pytest.approx(alone["tokens"] / alone["tokens_per_second"])
    few, many = alone["seconds_from_to"]
    assert few < alone["seconds"] < many
    parameters = sum(alone["parameters"].values())
    for where, bytes_per_second, latency in (
        (("--nodes", 1, "--gpus", 4), 450e9, 20e-6),
        (("--nodes", 2, "--gpus", 2), 25e9, 50e-6),
        (("--nodes", 2, "--gpus", 2, "--network_gbit", 8), 1e9, 50e-6),
    ):
        plan = figures(tmp_path, run_file, *where, *H100)
        # ZeRO 1: one bucket of gradients, reduced to all ranks, and the weights gathered, in bf16.
        exchange = 3 * 2 * parameters * 3 / 4 / bytes_per_second + 2 * latency
        assert plan["exchange_seconds_per_step"] == pytest.approx(exchange)
        assert plan["seconds"] == pytest.approx(alone["seconds"] / 4 + 123 * exchange)


def test_number_of_kept_checkpoints(run_file, capsys):
    keeping = (
        "--training.keep_every_tokens=250_000",
        "--training.keep_best=true",
        "--training.evaluate_every=10",
        "--training.checkpoint_every=20",
    )
    assert "for 2 kept checkpoints" in printed(capsys, run_file, "--gpus", 1, *H100)
    assert "for 7 kept checkpoints" in printed(capsys, run_file, "--gpus", 1, *H100, *keeping)


def test_activation_checkpointing_saves_memory_and_costs_flops(run_file, tmp_path):
    plans = [
        figures(tmp_path, run_file, "--gpus", 1, *H100, f"--training.activation_checkpointing={every}")
        for every in ("null", 2, 1, "selective")
    ]
    memory = [plan["memory"][0]["memory"]["activations"] for plan in plans]
    # Of two layers, one has all of its activations at a time; the other keeps its input alone, and so does each of two.
    assert memory[0] > memory[3] > memory[2] > memory[1]
    flops = [sum(plan["flops_per_token"].values()) for plan in plans]
    assert flops[2] - flops[0] == pytest.approx(2 * (flops[1] - flops[0]))
    assert flops[1] > flops[0] == flops[3]


def test_flops_are_averaged_over_the_run(run_file, teacher, tmp_path):
    def flops(*words: str) -> dict[str, float]:
        return figures(tmp_path, run_file, "--gpus", 1, *H100, *words)["flops_per_token"]

    short, long = (flops(f"--training.sequence_length={length}") for length in (128, 256))
    both = flops("--training.sequence_length=[[0, 128], [0.5, 256]]")
    # The length changes within one of 124 steps of the middle.
    for part in ("attention scores", "adversary"):
        assert both[part] == pytest.approx((short[part] + long[part]) / 2, rel=2 / 124)
    assert both["layers"] == short["layers"]
    assert "MLM head, recomputed" not in short
    # Of 4 x 128 tokens at most 30 % are masked: 154 rows, whose bf16 exponentials are 0.000143 GiB.
    assert flops("--mlm.workspace_gib=0.00014")["MLM head, recomputed"] == pytest.approx(2 * 0.2 * 64 * 500)
    assert "MLM head, recomputed" not in flops("--mlm.workspace_gib=0.00015")
    taught = flops(f"--distillation.teacher={teacher}")
    half = flops(f"--distillation.teacher={teacher}", "--distillation.weight=[[0, 1], [0.5, 1], [0.5, 0], [1, 0]]")
    assert half["teacher"] == pytest.approx(taught["teacher"] / 2)
    assert half["MLM head, recomputed"] == pytest.approx(taught["MLM head, recomputed"] / 2)


def test_vocabulary_and_languages_come_from_the_corpus(run_file, tmp_path, capsys):
    corpus = write_manifest(tmp_path / "another", {"da": [200], "fi": [500, 500], "sv": [900]})
    words = [run_file, "--gpus", 1, "--gpu", "a100-40", "--corpus", corpus]
    assert f"500 pieces, 3 languages; as in {corpus}" in " ".join(printed(capsys, *words).split())
    assert "500 pieces, 2 languages" in printed(capsys, *words, "--stream.languages=[da, sv]")
    sentence = refused(capsys, "plan", *words, "--vocab_size", 600)[1]
    assert f"--vocab_size: {corpus} has a vocabulary of 500, not 600; omit it" in sentence


@pytest.mark.parametrize(
    ("hidden", "layers", "intermediate", "vocab_size", "published"),
    [(384, 10, 576, 50_368, 655e3), (768, 22, 1152, 50_368, 296e3), (768, 22, 1152, 256_000, 108e3)],
)
def test_a_training_like_a_published_one_has_its_speed(
    hidden, layers, intermediate, vocab_size, published, run_file, tmp_path
):
    """Ettin 32M and 150M define the curve; mmBERT base lies farthest from it."""
    alike = [
        f"--model.config.hidden_size={hidden}",
        f"--model.config.num_hidden_layers={layers}",
        f"--model.config.num_attention_heads={hidden // 64}",
        f"--model.config.intermediate_size={intermediate}",
        "--training.sequence_length=1024",
        "--stream.masking_rate=0.3",
        "--adversary=null",
    ]
    plan = figures(tmp_path, run_file, "--gpus", 1, "--gpu", "h100", "--vocab_size", vocab_size, *alike)
    slowest = plan["tokens"] / plan["seconds_from_to"][1]
    assert (slowest if vocab_size == 256_000 else plan["tokens_per_second"]) == pytest.approx(published)


def test_a_measured_speed_replaces_published_ones(run_file, tmp_path, capsys):
    """For a run like the benchmark's short training the plan returns that training's speed."""
    size = TrainingSize()
    runs = {
        "chunked": {"tokens_per_second": 1000.0, "size": asdict(size)},
        "exp-store": {"tokens_per_second": 123_456.0, "size": asdict(size)},
        "distillation, recompute": {"tokens_per_second": 900_000.0, "size": asdict(size)},
        "recompute": {"failed": "out of memory"},
    }
    folder = tmp_path / "benchmarks" / "gpu-nvidia-h100-80gb-hbm3"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"environment": {"device": "NVIDIA H100 80GB HBM3"}}))
    (folder / "training.json").write_text(json.dumps({"runs": runs}))
    alike = [
        f"--model.config.hidden_size={size.hidden}",
        f"--model.config.num_hidden_layers={size.layers}",
        "--model.config.num_attention_heads=6",
        f"--model.config.intermediate_size={3 * size.hidden // 2}",
        f"--training.sequence_length={size.sequence // 4}",
        "--stream.masking_rate=0.15",
        "--stream.languages=[af, sq, ar, an, hy, ast, az, ba, eu, bar, be, bn, bpy, bs, br, bg]",
    ]
    words = [run_file, "--gpus", 1, "--vocab_size", size.vocab, "--benchmarks", tmp_path / "benchmarks", *alike]
    plan = figures(tmp_path, *words, "--gpu", "h100")
    assert plan["tokens_per_second"] == pytest.approx(123_456)
    assert plan["seconds_from_to"] == [plan["seconds"]] * 2
    text = "".join(capsys.readouterr().out.split())
    assert f"measuredby'unibertbenchgpu'({folder}:exp-store)" in text
    assert "othertrainers'" not in text
    assert "othertrainers'" in "".join(printed(capsys, *words, "--gpu", "a100-80").split())
    (folder / "training.json").write_text("{}")
    sentence = refused(capsys, "plan", *words, "--gpu", "h100")[1]
    assert "does not hold valid results of 'unibert bench gpu' (KeyError: 'runs')" in sentence


def test_a_cpu_is_measured(run_file, tmp_path, capsys):
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    plan = figures(tmp_path, run_file, "--gpus", 2, "--gpu", "cpu", "--vocab_size", 500)
    assert torch.get_num_threads() == 7
    torch.set_num_threads(before)
    peak = plan["accelerator"]["peak_tflops"]
    assert 1e-3 < peak < 100
    flops = sum(plan["flops_per_token"].values())
    assert plan["tokens_per_second"] == pytest.approx(2 * plan["efficiency"] * 1e12 * peak / flops)
    text = capsys.readouterr().out
    assert "fp32, measured just now" in " ".join(text.split())
    assert "all scores of a sequence" in " ".join(text.split())
    # fp32 weights and gradients, and 16 bytes per parameter shared by two ranks. DeepSpeed's estimators need 16 bits.
    states = plan["memory"][0]["memory"]["states"]
    assert {entry["deepspeed_estimate_gib"] for entry in plan["memory"]} == {None}
    parameters = sum(plan["parameters"].values())
    assert states["weights"] + states["gradients"] + states["optimizer"] == (4 + 4 + 8) * parameters


def test_tables_fit_the_page(capsys):
    large = ("--gpu", "h100", "--vocab_size", 256_000, "--training.global_batch_size", 8192)
    text = printed(capsys, "base", "--nodes", 8, "--gpus", 8, *large)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpus=1", "--gpu=h10", "--vocab_size=9"], "--gpu: 'h10' is unknown; did you mean 'h100'?"),
        (["--gpus=1", "--gpu=tpu-v5", "--vocab_size=9"], "choose from h200, h100, h100-pcie, a100-80"),
        (["--gpus=1", "--gpu=h100"], "corpus: {folder}/corpus does not exist, so the vocabulary size is unknown; give"),
        (["--gpus=3", *H100], "stream.lanes: 16 lanes cannot be divided among 3 ranks; use 1, 2, 4, 8, 16 ranks"),
        (["--gpus=0", *H100], "--gpus: must be positive, got 0"),
        (["--gpus=1", "--nodes=-2", *H100], "--nodes: must be positive, got -2"),
        (["--gpus=1", "--network_gbit=.nan", *H100], "--network_gbit: must be positive, got nan"),
        (["--gpus=1", "--gpu=h100", "--vocab_size=0"], "--vocab_size: must be positive, got 0"),
        (["--gpus=1", *H100, "--distillation.teacher={folder}"], "distillation.teacher: {folder} is not a Hugging"),
        (["--gpus=1", *H100, "--training.ds_config=zero4"], "training.ds_config: zero4 is neither a file nor one of"),
        (["--gpus=1", *H100, "--training.token=5"], "did you mean 'training.tokens'?"),
        (["--gpus=1", *H100, "--output={folder}/run.yaml/plan.json"], "the plan cannot be written (File exists)"),
    ],
)
def test_mistakes(run_file, capsys, words, sentence):
    words = [word.format(folder=run_file.parent) for word in words]
    assert sentence.format(folder=run_file.parent) in refused(capsys, "plan", run_file, *words)[1]


def step_seconds(plan: dict[str, Any], name: str) -> dict[str, float]:
    """Those of a ds_config with the micro-batch that is best for it."""
    return next(entry["step_seconds"] for entry in reversed(plan["memory"]) if entry["ds_config"] == name)


def test_stages_and_numbers_of_machines_have_their_step_times(run_file, tmp_path, capsys):
    words = [run_file, "--nodes", 2, "--gpus", 2, *H100, "--network_gbit", 0.1, "--training.global_batch_size", 1024]
    plan = figures(tmp_path, *words, "--training.micro_batch_size", 64)
    text = capsys.readouterr().out
    # 256 sequences of a rank are four micro-batches of the run file's size, and one of the recommended size.
    configured, once = plan["memory"][0]["step_seconds"], step_seconds(plan, "zero1")
    assert configured == once == step_seconds(plan, "zero2")
    # Over so slow a network, bytes take nearly all of the time: an all-reduce twice that of a gather.
    assert once["gradients"] == pytest.approx(2 * once["weights"], rel=0.01)
    stage_2 = figures(tmp_path, *words, "--training.micro_batch_size", 64, "--training.ds_config", "zero2")
    again = stage_2["memory"][0]["step_seconds"]
    assert again["gradients"] == pytest.approx(4 * once["gradients"])
    assert again["weights"] == once["weights"]
    scaling = {(entry["nodes"], entry["gpus"]): entry for entry in plan["scaling"]}
    assert list(scaling) == [(1, 2), (2, 2), (4, 2), (8, 2)]
    for (nodes, gpus), entry in scaling.items():
        assert entry["computing"] * nodes * gpus == pytest.approx(once["computing"] * 4)
    assert scaling[1, 2]["weights"] < scaling[2, 2]["weights"] / 10
    assert scaling[2, 2] == {"nodes": 2, "gpus": 2, **once}
    # 1,024 x 128 tokens over four ranks.
    assert text.count("2 × 2") == 2
    assert row_of(text, "2 × 2")[3] == "32,768"
    assert "few tokens per rank" in next(line for line in text.splitlines() if line.startswith("8 × 2"))
    assert "few tokens per rank" not in next(line for line in text.splitlines() if line.startswith("2 × 2 "))


def test_a_single_rank_sends_nothing(run_file, capsys):
    text = printed(capsys, run_file, "--gpus", 1, *H100)
    assert "ms per step  micro" not in text
    assert "exchange     " not in text
