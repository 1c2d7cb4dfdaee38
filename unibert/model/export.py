"""Export of the student as a plain Hugging Face model, without remote code."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from unibert.errors import UserError

# A compact model saves quickly; a progress bar would only interrupt what the command prints.
transformers_logging.disable_progress_bar()

_STUDENT = "masked_lm."


def write_hugging_face(state: dict[str, Tensor], config_dir: Path, tokenizer_dir: Path, output: Path) -> None:
    """Write model (safetensors, fp32), configuration and tokenizer into a folder, which appears only when complete.

    Args:
        state: state dict of a trained :class:`unibert.model.unibert.UniBERT`, of which only the student is written.
        config_dir: folder with the student's ``config.json``.
        tokenizer_dir: folder of its tokenizer.
        output: folder to create; an existing one is replaced.

    Raises:
        UserError: if weights are missing or unknown.
    """
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(config_dir))
    student = {name.removeprefix(_STUDENT): tensor for name, tensor in state.items() if name.startswith(_STUDENT)}
    missing, unexpected = model.load_state_dict(student, strict=False)
    # A tied tensor may be stored under only one of its names.
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    mismatched = [name for name in missing if name not in tied] + unexpected
    if mismatched:
        raise UserError(
            f"the checkpoint does not fit {config_dir}/config.json: {', '.join(mismatched[:3])} missing or unknown"
        )
    model.tie_weights()
    partial = output.with_name(f".partial-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(partial)
    for extra in tokenizer_dir.glob("*.model"):
        shutil.copy2(extra, partial)
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
