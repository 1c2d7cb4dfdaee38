"""Export of a run's checkpoint as a plain Hugging Face model."""

from __future__ import annotations

from pathlib import Path

from unibert.configuration import read_yaml
from unibert.errors import UserError
from unibert.model.export import write_hugging_face
from unibert.training.checkpoint.folder import complete_checkpoints, full_state_dict, step_of


def export_run(run_dir: str | Path, *, step: int | None = None, output: str | Path | None = None) -> Path:
    """Write the student of a checkpoint as a model that ``AutoModelForMaskedLM`` loads, with its tokenizer.

    Args:
        run_dir: the run folder.
        step: optimizer step of the checkpoint; the newest by default.
        output: model folder, ``run_dir/model`` by default. An older export there is replaced.

    Returns:
        The model folder.

    Raises:
        UserError: if the folder is not a run folder, or the checkpoint is missing or damaged.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir} is not a run folder (it has no config.yaml)")
    checkpoints = {step_of(path): path for path in complete_checkpoints(run_dir / "checkpoints")}
    if not checkpoints:
        raise UserError(f"{run_dir} has no complete checkpoint yet")
    if step is not None and step not in checkpoints:
        raise UserError(f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, checkpoints))}")
    state = full_state_dict(checkpoints[max(checkpoints) if step is None else step])
    tokenizer = Path(read_yaml(run_dir / "config.yaml")["corpus"]) / "tokenizer"
    output = Path(output) if output is not None else run_dir / "model"
    write_hugging_face(state, run_dir / "model_config", tokenizer, output)
    return output
