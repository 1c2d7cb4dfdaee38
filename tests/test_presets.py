"""Every run file and ds_config that ships with the package is valid."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from unibert.configuration import parse
from unibert.model.encoder import build_masked_lm
from unibert.run_files import PRESETS
from unibert.training.config import RunConfig
from unibert.training.engine import DS_CONFIGS, read_ds_config, zero_stage


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A model of twelve layers and multilingual-e5-small's width, from which a preset may take a part."""
    folder = tmp_path_factory.mktemp("teacher")
    config = BertConfig(
        vocab_size=1000, num_hidden_layers=12, hidden_size=384, num_attention_heads=12, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_describe_a_model_and_a_run(preset, teacher):
    config = parse(RunConfig, ["--config", str(preset)])
    timeline = config.training.timeline()
    assert timeline.total_tokens >= config.training.tokens
    if config.model.initialize_from is None:
        with torch.device("meta"):
            model = build_masked_lm(config.model, 64_000, timeline[0].sequence_length)
        assert model.config.hidden_size == config.model.config["hidden_size"]
    else:
        settings = replace(config.model, initialize_from=str(teacher))
        model = build_masked_lm(settings, 1000, timeline[0].sequence_length)
        assert model.config.num_hidden_layers == len(config.model.initialize_layers or [])
        assert model.config.hidden_size == config.model.config.get("hidden_size", 384)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ds_configs_are_named_after_their_stage_and_leave_precision_to_the_device(stage):
    path = DS_CONFIGS / f"zero{stage}.json"
    on_cpu, on_gpu = (read_ds_config(path, torch.device(kind)) for kind in ("cpu", "cuda"))
    assert zero_stage(on_cpu) == stage
    assert (on_cpu["bf16"]["enabled"], on_gpu["bf16"]["enabled"]) == (False, True)
