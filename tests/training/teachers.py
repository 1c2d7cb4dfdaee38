"""Teachers for runs on the made-up corpus."""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from tests.training.conftest import VOCAB_SIZE
from unibert.model.config import ModelConfig
from unibert.model.encoder import build_masked_lm


def save_teacher(folder: Path, corpus: Path, config: ModelConfig) -> Path:
    """Save a model with fresh weights and the corpus's tokenizer."""
    torch.manual_seed(0)
    build_masked_lm(config, VOCAB_SIZE, 64).save_pretrained(folder)
    AutoTokenizer.from_pretrained(corpus / "tokenizer").save_pretrained(folder)
    return folder
