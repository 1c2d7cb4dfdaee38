"""Named entity recognition: which words name a person, a place or an organisation?

A word's label is learnt and predicted at its first sub-word. Sentences that are longer than a row are cut into several
rows, so that every word is scored. The score is the F1 of whole entities, micro-averaged, as seqeval and conlleval
compute it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from seqeval.metrics import f1_score, precision_score, recall_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from unibert.errors import UserError
from unibert.evaluation.packed_files import READ_ERRORS, open_text, unpacked_name
from unibert.evaluation.tasks.files import Pattern, TaskFile
from unibert.evaluation.tasks.framing import Framing
from unibert.evaluation.tasks.task import IGNORED, Examples, Row, Rows, Task

_TAG = re.compile(r"O|[BI]-\S+")
_UNER_LABELS = {"B-OTH": "O", "I-OTH": "O"}
"""Universal NER scores persons, places and organisations only."""


@dataclass(frozen=True)
class TaggedSentence:
    """Words and their tags in the scheme IOB2 or IOB1."""

    words: list[str]
    tags: list[str]


class NamedEntities(Task[TaggedSentence]):
    """Named entity recognition on PAN-X, Universal NER, CoNLL and files like theirs."""

    name = "ner"
    title = "Named entity recognition"
    metric = "f1"
    epochs = 10
    max_length = 128
    head = "token"
    patterns = (
        Pattern(r"[^/]+/(?P<language>[a-z]{2,3})_(?P<part>[a-z]+)-ud-(?P<split>train|dev|test)\.iob2", "uner"),
        Pattern(r"[^/]+/(?P<language>eng|deu|esp|ned)\.(?P<split>train|testa|testb)", "conll"),
        Pattern(r"[^/]+/(?P<split>train|dev|test)-(?P<language>[a-z]{2,3})\.tsv"),
        Pattern(
            r"(?P<subfolder>(?P<language>[a-z]{2,3}))/(?P<split>train|dev|valid|test)(\.tsv|\.txt|\.conll|\.iob2)?"
        ),
    )
    wikipedia = frozenset({"panx", "wikiann"})

    def read(self, file: TaskFile) -> Examples[TaggedSentence]:
        """Read lines ``token … tag``, separated by tabs or spaces, with an empty line between sentences.

        Universal NER's lines are ``number, token, tag, …`` and have comments. XTREME writes the language before each
        token, which is removed.
        """
        iob2 = unpacked_name(file.path).endswith(".iob2")
        token_column, tag_column = file.columns or ((1, 2) if iob2 else (0, -1))
        labels = {**(_UNER_LABELS if iob2 else {}), **_tag_meanings(file.labels)}
        try:
            sentences = list(_sentences(file, int(token_column), int(tag_column), labels, comments=iob2))
        except READ_ERRORS as error:
            raise UserError(f"{file.path}: cannot be read as words and tags ({error})") from error
        if not sentences:
            raise UserError(f"{file.path}: has no sentence; leave its language out or fetch the file again")
        if all(word.startswith(f"{file.language}:") for sentence in sentences for word in sentence.words):
            prefix = len(file.language) + 1
            sentences = [TaggedSentence([word[prefix:] for word in one.words], one.tags) for one in sentences]
        return Examples(file, sentences, left_out=0)

    def labels(self, training: Sequence[Examples[TaggedSentence]]) -> list[str]:
        """Return O, then B and I of every type of entity in the training data."""
        types = {tag[2:] for part in training for one in part.examples for tag in one.tags if tag != "O"}
        return ["O", *(f"{position}-{kind}" for kind in sorted(types) for position in "BI")]

    def rows(self, examples: Examples[TaggedSentence], labels: Sequence[str], framing: Framing) -> Rows:
        """Return rows with the label of a word at its first token, and ``(token, word)`` as places.

        Words that have no token, such as a lone variation selector, are learnt by no row and predicted as O.
        """
        numbers = {label: number for number, label in enumerate(labels)}
        rows: list[Row] = []
        encoded = framing.encode([" ".join(sentence.words) for sentence in examples.examples])
        for index, (sentence, encoding) in enumerate(zip(examples.examples, encoded, strict=True)):
            if unknown := next((tag for tag in sentence.tags if tag not in numbers), None):
                raise UserError(
                    f"{examples.file.path}: has the entity type {unknown[2:]}, which the training data lack; say what "
                    f"it stands for with labels: {{{unknown[2:]}: O}} in the list ner.yaml of its folder"
                )
            starts = [0, *accumulate(len(word) + 1 for word in sentence.words)]
            seen = 0
            for window in framing.windows(encoding):
                places = []
                for token, (start, end) in enumerate(window.offsets):
                    if window.special_tokens_mask[token]:
                        continue
                    # The first word after those seen of which this token has a character.
                    while seen < len(sentence.words) and starts[seen] + len(sentence.words[seen]) <= start:
                        seen += 1
                    if seen < len(sentence.words) and starts[seen] < end:
                        places.append((token, seen))
                        seen += 1
                targets = [IGNORED] * len(window.ids)
                for token, word in places:
                    targets[token] = numbers[sentence.tags[word]]
                rows.append(Row(index, window.ids, window.type_ids, targets, places))
        return Rows(rows, truncated=0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over the words."""
        return cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def read_off(self, outputs: Tensor, row: Row) -> list[tuple[int, int]]:
        """Return the word and the label of each of the row's first tokens."""
        best = outputs.argmax(dim=-1).tolist()
        return [(word, best[token]) for token, word in row.places]

    def prediction(
        self, example: TaggedSentence, parts: Sequence[list[tuple[int, int]]], labels: Sequence[str]
    ) -> dict[str, Any]:
        """Return the tags of all words."""
        predicted = ["O"] * len(example.words)
        for part in parts:
            for word, label in part:
                predicted[word] = labels[label]
        return {"tags": example.tags, "predicted": predicted}

    def score(self, predictions: Sequence[dict[str, Any]], language: str) -> dict[str, float]:
        """Return F1, precision and recall of entities over all sentences."""
        gold, predicted = ([line[key] for line in predictions] for key in ("tags", "predicted"))
        with warnings.catch_warnings():
            # Without any entity, the score is 0, as it should be.
            warnings.simplefilter("ignore")
            scorers = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
            return {name: float(scorer(gold, predicted)) for name, scorer in scorers.items()}


def _tag_meanings(labels: dict[str, str]) -> dict[str, str]:
    """Return the meanings of tags, from those of entity types."""
    return {
        f"{position}-{kind}": meaning if meaning == "O" else f"{position}-{meaning}"
        for kind, meaning in labels.items()
        for position in "BI"
    }


def _sentences(
    file: TaskFile, token_column: int, tag_column: int, labels: dict[str, str], *, comments: bool
) -> Iterator[TaggedSentence]:
    words: list[str] = []
    tags: list[str] = []
    with open_text(file.path) as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if comments and line.startswith("#"):
                continue
            if not line.strip():
                if words:
                    yield TaggedSentence(words, tags)
                words, tags = [], []
                continue
            cells = line.split("\t") if "\t" in line else line.split(" ")
            if cells[0] == "-DOCSTART-":
                continue
            try:
                word, tag = cells[token_column], cells[tag_column]
            except IndexError:
                raise UserError(f"{file.path}, line {number}: has no word and tag; separate them by a tab") from None
            if len(cells) < 2 or not _TAG.fullmatch(tag):
                raise UserError(f"{file.path}, line {number}: the tag {tag!r} is none of O, B-TYPE and I-TYPE")
            words.append(word)
            tags.append(labels.get(tag, tag))
    if words:
        yield TaggedSentence(words, tags)
