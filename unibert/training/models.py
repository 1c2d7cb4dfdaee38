"""The models of a run, student and teacher, with the ids of its corpus."""

from __future__ import annotations

from pathlib import Path

import torch

from unibert.corpus.document_tokenizer import corpus_tokenizer
from unibert.corpus.manifest import Manifest, Teaching
from unibert.errors import UserError
from unibert.model.architectures import positions_needed
from unibert.model.encoder import build_masked_lm, freeze, load_teacher
from unibert.model.teacher import Teacher, weights_sha256
from unibert.model.teacher_input import Prompt
from unibert.model.unibert import UniBERT
from unibert.model.vocabulary import adapt_to_corpus
from unibert.schedules import ever_positive
from unibert.stream.stream import chosen_languages
from unibert.training.config import RunConfig


def build_model(config: RunConfig, manifest: Manifest, device: torch.device) -> UniBERT:
    """Build what a run trains, with its teacher on ``device``; the student's fresh weights follow the run's seed.

    Raises:
        UserError: if a configuration is invalid, or student, teacher and corpus do not fit each other.
    """
    torch.manual_seed(config.seed)
    student = build_masked_lm(
        config.model,
        manifest.vocab_size,
        _max_sequence_length(config),
        special_ids=manifest.special_ids,
        tokenizer_dir=Path(config.corpus) / "tokenizer",
    )
    return UniBERT(
        student,
        len(chosen_languages(manifest, config.stream)),
        mlm=config.mlm,
        adversary=config.adversary,
        distillation=config.distillation,
        teacher=_teacher_of_run(config, manifest, device),
        attention=config.model.attention,
    )


def _teacher_of_run(config: RunConfig, manifest: Manifest, device: torch.device) -> Teacher | Teaching | None:
    distillation = config.distillation
    if distillation is None:
        return None
    if distillation.teacher is None:
        return manifest.teaching_for(config.corpus, config.training.timeline().sequence_lengths)
    return build_teacher(
        distillation.teacher,
        Path(config.corpus),
        manifest,
        key="distillation.teacher",
        sequence_length=_max_sequence_length(config),
        device=device,
        clean=distillation.teacher_input == "clean",
        prompt=distillation.teacher_prompt,
        needs_head=ever_positive(distillation.logits),
        attention=config.model.attention,
    )


def build_fit_teacher(config: RunConfig, manifest: Manifest, device: torch.device) -> Teacher:
    """Build the teacher to which a student of ``model.initialize_fit`` is fitted, if the run has none in memory.

    Raises:
        UserError: if the run learns from vectors in the corpus and it is not the model that wrote them.
    """
    name = config.model.initialize_from
    assert name is not None
    teaching = manifest.teaching if config.learns_from_corpus else None
    teacher = build_teacher(
        name,
        Path(config.corpus),
        manifest,
        key="model.initialize_from",
        sequence_length=_max_sequence_length(config),
        device=device,
        clean=True,
        prompt="" if teaching is None else teaching.prompt,
        attention=config.model.attention,
    )
    if teaching is not None and weights_sha256(teacher.model) != teaching.weights_sha256:
        raise UserError(
            f"model.initialize_from: {name} has other weights than {teaching.teacher}, whose vectors {config.corpus} "
            "holds, so that no student can be fitted to both; name that model, or set model.initialize_fit to false"
        )
    return teacher


def build_teacher(
    name: str,
    corpus_dir: Path,
    manifest: Manifest,
    *,
    key: str,
    sequence_length: int,
    device: torch.device,
    clean: bool,
    prompt: str = "",
    needs_head: bool = False,
    attention: str = "auto",
) -> Teacher:
    """Load a teacher, give it the corpus's ids, and freeze it, in bf16 on a GPU.

    Args:
        name: Hugging Face folder or hub id.
        corpus_dir, manifest: corpus that it reads.
        key: configuration key of ``name``, for messages.
        sequence_length: tokens of the longest sequence, without the prompt.
        device: where it runs.
        clean: whether it reads the text without masks.
        prompt: text that it reads at the start of every document.
        needs_head: whether its masked-LM head must be there.
        attention: attention path.

    Raises:
        UserError: if it cannot be found or used, or does not fit the corpus or the sequences.
    """
    model = load_teacher(name, key, needs_head=needs_head)
    tokens = _prompt(prompt, corpus_dir, manifest)
    prompt_length = 0 if tokens is None else len(tokens.ids)
    if model.config.max_position_embeddings < positions_needed(model.config, sequence_length + prompt_length):
        with_prompt = f" and a prompt of {prompt_length}" if prompt_length else ""
        raise UserError(
            f"{key}: {name} has {model.config.max_position_embeddings} positions, too few for sequences of "
            f"{sequence_length} tokens{with_prompt}; shorten the sequences or choose another teacher"
        )
    adapt_to_corpus(model, name, corpus_dir / "tokenizer", key)
    freeze(model, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return Teacher(model, clean=clean, prompt=tokens, attention=attention)


def _prompt(text: str, corpus_dir: Path, manifest: Manifest) -> Prompt | None:
    """Tokenize a teacher's prompt; None if there is none."""
    if not text:
        return None
    # The space behind a prompt belongs to the text's first piece.
    tokenizer = corpus_tokenizer(corpus_dir / "tokenizer", manifest.tokenizer_sha256)
    [ids] = tokenizer.encode_batch([text.rstrip()])
    return Prompt(tuple(ids.tolist()), len(manifest.special_ids.prefix), manifest.special_ids.pad)


def _max_sequence_length(config: RunConfig) -> int:
    return max(config.training.timeline().sequence_lengths)
