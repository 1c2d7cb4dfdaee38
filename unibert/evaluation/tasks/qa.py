"""Question answering: where in a paragraph is the answer?

Paragraphs that are longer than a row are cut into windows that overlap. A window without the answer learns to point at
its first token. The prediction is the span with the largest sum of the scores of its first and last token, over all
spans of at most 30 tokens in all windows; none is passed over, as lists of n best tokens do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unibert.errors import UserError
from unibert.evaluation.packed_files import READ_ERRORS, open_text
from unibert.evaluation.tasks.answer_scores import best_of, exact_match, word_f1
from unibert.evaluation.tasks.files import Pattern, TaskFile
from unibert.evaluation.tasks.framing import Framing
from unibert.evaluation.tasks.task import MIXED, Examples, Row, Rows, Task

STRIDE = 128
"""Tokens that two windows of a paragraph share, at most a third of a row."""
MAX_QUESTION_SHARE = 1 / 4
"""Longer questions are cut, so that a row has room for the paragraph."""
MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True)
class Question:
    """A question, its paragraph, and the right answers."""

    id: str
    question: str
    context: str
    answers: list[str]
    starts: list[int]
    """Index in ``context`` of the first character of each answer."""


class QuestionAnswering(Task[Question]):
    """Extractive question answering on XQuAD, MLQA, TyDi QA and files like SQuAD's."""

    name = "qa"
    title = "Question answering"
    metric = "f1"
    epochs = 3
    max_length = 384
    head = "token"
    patterns = (
        Pattern(r"[^/]+/xquad\.(?P<language>[a-z]{2,3})\.json", "xquad", split="test"),
        Pattern(r"[^/]+/(?P<split>dev|test)-context-(?P<language>[a-z]{2,3})-question-(?P=language)\.json", "mlqa"),
        Pattern(
            r"[^/]+/(?P<split>dev|test)-context-(?P<language>[a-z]{2,3})-question-(?P<part>[a-z]{2,3})\.json",
            "mlqa-questions",
        ),
        Pattern(r"[^/]+/tydiqa\.goldp\.(?P<language>[a-z]{2,3})\.(?P<split>train|dev|test)\.json", "tydiqa"),
        Pattern(r"[^/]+/(?P<split>train|dev)-v1\.1\.json", "squad", "en"),
    )
    wikipedia = frozenset({"xquad", "mlqa", "mlqa-questions", "tydiqa", "squad"})

    def read(self, file: TaskFile) -> Examples[Question]:
        """Read SQuAD's JSON. Answers that do not stand at their place, and questions without one, are left out."""
        questions: list[Question] = []
        left_out = 0
        try:
            with open_text(file.path) as opened:
                content = json.load(opened)
            for entry, context in _entries(content):
                answers = [
                    (str(answer["text"]), int(answer["answer_start"]))
                    for answer in entry["answers"]
                    if answer["text"].strip() and context[answer["answer_start"] :].startswith(answer["text"])
                ]
                if not answers:
                    left_out += 1
                    continue
                texts, starts = (list(column) for column in zip(*answers, strict=True))
                questions.append(Question(str(entry["id"]), entry["question"].strip(), context, texts, starts))
        except READ_ERRORS as error:
            raise UserError(f"{file.path}: cannot be read as SQuAD's JSON ({error})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file.path}: is not SQuAD's JSON, data → paragraphs → qas → answers ({type(error).__name__}: {error})"
            ) from error
        if not questions:
            raise UserError(f"{file.path}: has no question with an answer at its place; leave its language out")
        return Examples(file, questions, left_out)

    def labels(self, training: Sequence[Examples[Question]]) -> list[str]:
        """Return the two ends of a span."""
        return ["start", "end"]

    def rows(self, examples: Examples[Question], labels: Sequence[str], framing: Framing) -> Rows:
        """Return rows with the tokens of the first answer; places are first and last character, None elsewhere."""
        questions = framing.encode([one.question for one in examples.examples])
        contexts = framing.encode([one.context for one in examples.examples])
        question_limit = max(1, int(framing.max_length * MAX_QUESTION_SHARE))
        rows: list[Row] = []
        truncated = 0
        for index, (one, question, context) in enumerate(zip(examples.examples, questions, contexts, strict=True)):
            if len(question.ids) > question_limit:
                [question] = framing.encode([one.question[: question.offsets[question_limit - 1][1]]])
                truncated += 1
            stride = min(STRIDE, framing.max_length // 3)
            answer = (one.starts[0], one.starts[0] + len(one.answers[0]))
            for window in framing.windows(question, context, cut="only_second", stride=stride):
                places = [
                    _without_space(one.context, offset) if sequence == 1 else None
                    for sequence, offset in zip(window.sequence_ids, window.offsets, strict=True)
                ]
                rows.append(Row(index, window.ids, window.type_ids, _target(places, *answer), places))
        return Rows(rows, truncated)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of both ends over the tokens of a row."""
        return cross_entropy(outputs.transpose(1, 2).flatten(0, 1), targets.flatten())

    def read_off(self, outputs: Tensor, row: Row) -> tuple[float, int, int]:
        """Return the best span's score, first character, and end."""
        tokens = [token for token, place in enumerate(row.places) if place is not None]
        if not tokens:
            return float("-inf"), 0, 0
        start, end = outputs[tokens].T
        scores = start[:, None] + end[None, :]
        number = len(tokens)
        spans = torch.ones(number, number, dtype=torch.bool, device=outputs.device).triu()
        scores = scores.masked_fill(~(spans & ~spans.triu(MAX_ANSWER_TOKENS)), float("-inf"))
        best = int(scores.argmax())
        first, last = tokens[best // number], tokens[best % number]
        return float(scores.max()), row.places[first][0], row.places[last][1]

    def prediction(
        self, example: Question, parts: Sequence[tuple[float, int, int]], labels: Sequence[str]
    ) -> dict[str, Any]:
        """Return the right answers and the best span's text."""
        _, start, end = max(parts, key=lambda part: part[0])
        return {"id": example.id, "answers": example.answers, "predicted": example.context[start:end]}

    def score(self, predictions: Sequence[dict[str, Any]], language: str) -> dict[str, float]:
        """Return F1 and exact match, the means over the questions."""
        language = language.partition(MIXED)[0]
        matches = [best_of(exact_match, line["predicted"], line["answers"], language) for line in predictions]
        return {"f1": fmean(self.example_scores(predictions, language)), "exact_match": fmean(matches)}

    def example_scores(self, predictions: Sequence[dict[str, Any]], language: str) -> list[float]:
        """Return the F1 of each question."""
        language = language.partition(MIXED)[0]
        return [best_of(word_f1, line["predicted"], line["answers"], language) for line in predictions]

    def mixed(self, first: Examples[Question], second: Examples[Question]) -> list[Question]:
        """Return paragraphs of ``first`` with the questions of ``second`` that have the same id."""
        asked = {one.id: one.question for one in second.examples}
        return [replace(one, question=asked[one.id]) for one in first.examples if one.id in asked]


def _entries(content: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield questions and their paragraphs."""
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                yield entry, paragraph["context"]


def _without_space(text: str, offset: tuple[int, int]) -> tuple[int, int]:
    """Return the place of a token without the spaces at its ends, which many tokenizers count to the token."""
    start, end = offset
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _target(places: Sequence[tuple[int, int] | None], start: int, end: int) -> list[int]:
    """Return the first and last token of an answer; both 0, the first token of the row, if not all of it is there."""
    inside = [
        token
        for token, place in enumerate(places)
        if place is not None and place[0] < place[1] and place[0] < end and place[1] > start
    ]
    known = [place for place in places if place is not None]
    if not inside or known[0][0] > start or known[-1][1] < end:
        return [0, 0]
    return [inside[0], inside[-1]]
