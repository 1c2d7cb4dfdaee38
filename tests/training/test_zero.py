"""Every ZeRO stage on two ranks follows one process on the same global batches, all objectives on."""

import json
from pathlib import Path

import pytest

from tests.training.compare import largest_relative_difference
from unibert.training.engine import DS_CONFIGS
from unibert.training.metrics_file import read_metrics

# All sums of a step run in fp32 (24-bit mantissa, 6e-8) over at most a few thousand terms, in another order on other
# ranks; 50 steps of AdamW may amplify that. Five digits are what the issue of equal losses needs.
FIVE_DIGITS = 1e-5
ACCURACIES = ("retrieval_raw", "retrieval_centred", "retrieval_margin", "probe_linear")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, corpus) -> Path:
    """An untrained, wider model with the corpus's tokenizer: distillation only needs some fixed teacher."""
    import torch
    from transformers import AutoTokenizer

    from tests.training.conftest import VOCAB_SIZE
    from unibert.model.config import ModelConfig
    from unibert.model.encoder import build_masked_lm

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    config = {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "local_attention": 16,
    }
    build_masked_lm(ModelConfig(config=config), VOCAB_SIZE, 64).save_pretrained(folder)
    AutoTokenizer.from_pretrained(corpus / "tokenizer").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def objectives(teacher, aligned) -> list[str]:
    return [
        f"--training.retrieval={aligned}",
        f"--training.retrieval_every_tokens={18 * 8 * 64}",
        f"--distillation.teacher={teacher}",
        "--distillation.relations=0.5",
        "--distillation.hidden=0.5",
        "--distillation.weight=[[0, 1], [0.9, 0.5]]",
    ]


@pytest.fixture(scope="module")
def one_process(module_run_file, objectives, tmp_path_factory) -> Path:
    from tests.training.conftest import run_to_end

    run_dir = tmp_path_factory.mktemp("one") / "run"
    status, output = run_to_end("pretrain", str(module_run_file), f"--run_dir={run_dir}", *objectives)
    assert status == 0, output
    return run_dir


@pytest.mark.parametrize("stage", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2)), 3])
def test_two_ranks_follow_one_process(stage, one_process, module_run_file, objectives, tmp_path, unibert):
    config = json.loads((DS_CONFIGS / f"zero{stage}.json").read_text())
    if stage == 3:
        # Shard even the smallest parameter, which DeepSpeed would keep whole on every rank.
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    ds_config = tmp_path / "ds.json"
    ds_config.write_text(json.dumps(config))
    run_dir = tmp_path / "run"
    status, output = unibert(
        "pretrain",
        str(module_run_file),
        f"--run_dir={run_dir}",
        f"--training.ds_config={ds_config}",
        *objectives,
        ranks=2,
    )
    assert status == 0, output
    assert largest_relative_difference(one_process, run_dir, leave_out=ACCURACIES) < FIVE_DIGITS
    measured = [read_metrics(folder / "metrics.jsonl").retrieval for folder in (one_process, run_dir)]
    assert [line["step"] for line in measured[0]] == [0, 18, 36, 50]
    for first, second in zip(*measured, strict=True):
        # Counts of 180 queries and 27 test sentences: where two neighbours are equally near but for the five digits,
        # one of them may be the other.
        assert [first[key] for key in ACCURACIES[:3]] == pytest.approx(
            [second[key] for key in ACCURACIES[:3]], abs=0.012
        )
        assert first["probe_linear"] == pytest.approx(second["probe_linear"], abs=0.04)


def test_every_parameter_is_trained(one_process):
    """The export differs from the initial weights in every tensor."""
    import torch
    from transformers import AutoModelForMaskedLM

    from unibert.configuration import read_yaml
    from unibert.model.config import ModelConfig
    from unibert.model.encoder import build_masked_lm

    trained = AutoModelForMaskedLM.from_pretrained(one_process / "model").state_dict()
    torch.manual_seed(0)
    settings = read_yaml(one_process / "config.yaml")["model"]["config"]
    initial = build_masked_lm(ModelConfig(config=settings), len(trained["decoder.bias"]), 64).state_dict()
    assert [name for name, tensor in initial.items() if torch.equal(tensor, trained[name])] == []
