"""The device does not wait for the host within a step."""

import json

import yaml

from tests.training.host_reads import count_reads
from tests.training.processes import fork, statuses
from tests.training.teachers import save_teacher
from unibert.model.config import ModelConfig


def test_a_step_reads_nothing_from_the_device(corpus, run_file, tmp_path):
    """With all objectives, in bf16 under ZeRO 1, as `ds_configs/zero1.json` trains on a GPU."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 66}
    teacher = save_teacher(tmp_path / "teacher", corpus, ModelConfig(config=sizes))
    run = yaml.safe_load(run_file.read_text())
    run["training"] |= {"tokens": 7 * 8 * 64, "log_every": 4, "evaluate_every": 0, "checkpoint_every": 100}
    run["training"]["ds_config"] = str(tmp_path / "ds.json")
    run["adversary"]["class_balanced"] = True
    run["distillation"] = {"teacher": str(teacher), "teacher_prompt": "w7 w8"}
    run["distillation"] |= {"logits": 1.0, "relations": 1.0, "hidden": 1.0, "pooled": 1.0}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}))
    run_file.write_text(yaml.safe_dump(run))
    printed, report = tmp_path / "printed.txt", tmp_path / "reads.json"
    process = fork(printed, count_reads, ["--config", str(run_file)], report)
    assert statuses([process], timeout=300) == [0], printed.read_text()
    _, *others = json.loads(report.read_text())
    # The first step is left aside, and so is what follows the last.
    logged = [others.pop(index) for index in (5, 2)]  # of the 7th and the 4th step
    assert all(logged), "log lines read nothing: the count does not work"
    assert not any(others), others
