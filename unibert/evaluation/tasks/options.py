"""Options of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class FineTuningConfig:
    """How a model is fine-tuned for named entities, inference and question answering."""

    training: Literal["source", "in-language", "all"] = "source"
    """Training data: those of the source language; for each language its own; or all languages' together, which is
    called translate-train-all where the data are translations."""

    epochs: int | None = None
    """Passes over the training data, of which the best on the development set is kept. Default: 10 for named entities,
    5 for inference, 3 for questions."""

    learning_rate: float = 1e-4
    """Peak learning rate of AdamW. Small models need a larger one than the 2e-5 that is usual for large ones."""

    batch_size: int = 32
    """Rows per step."""

    max_length: int | None = None
    """Tokens of a row. Default: 128 for named entities and inference, 384 for questions."""

    pooling: Literal["mean", "first"] = "mean"
    """What stands for a pair of sentences: the mean of its tokens or the first token."""

    mixed: bool = False
    """Also score pairs of texts in two languages, the source language and another one, both ways round: premise and
    hypothesis, paragraph and question. The sets must be translations of each other. They do not count in the mean."""

    max_train: int | None = None
    """Maximum number of examples of a training set, spread over it. Default: all."""

    max_test: int | None = None
    """Maximum number of examples of each set that is scored, and of the development set, spread over it. Default:
    all."""

    def __post_init__(self) -> None:
        for key in ("epochs", "max_length", "max_train", "max_test", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"fine_tuning.{key}: must be at least 1, got {value}")
        if self.learning_rate <= 0:
            raise ValueError(f"fine_tuning.learning_rate: must be positive, got {self.learning_rate}")
