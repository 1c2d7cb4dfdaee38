"""Writing the student as a plain Hugging Face model, without remote code."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from unibert.errors import UserError

# Saving a compact model takes a moment; a bar would only break up what the command prints.
transformers_logging.disable_progress_bar()

_STUDENT = "masked_lm."


def write_hugging_face(state: dict[str, Tensor], config_dir: Path, tokenizer_dir: Path, output: Path) -> None:
    """Model (safetensors, fp32), configuration and tokenizer in one folder, which appears only when whole.

    Args:
        state: state dict of a trained :class:`unibert.model.unibert.UniBERT`; discriminator and projections stay out.
        config_dir: folder with the student's ``config.json``.
        tokenizer_dir: folder of its tokenizer.
        output: the folder to make; an older one is replaced.

    Raises:
        UserError: if weights are missing.
    """
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(config_dir))
    student = {name.removeprefix(_STUDENT): tensor for name, tensor in state.items() if name.startswith(_STUDENT)}
    missing, unexpected = model.load_state_dict(student, strict=False)
    # A tied tensor may stand under one of its names only.
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    wrong = [name for name in missing if name not in tied] + unexpected
    if wrong:
        raise UserError(
            f"the checkpoint does not fit {config_dir}/config.json: {', '.join(wrong[:3])} missing or unknown"
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
