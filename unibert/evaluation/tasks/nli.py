"""Natural language inference: does a premise entail a hypothesis, contradict it, or neither?"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.metrics import accuracy_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from unibert.errors import UserError
from unibert.evaluation.packed_files import READ_ERRORS, open_text, unpacked_name
from unibert.evaluation.tasks.files import Pattern, TaskFile
from unibert.evaluation.tasks.framing import Framing
from unibert.evaluation.tasks.task import Examples, Row, Rows, Task

LABELS = ["contradiction", "entailment", "neutral"]
_MEANINGS = {
    **{label: label for label in LABELS},
    "contradictory": "contradiction",
    "c": "contradiction",
    "e": "entailment",
    "n": "neutral",
}
_WITHOUT_LABEL = ("-", "")
_HEADERS = {
    "premise": ("premise", "sentence1"),
    "hypothesis": ("hypothesis", "sentence2"),
    "label": ("label", "gold_label"),
}


@dataclass(frozen=True)
class Inference:
    """A premise, a hypothesis, and how they stand to each other."""

    premise: str
    hypothesis: str
    label: str


class InferencePairs(Task[Inference]):
    """Natural language inference on XNLI, KorNLI, FarsTail, MultiNLI and files like theirs."""

    name = "nli"
    title = "Natural language inference"
    metric = "accuracy"
    epochs = 5
    max_length = 128
    head = "sequence"
    patterns = (
        Pattern(r"[^/]+/xnli\.(?P<split>dev|test)\.(?P<language>[a-z]{2,3})\.tsv"),
        Pattern(r"[^/]+/(multinli|snli_1\.0)\.(?P<split>train)\.(?P<language>[a-z]{2,3})\.tsv"),
        Pattern(r"[^/]+/(?P<split>train|dev|test)-(?P<language>[a-z]{2,3})\.tsv"),
        Pattern(r"farstail/(?P<split>Train|Val|Test)-word\.csv", "farstail", "fa"),
        Pattern(r"(?P<collection>[a-z0-9]+)-(?P<language>[a-z]{2,3})/(?P<split>train|dev|test)\.(jsonl|tsv)"),
        Pattern(r"[^/]+/multinli_1\.0_(?P<split>train)\.jsonl", "multinli", "en"),
    )

    def read(self, file: TaskFile) -> Examples[Inference]:
        """Read JSON lines, or rows separated by tabs, with or without a header."""
        examples: list[Inference] = []
        left_out = 0
        try:
            for number, premise, hypothesis, label in _cells(file):
                label = file.labels.get(label, label)
                if not premise or not hypothesis or label in _WITHOUT_LABEL:
                    left_out += 1
                    continue
                if label not in _MEANINGS:
                    raise UserError(
                        f"{file.path}, line {number}: the label {label!r} is none of {', '.join(LABELS)}; say what it "
                        f"stands for with labels: {{{label}: …}} in the list nli.yaml of its folder"
                    )
                examples.append(Inference(premise, hypothesis, _MEANINGS[label]))
        except (*READ_ERRORS, csv.Error) as error:
            raise UserError(f"{file.path}: cannot be read as premise, hypothesis and label ({error})") from error
        if not examples:
            raise UserError(f"{file.path}: has no row with premise, hypothesis and label; leave its language out")
        return Examples(file, examples, left_out)

    def labels(self, training: Sequence[Examples[Inference]]) -> list[str]:
        """Return the three labels."""
        return LABELS

    def rows(self, examples: Examples[Inference], labels: Sequence[str], framing: Framing) -> Rows:
        """Return a row for each pair, the longer text cut where both are too long."""
        premises = framing.encode([one.premise for one in examples.examples])
        hypotheses = framing.encode([one.hypothesis for one in examples.examples])
        rows = []
        truncated = 0
        for index, (one, *pair) in enumerate(zip(examples.examples, premises, hypotheses, strict=True)):
            first, *further = framing.windows(*pair)
            truncated += bool(further)
            rows.append(Row(index, first.ids, first.type_ids, [labels.index(one.label)]))
        return Rows(rows, truncated)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over the pairs."""
        return cross_entropy(outputs, targets[:, 0])

    def read_off(self, outputs: Tensor, row: Row) -> int:
        """Return the label of the pair."""
        return int(outputs.argmax())

    def prediction(self, example: Inference, parts: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
        """Return both labels."""
        return {"label": example.label, "predicted": labels[parts[0]]}

    def score(self, predictions: Sequence[dict[str, Any]], language: str) -> dict[str, float]:
        """Return the accuracy, and that of the most frequent label."""
        gold, predicted = ([line[key] for line in predictions] for key in ("label", "predicted"))
        majority = Counter(gold).most_common(1)[0][1] / len(gold)
        return {"accuracy": float(accuracy_score(gold, predicted)), "majority": majority}

    def example_scores(self, predictions: Sequence[dict[str, Any]], language: str) -> list[float]:
        """Return 1.0 for right labels and 0.0 for wrong ones."""
        return [float(line["label"] == line["predicted"]) for line in predictions]

    def mixed(self, first: Examples[Inference], second: Examples[Inference]) -> list[Inference]:
        """Return pairs of a premise of ``first`` and a hypothesis of ``second``, if all rows have the same labels."""
        if [one.label for one in first.examples] != [one.label for one in second.examples]:
            return []
        return [
            Inference(one.premise, other.hypothesis, one.label)
            for one, other in zip(first.examples, second.examples, strict=True)
        ]


def _cells(file: TaskFile) -> Iterator[tuple[int, str, str, str]]:
    """Yield line number, premise, hypothesis and label."""
    with open_text(file.path) as lines:
        if unpacked_name(file.path).endswith(".jsonl"):
            for number, line in enumerate(lines, 1):
                try:
                    entry = json.loads(line)
                    yield number, *(_entry(entry, file.columns, place) for place in range(3))  # type: ignore[misc]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{file.path}, line {number}: is no JSON object with premise, hypothesis and label ({error})"
                    ) from error
            return
        # In files named .tsv, quotation marks are text; FarsTail's .csv, separated by tabs too, has quoted cells.
        is_tsv = unpacked_name(file.path).endswith(".tsv")
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL)
        places: Sequence[int] | None = None
        for number, row in enumerate(rows, 1):
            if places is None:
                places, is_header = _places(file, row)
                if is_header:
                    continue
            cells = [row[place].strip() if place < len(row) else "" for place in places]
            yield number, cells[0], cells[1], cells[2]


def _entry(entry: dict[str, Any], columns: Sequence[str | int], place: int) -> str:
    names = (str(columns[place]),) if columns else list(_HEADERS.values())[place]
    found = [entry[name] for name in names if name in entry]
    if not found:
        raise KeyError(names[0])
    return str(found[0]).strip()


def _places(file: TaskFile, row: Sequence[str]) -> tuple[list[int], bool]:
    """Return the places of premise, hypothesis and label, by the first row, and whether this names the columns."""
    if file.columns and all(isinstance(column, int) for column in file.columns):
        places = [int(column) for column in file.columns]
        label = row[places[2]].strip() if places[2] < len(row) else ""
        return places, file.labels.get(label, label) not in (*_MEANINGS, *_WITHOUT_LABEL)
    names: list[tuple[str, ...]] = [(str(column),) for column in file.columns] or list(_HEADERS.values())
    found = [next((row.index(name) for name in several if name in row), None) for several in names]
    if None not in found:
        return [place for place in found if place is not None], True
    if len(row) == 3 and not file.columns:
        return [0, 1, 2], False
    raise UserError(
        f"{file.path}: its first row names no premise, hypothesis and label; name its columns in the list nli.yaml of "
        "its folder"
    )
