"""The models of a run, student and teacher, with the ids of its corpus."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from unibert.corpus.document_tokenizer import corpus_tokenizer
from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.model.architectures import positions_needed
from unibert.model.config import DistillationConfig
from unibert.model.encoder import build_masked_lm, freeze, load_teacher
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
    tokenizer_dir, sequence_length = Path(config.corpus) / "tokenizer", _max_sequence_length(config)
    student = build_masked_lm(
        config.model,
        manifest.vocab_size,
        sequence_length,
        special_ids=manifest.special_ids,
        tokenizer_dir=tokenizer_dir,
    )
    teacher = prompt = None
    if config.distillation is not None:
        prompt = _prompt(config.distillation, manifest, tokenizer_dir)
        teacher = _teacher(config.distillation, tokenizer_dir, sequence_length, prompt)
        freeze(teacher, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return UniBERT(
        student,
        len(chosen_languages(manifest, config.stream)),
        mlm=config.mlm,
        adversary=config.adversary,
        distillation=config.distillation,
        teacher=teacher,
        prompt=prompt,
        attention=config.model.attention,
    )


def _teacher(
    config: DistillationConfig, tokenizer_dir: Path, sequence_length: int, prompt: Prompt | None
) -> PreTrainedModel:
    """Load the teacher and give it the corpus's ids."""
    teacher = load_teacher(config.teacher, needs_head=ever_positive(config.logits))
    prompt_length = 0 if prompt is None else len(prompt.ids)
    if teacher.config.max_position_embeddings < positions_needed(teacher.config, sequence_length + prompt_length):
        with_prompt = f" and {prompt_length} tokens of distillation.teacher_prompt" if prompt_length else ""
        raise UserError(
            f"distillation.teacher: {config.teacher} has {teacher.config.max_position_embeddings} positions, too few "
            f"for training.sequence_length {sequence_length}{with_prompt}; shorten the sequences or choose another "
            "teacher"
        )
    adapt_to_corpus(teacher, config.teacher, tokenizer_dir, "distillation.teacher")
    return teacher


def _prompt(config: DistillationConfig, manifest: Manifest, tokenizer_dir: Path) -> Prompt | None:
    """Tokenize the teacher's prompt; None if there is none."""
    if not config.teacher_prompt:
        return None
    # The space behind a prompt belongs to the text's first piece.
    tokenizer = corpus_tokenizer(tokenizer_dir, manifest.tokenizer_sha256)
    [ids] = tokenizer.encode_batch([config.teacher_prompt.rstrip()])
    return Prompt(tuple(ids.tolist()), len(manifest.special_ids.prefix), manifest.special_ids.pad)


def _max_sequence_length(config: RunConfig) -> int:
    return max(phase.sequence_length for phase in config.training.timeline().phases())
