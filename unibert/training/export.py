"""Export of a run's checkpoint as a plain Hugging Face model with a card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unibert.configuration import parse, read_yaml
from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.files import file_sha256, write_atomically
from unibert.installation import unibert_version
from unibert.language_means_file import MEANS_NAME, save_language_means
from unibert.model.config import LOSSES
from unibert.model.corpus_counts import language_counts
from unibert.model.encoder import freeze, load_masked_lm
from unibert.model.export import WEIGHTS_NAME, write_hugging_face
from unibert.model.language_means import language_means
from unibert.model.sentence_transformers_files import read_projection
from unibert.model_card import (
    CARD_NAME,
    HeldoutLoss,
    Pretraining,
    TrainingLosses,
    model_name,
    with_language_means,
    with_scores,
)
from unibert.schedules import max_value
from unibert.stream import split_batches
from unibert.stream.stream import chosen_languages
from unibert.training.checkpoint.folder import complete_checkpoints, describe, full_state_dict, step_of
from unibert.training.config import RunConfig
from unibert.training.metrics_file import LoggedMetrics, read_metrics
from unibert.training.parent_file import read_parent_file

START_FOLDER = "start"
"""Folder, within the run's, of the student before the first step, if the run made it."""

_CENTRED_LENGTH = 32
"""Tokens of the sequences over which languages are averaged: sentences are short."""
_CENTRED_SEQUENCES = 256
"""Sequences per language: the error of a mean is a sixteenth of the vectors' deviation."""


def export_run(
    run_dir: str | Path,
    *,
    step: int | None = None,
    output: str | Path | None = None,
    center: bool = False,
    ema: bool = False,
) -> Path:
    """Write the student of a checkpoint as a model that ``AutoModelForMaskedLM`` loads, with its tokenizer.

    The card has the scores in the folder ``evaluation`` beside the output if they were measured on the same weights.

    Args:
        run_dir: the run folder.
        step: optimizer step of the checkpoint; the newest by default.
        output: model folder, ``run_dir/model`` by default, ``run_dir/ema`` for the average. An older export there is
            replaced.
        center: whether to write the mean vector of each of the run's languages, over the beginning of its train text.
        ema: whether to write the moving average of the weights instead of the weights.

    Returns:
        The model folder.

    Raises:
        UserError: if the folder is not a run folder, the checkpoint is missing or damaged, or ``center`` finds no
            corpus.
    """
    run_dir = Path(run_dir)
    checkpoints = checkpoints_by_step(run_dir)
    if step is not None and step not in checkpoints:
        raise UserError(f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, checkpoints))}")
    checkpoint = checkpoints[max(checkpoints) if step is None else step]
    state = full_state_dict(checkpoint, ema=ema)
    folder = Path(output or run_dir / ("ema" if ema else "model"))
    return write_model(run_dir, state, describe(checkpoint), folder, center=center, is_ema=ema)


def checkpoints_by_step(run_dir: Path) -> dict[int, Path]:
    """Return the complete checkpoints of a run by their steps, oldest first.

    Raises:
        UserError: if the folder is not a run folder or has no complete checkpoint.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir} is not a run folder (it has no config.yaml)")
    checkpoints = {step_of(path): path for path in complete_checkpoints(run_dir / "checkpoints")}
    if not checkpoints:
        raise UserError(f"{run_dir} has no complete checkpoint yet")
    return checkpoints


def write_model(
    run_dir: Path,
    state: dict[str, Any],
    progress: dict[str, Any],
    output: Path,
    *,
    center: bool,
    averaged_steps: Sequence[int] = (),
    is_ema: bool = False,
) -> Path:
    """Write weights of a run as a model with tokenizer and card; `export_run` says more.

    Args:
        run_dir: the run folder.
        state: fp32 weights of the trained module by name.
        progress: description of the newest checkpoint that they are made of.
        output: model folder to write.
        center: see `export_run`.
        averaged_steps: steps of the checkpoints whose mean the weights are; none if they are those of one checkpoint.
        is_ema: whether the weights are the moving average of one checkpoint.

    Returns:
        The model folder.
    """
    config = read_yaml(run_dir / "config.yaml")
    fingerprint = progress["state"]["corpus"]
    origin = _pretraining(run_dir, config, fingerprint, steps=progress["step"], tokens=progress["tokens"])
    if averaged_steps or is_ema:
        # The run has measured its own weights only.
        half_life = progress["ema_half_life"] if is_ema else None
        origin = replace(origin, averaged_steps=averaged_steps, ema_half_life=half_life, losses=None, heldout=None)
    write_hugging_face(state, run_dir / "model_config", Path(config["corpus"]) / "tokenizer", output, origin)
    if scores := _scores_of(output):
        card = output / CARD_NAME
        write_atomically(card, with_scores(card.read_text(encoding="utf-8"), scores))
    if center:
        _write_language_means(output, parse(RunConfig, ["--config", str(run_dir / "config.yaml")]))
    return output


def _write_language_means(output: Path, config: RunConfig) -> None:
    languages = chosen_languages(Manifest.load(config.corpus), config.stream)
    batches = split_batches(
        config.corpus,
        config.stream,
        split="train",
        seed=config.seed,
        sequence_length=_CENTRED_LENGTH,
        micro_batch_size=_CENTRED_SEQUENCES,
        max_sequences_per_language=_CENTRED_SEQUENCES,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = freeze(load_masked_lm(output, "export"), device, torch.float32)
    means = language_means(model, batches, languages)
    if (projection := read_projection(output)) is not None:
        means = {code: projection.apply(mean) for code, mean in means.items()}
    save_language_means(output, means)
    card = output / CARD_NAME
    write_atomically(card, with_language_means(card.read_text(encoding="utf-8"), MEANS_NAME, list(means)))


def start_of_run(run_dir: Path) -> Pretraining:
    """Describe a run before its first step, for the card of the student that it starts from."""
    config = read_yaml(run_dir / "config.yaml")
    return _pretraining(run_dir, config, Manifest.load(config["corpus"]).fingerprint, steps=0, tokens=0)


def _pretraining(run_dir: Path, config: dict[str, Any], fingerprint: str, *, steps: int, tokens: int) -> Pretraining:
    """Describe a run up to a step by its configuration, its corpus and its metrics."""
    model, adversary, distillation = (config.get(key) or {} for key in ("model", "adversary", "distillation"))
    manifest = _manifest(config, fingerprint)
    path = run_dir / "metrics.jsonl"
    metrics = read_metrics(path) if path.is_file() else LoggedMetrics([], damaged_lines=0)
    initial_model, teacher = model.get("initialize_from"), distillation.get("teacher")
    if distillation and teacher is None:
        teaching = None if manifest is None else manifest.teaching
        teacher = "unknown" if teaching is None else teaching.teacher
    parent = read_parent_file(run_dir)
    return Pretraining(
        name=run_dir.resolve().name,
        languages=[] if manifest is None else language_counts(manifest, config["stream"].get("languages")),
        trainer=f"UniBERT {unibert_version()}",
        steps=steps,
        tokens=tokens,
        masked_lm=config["mlm"]["weight"] != 0,
        max_lambda=adversary.get("max_lambda"),
        teacher=teacher and model_name(teacher),
        teacher_losses={name: max_value(distillation.get(name, 0.0)) for name in LOSSES},
        initial_model=initial_model and model_name(initial_model),
        initial_layers=model.get("initialize_layers"),
        is_fitted=model.get("initialize_fit", False),
        losses=_training_losses(metrics, steps),
        heldout=_heldout_loss(metrics, steps),
        parent=None if parent is None else Path(parent["parent"]).name,
        parent_tokens=0 if parent is None else parent["tokens"],
    )


def _manifest(config: dict[str, Any], fingerprint: str) -> Manifest | None:
    """Return the manifest of the run's corpus; None if it is missing or that of another corpus by now."""
    try:
        manifest = Manifest.load(config["corpus"])
    except UserError:
        # The model can be exported all the same.
        return None
    return manifest if manifest.fingerprint == fingerprint else None


def _training_losses(metrics: LoggedMetrics, step: int) -> TrainingLosses | None:
    """Return what was last logged up to a step, if there is any."""
    last = next((record for record in reversed(metrics.training) if record["step"] <= step), None)
    if last is None:
        return None
    distillation = {name: last.get(f"distillation_{name}_loss") for name in LOSSES}
    return TrainingLosses(
        step=last["step"],
        mlm_nats=last.get("mlm_loss"),
        discriminator_accuracy=last.get("adversary_accuracy"),
        discriminator_chance=last.get("adversary_chance"),
        distillation={name: loss for name, loss in distillation.items() if loss is not None},
    )


def _heldout_loss(metrics: LoggedMetrics, step: int) -> HeldoutLoss | None:
    """Return the last measurement up to a step, if there is one."""
    last = next((record for record in reversed(metrics.heldout) if record["step"] <= step), None)
    if last is None:
        return None
    return HeldoutLoss(step=last["step"], nats=last["heldout_mlm_loss"], unigram_nats=last.get("unigram_entropy"))


def _scores_of(model: Path) -> dict[str, Any] | None:
    """Return the scores beside a model folder if they are those of its weights."""
    try:
        scores = json.loads((model.resolve().parent / "evaluation" / "scores.json").read_text(encoding="utf-8"))
        is_same = scores["weights_sha256"] == file_sha256(model / WEIGHTS_NAME)
    except (OSError, ValueError, KeyError, TypeError):
        # Scores are optional here; unibert report names damaged ones.
        return None
    return scores if is_same else None
