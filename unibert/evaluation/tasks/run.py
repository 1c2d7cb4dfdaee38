"""Running a task: fine-tuning on the source language, prediction in all languages, scores.

A task has a folder of its own among the scores::

    settings.json     the model's and the files' digests and the settings, by which an interrupted command goes on
    fine-tuned/       weights of the fine-tuned models, until all sets are predicted
    training-N.json   what the Nth fine-tuning, from 0, went through
    predictions/      a file for each set, a line for each example: what is right and what is predicted
    scores.json       see below
    scores.md         its table

``scores.json``::

    format          1
    task, metric    short name; the score that represents the task
    model_folder, weights_sha256, settings
    training        [{"languages", "sets": {set: examples}, "truncated", "dev": {"set", "examples"}, "losses",
                    "dev_scores", "best_epoch", "seconds"}]
    sets            {set: {"collection", "language", "file", "examples", "of", "left_out", "truncated"}}
    scores          {set: {metric: value}}
    mean            {metric: value} over the sets in one language
    mixed_mean      {metric: value} over those in two languages; null if there are none
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unibert.errors import UserError
from unibert.evaluation.embeddings import load_encoder
from unibert.evaluation.tasks.fine_tuning import FineTunedModel, Recipe, fine_tune, outputs_of
from unibert.evaluation.tasks.framing import Framing
from unibert.evaluation.tasks.options import FineTuningConfig
from unibert.evaluation.tasks.selection import Fit, select_fits
from unibert.evaluation.tasks.task import MIXED, Examples, Row, Task
from unibert.files import file_sha256, replacing, write_atomically, write_json
from unibert.text import markdown_table


@dataclass(frozen=True)
class EvaluatedModel:
    """The model that is fine-tuned.

    Attributes:
        folder: Hugging Face model folder.
        weights_sha256: digest of its weights.
        untrained_seed: seed of fresh weights that replace the folder's; None keeps these.
        language_means: (H,) of each language, which is subtracted from its hidden states; None subtracts nothing.
    """

    folder: Path
    weights_sha256: str | None
    untrained_seed: int | None = None
    language_means: Mapping[str, Tensor] | None = None


def run_task(
    task: Task[Any],
    folder: Path,
    model: EvaluatedModel,
    options: FineTuningConfig,
    *,
    source: str,
    languages: Sequence[str] | None,
    seed: int,
    device: torch.device,
    output: Path,
) -> dict[str, Any]:
    """Fine-tune the model, predict and score, or go on where an interrupted command has stopped.

    Args:
        task: what is learnt.
        folder: its files.
        model: the model.
        options: how it is fine-tuned.
        source: language of the training data.
        languages: languages to score; None scores all.
        seed: seed of the head, the order of the data and the dropout.
        device: where the model is.
        output: the task's folder among the scores.

    Returns:
        the content of scores.json.

    Raises:
        UserError: for files that are missing or malformed, or if ``output`` holds results of another model, other files
            or settings.
    """
    fits = select_fits(task, folder, options, source=source, languages=languages)
    if model.language_means is not None:
        fits = [_with_means(fit, model) for fit in fits]
    settings = _settings(task, folder, fits, model, options, source, seed)
    try:
        _claim(output, settings, model.folder)
        scores = output / "scores.json"
        if scores.is_file():
            return json.loads(scores.read_text(encoding="utf-8"))
        content = _TaskRun(task, model, options, seed, device, output).run(fits, folder, settings)
        write_atomically(output / "scores.md", format_task(content, task))
        write_json(scores, content)
        for weights in (output / "fine-tuned").glob("*.safetensors"):
            weights.unlink()
        (output / "fine-tuned").rmdir()
    except OSError as error:
        raise UserError(f"{output}: the scores cannot be written: {error.strerror}") from error
    return content


class _TaskRun:
    def __init__(
        self,
        task: Task[Any],
        model: EvaluatedModel,
        options: FineTuningConfig,
        seed: int,
        device: torch.device,
        output: Path,
    ) -> None:
        self._task, self._model, self._options = task, model, options
        self._seed, self._device, self._output = seed, device, output

    def run(self, fits: Sequence[Fit], folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        training: list[dict[str, Any]] = []
        described: dict[str, dict[str, Any]] = {}
        scores: dict[str, dict[str, float]] = {}
        for number, fit in enumerate(fits):
            labels = self._task.labels(fit.training)
            model: FineTunedModel | None = None
            framing: Framing | None = None
            for tested in fit.tested:
                path = self._output / "predictions" / f"{tested.file.unit.replace(' ', '-')}.jsonl"
                info = path.with_suffix(".json")
                if not path.is_file() or not info.is_file():
                    if model is None or framing is None:
                        model, framing = self._fine_tuned(number, fit, labels)
                    predictions, truncated = self._predict(model, framing, tested, labels)
                    write_json(info, {"truncated": truncated})
                    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions))
                unit = tested.file.unit
                scores[unit] = self._task.score(read_predictions(path), tested.file.language)
                described[unit] = {
                    "collection": tested.file.collection,
                    "language": tested.file.language,
                    "file": str(tested.file.path.relative_to(folder)),
                    "examples": len(tested.examples),
                    "of": fit.sizes[unit],
                    "left_out": tested.left_out,
                    **json.loads(info.read_text(encoding="utf-8")),
                }
            training.append(json.loads(self._log_path(number).read_text(encoding="utf-8")))
        return {
            "format": 1,
            "task": self._task.name,
            "metric": self._task.metric,
            "model_folder": str(self._model.folder),
            "weights_sha256": self._model.weights_sha256,
            "settings": settings["settings"],
            "training": training,
            "sets": described,
            "scores": scores,
            "mean": _mean([one for unit, one in scores.items() if MIXED not in unit]),
            "mixed_mean": _mean([one for unit, one in scores.items() if MIXED in unit]),
        }

    def _log_path(self, number: int) -> Path:
        return self._output / f"training-{number}.json"

    def _fine_tuned(self, number: int, fit: Fit, labels: Sequence[str]) -> tuple[FineTunedModel, Framing]:
        """Return the fine-tuned model, from its file if there is one, and the framing of its texts."""
        task, options = self._task, self._options
        encoder, tokenizer = load_encoder(self._model.folder, untrained_seed=self._model.untrained_seed)
        framing = Framing(tokenizer, options.max_length or task.max_length)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            model = FineTunedModel(
                encoder,
                len(labels),
                pooling=options.pooling if task.head == "sequence" else None,
                pad_id=framing.pad_id,
                has_type_ids=framing.has_type_ids,
                device=self._device,
            )
        weights = self._output / "fine-tuned" / f"{number}.safetensors"
        if weights.is_file():
            model.load_state_dict(load_file(weights))
            return model, framing
        start = time.perf_counter()
        rows: list[Row] = []
        languages: list[str] = []
        truncated = 0
        for part in fit.training:
            made = task.rows(part, labels, framing)
            rows += made.rows
            languages += [part.file.language] * len(made.rows)
            truncated += made.truncated
        language_of = {id(row): language for row, language in zip(rows, languages, strict=True)}

        def language_mean(batch: Sequence[Row]) -> Tensor | None:
            means = [self._language_mean(language_of[id(row)]) for row in batch]
            return None if means[0] is None else torch.stack(means)[:, None]  # type: ignore[arg-type]

        dev_rows = task.rows(fit.dev, labels, framing).rows

        def dev_score() -> float:
            found = self._predictions(model, dev_rows, fit.dev, labels, "dev")
            return task.score(found, fit.dev.file.language)[task.metric]

        recipe = Recipe(
            epochs=options.epochs or task.epochs,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            seed=self._seed,
        )
        log = fine_tune(
            model,
            rows,
            dev_rows,
            recipe,
            loss=task.loss,
            dev_score=dev_score,
            language_mean=language_mean,
            name=task.name,
        )
        write_json(
            self._log_path(number),
            {
                "languages": fit.languages,
                "sets": {f"{part.file.unit} {part.file.split}": len(part.examples) for part in fit.training},
                "truncated": truncated,
                "dev": {"set": f"{fit.dev.file.unit} {fit.dev.file.split}", "examples": len(fit.dev.examples)},
                **asdict(log),
                "seconds": round(time.perf_counter() - start, 1),
            },
        )
        with replacing(weights) as partial:
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, partial)
        return model, framing

    def _language_mean(self, language: str) -> Tensor | None:
        means = self._model.language_means
        return None if means is None else means[language].to(self._device)

    def _predict(
        self, model: FineTunedModel, framing: Framing, tested: Examples[Any], labels: Sequence[str]
    ) -> tuple[list[dict[str, Any]], int]:
        made = self._task.rows(tested, labels, framing)
        return self._predictions(model, made.rows, tested, labels, tested.file.unit), made.truncated

    def _predictions(
        self, model: FineTunedModel, rows: Sequence[Row], examples: Examples[Any], labels: Sequence[str], name: str
    ) -> list[dict[str, Any]]:
        parts: list[list[Any]] = [[] for _ in examples.examples]
        mean = self._language_mean(examples.file.language)
        for row, outputs in outputs_of(model, rows, mean, f"{self._task.name}: {name}"):
            parts[row.example].append(self._task.read_off(outputs, row))
        return [
            self._task.prediction(example, found, labels)
            for example, found in zip(examples.examples, parts, strict=True)
        ]


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    return {key: fmean(one[key] for one in scores) for key in scores[0]} if scores else None


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Read a file of predictions.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as predictions ({error}); remove it and score the model again"
        ) from error


def _with_means(fit: Fit, model: EvaluatedModel) -> Fit:
    """Leave out the sets of languages that have no mean; raise UserError if a language of the training has none."""
    means = model.language_means or {}
    for part in (*fit.training, fit.dev):
        if part.file.language not in means:
            raise UserError(
                f"center: {model.folder} has no mean of {part.file.language}; write its means with "
                "unibert export RUN_DIR --center, from a corpus with this language"
            )
    return fit.with_tested([one for one in fit.tested if one.file.language in means])


def _settings(
    task: Task[Any],
    folder: Path,
    fits: Sequence[Fit],
    model: EvaluatedModel,
    options: FineTuningConfig,
    source: str,
    seed: int,
) -> dict[str, Any]:
    files = {part.file.path for fit in fits for part in (*fit.training, fit.dev, *fit.tested)}
    return {
        "model": {"weights_sha256": model.weights_sha256, "untrained_seed": model.untrained_seed},
        "files": {str(path.relative_to(folder)): file_sha256(path) for path in sorted(files)},
        "settings": {
            **asdict(options),
            "center": model.language_means is not None,
            "epochs": options.epochs or task.epochs,
            "max_length": options.max_length or task.max_length,
            "source": source,
            "seed": seed,
        },
    }


def _claim(output: Path, settings: Mapping[str, Any], model: Path) -> None:
    """Make the folder, or check that it is of the same task; raise UserError or OSError."""
    path = output / "settings.json"
    for folder in ("predictions", "fine-tuned"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_json(path, settings)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); remove {output}") from error
    if difference := next(_differences(found, json.loads(json.dumps(settings))), None):
        raise UserError(
            f"{output} holds results of {difference}, which is not what {model} is scored with now; name another "
            "--output or remove that folder"
        )


def _differences(found: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Yield the places in which two settings differ, and the values found."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differences(found.get(key), wanted.get(key), f"{place}.{key}" if place else key)
    elif found != wanted:
        shown = str(found)
        yield f"{place.removeprefix('settings.')} {shown if len(shown) < 20 else shown[:12] + '…'}"


def format_task(content: Mapping[str, Any], task: Task[Any]) -> str:
    """Return the table of a task's scores.json."""
    metrics = list(content["mean"])
    rows = []
    for unit, described in content["sets"].items():
        number, of = described["examples"], described["of"]
        rows.append(
            [
                unit,
                *(f"{100 * content['scores'][unit][metric]:.1f}" for metric in metrics),
                f"{number:,}" if number == of else f"{number:,} of {of:,}",
                f"{described['truncated']:,}",
            ]
        )
    for name, mean in (("mean", content["mean"]), ("mean of two languages", content["mixed_mean"])):
        if mean is not None:
            rows.append([name, *(f"{100 * mean[metric]:.1f}" for metric in metrics), "", ""])
    lines = [f"# {task.title} of {content['model_folder']}", ""]
    for fit in content["training"]:
        sets = ", ".join(f"{name} ({number:,} examples)" for name, number in fit["sets"].items())
        lines.append(
            f"Trained on {sets}, {fit['truncated']:,} of them cut. Epoch {fit['best_epoch']} of "
            f"{len(fit['dev_scores'])} is the best on {fit['dev']['set']} ({fit['dev']['examples']:,} examples): "
            f"{task.metric} {100 * max(fit['dev_scores']):.1f}."
        )
    lines += ["", *markdown_table(["set", *(name.replace("_", " ") for name in metrics), "examples", "cut"], rows)]
    known = sorted({one["collection"] for one in content["sets"].values()} & task.wikipedia)
    if known:
        lines += [
            "",
            f"Text of Wikipedia, which a model that was pre-trained on Wikipedia may have read: {', '.join(known)}.",
        ]
    return "\n".join(lines) + "\n"
