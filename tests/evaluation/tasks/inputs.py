"""Small task data whose right answers follow from the words, and a model to fine-tune."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.evaluation.tiny_model import save_tiny_model

NAMES = [f"name{number}" for number in range(8)]
PLACES = [f"place{number}" for number in range(8)]
FILLERS = [f"word{number}" for number in range(12)]
WORDS = [*NAMES, *PLACES, *FILLERS, "not", "who", "in"]


def save_model(folder: Path) -> Path:
    return save_tiny_model(folder, WORDS, seed=3)


def write_ner(path: Path, count: int, seed: int) -> None:
    """Sentences ``word name name word in place``: the names are one person, the place is a location."""
    generator = random.Random(seed)
    lines = []
    for _ in range(count):
        words = [generator.choice(FILLERS), *generator.sample(NAMES, 2), generator.choice(FILLERS), "in"]
        rows = zip([*words, generator.choice(PLACES)], ["O", "B-PER", "I-PER", "O", "O", "B-LOC"], strict=True)
        lines += [f"{word}\t{tag}" for word, tag in rows]
        lines.append("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def write_nli(path: Path, count: int, seed: int, *, shuffled: bool = False) -> None:
    """The hypothesis repeats the premise, says "not", or has other words."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        premise = generator.sample(FILLERS, 3)
        label = ("entailment", "contradiction", "neutral")[number % 3]
        hypothesis = {
            "entailment": premise,
            "contradiction": ["not", *premise],
            "neutral": generator.sample(NAMES, 3),
        }[label]
        if shuffled:
            label = generator.choice(("entailment", "contradiction", "neutral"))
        rows.append(f"{' '.join(premise)}\t{' '.join(hypothesis)}\t{label}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(rows))


def write_qa(path: Path, count: int, seed: int) -> None:
    """The answer is the paragraph's only name."""
    generator = random.Random(seed)
    paragraphs = []
    for number in range(count):
        answer = generator.choice(NAMES)
        words = [*generator.sample(FILLERS, 6), answer]
        generator.shuffle(words)
        context = " ".join(words)
        answers = [{"text": answer, "answer_start": context.index(answer)}]
        paragraphs.append({"context": context, "qas": [{"id": str(number), "question": "who", "answers": answers}]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
