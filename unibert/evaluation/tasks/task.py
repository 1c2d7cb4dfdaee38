"""What the tasks have in common: examples in, rows of tokens to a model, predictions and scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor

from unibert.evaluation.tasks.files import Pattern, TaskFile
from unibert.evaluation.tasks.framing import Framing

IGNORED = -100
"""Target of a token that is neither learnt nor scored."""
MIXED = "+"
"""Stands between both languages of a set of mixed examples."""
Example = TypeVar("Example")


@dataclass(frozen=True)
class Examples(Generic[Example]):
    """Examples of one file."""

    file: TaskFile
    examples: list[Example]
    left_out: int
    """Examples that cannot be used, such as those without a label."""

    def spread(self, number: int | None) -> Examples[Example]:
        """Return ``number`` examples at equal distances, or all if there are not so many or it is None.

        Of sets with as many examples, such as translations of each other, these are the same ones.
        """
        size = len(self.examples)
        if number is None or number >= size:
            return self
        return replace(self, examples=[self.examples[index * size // number] for index in range(number)])


@dataclass(frozen=True)
class Row:
    """One sequence of tokens for the model: an example or a window of it."""

    example: int
    """Index of the example."""
    ids: Sequence[int]
    type_ids: Sequence[int]
    targets: list[int]
    """What is to be predicted; for every token, or for the row."""
    places: list[Any] = field(default_factory=list)
    """What the tokens stand for in the example, as the task needs it."""


@dataclass(frozen=True)
class Rows:
    """Rows of many examples, in the order of the examples, and how much was cut."""

    rows: list[Row]
    truncated: int
    """Examples of which the model does not see all."""


class Task(ABC, Generic[Example]):
    """A task: its files, its rows and its scores."""

    name: str
    title: str
    metric: str
    """The score that chooses the epoch and represents the task."""
    epochs: int
    """Default number of passes over the training data."""
    max_length: int
    """Default maximum number of tokens of a row."""
    head: Literal["token", "sequence"]
    """Whether the model predicts something for every token or for the row."""
    patterns: Sequence[Pattern]
    wikipedia: frozenset[str] = frozenset()
    """Collections whose text is from Wikipedia."""

    @abstractmethod
    def read(self, file: TaskFile) -> Examples[Example]:
        """Read a file; raise UserError where it is malformed."""

    @abstractmethod
    def labels(self, training: Sequence[Examples[Example]]) -> list[str]:
        """Return what a model has an output for, in the order of the outputs."""

    @abstractmethod
    def rows(self, examples: Examples[Example], labels: Sequence[str], framing: Framing) -> Rows:
        """Return the rows of examples; raise UserError for a label that is not among ``labels``."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch.

        ``outputs`` are (B, S, number of labels) float32 and ``targets`` (B, S) for a head on tokens, else (B, number of
        labels) and (B, 1); question answering has targets (B, 2).
        """

    @abstractmethod
    def read_off(self, outputs: Tensor, row: Row) -> Any:
        """Return what one row's outputs, without padding, say of its example."""

    @abstractmethod
    def prediction(self, example: Example, parts: Sequence[Any], labels: Sequence[str]) -> dict[str, Any]:
        """Return a line of the predictions' file: what is right, and what the rows of an example say together."""

    @abstractmethod
    def score(self, predictions: Sequence[dict[str, Any]], language: str) -> dict[str, float]:
        """Return the scores of predictions in one language, between 0 and 1."""

    def example_scores(self, predictions: Sequence[dict[str, Any]], language: str) -> list[float] | None:
        """Return the main score of each example; None where it is no mean over examples."""
        return None

    def mixed(self, first: Examples[Example], second: Examples[Example]) -> list[Example]:
        """Return examples with one text of ``first`` and one of ``second``, where these are translations of each other.

        In inference, the premise is of ``first``; in question answering, the paragraph and the answers.
        """
        return []
