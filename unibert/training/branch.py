"""The start of a run from a checkpoint of another, ``resume_from``: what must agree, and what the branch takes over."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from unibert.configuration import to_dict
from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.files import write_atomically, write_json
from unibert.model.architectures import architecture_of
from unibert.model.encoder import load_config
from unibert.model.unibert import UniBERT
from unibert.schedules import learning_rate_factor, value_at
from unibert.stream import Stream
from unibert.stream.past import continued, fresh_lanes
from unibert.stream.plan import PlanPast
from unibert.stream.stream import chosen_languages
from unibert.text import shortened
from unibert.training.checkpoint.adoption import adopt
from unibert.training.checkpoint.folder import complete_checkpoints, parameter_shapes
from unibert.training.config import RunConfig, differences
from unibert.training.parent import Branch, Parent
from unibert.training.parent_file import PARENT_FILE
from unibert.training.rollbacks import Rollback, read_rollbacks
from unibert.training.teacher_planes import FILE_NAME as PLANES

_NAMED = 5
_NO_ARCHITECTURE = ("transformers_version", "dtype", "_name_or_path", "architectures", "rope_parameters")
"""Entries of transformers' configurations with which the same weights make the same encoder, or one for longer
sequences."""


def is_new(config: RunConfig) -> bool:
    """Whether a run has no checkpoint of its own yet."""
    return not complete_checkpoints(Path(config.run_dir) / "checkpoints")


def branch_of_run(config: RunConfig) -> Branch | None:
    """Return what the run takes over from its parent: what it has kept or, in a new branch, what the parent has.

    Raises:
        UserError: if there is no such parent, or corpus or length of the branch do not fit it.
    """
    if config.resume_from is None:
        return None
    if not is_new(config):
        branch = Branch.read(Path(config.run_dir))
        if branch is None:
            raise UserError(
                f"run_dir: {config.run_dir} has checkpoints of a run that is no branch; choose another run_dir for the "
                f"branch of {config.resume_from}"
            )
        return branch
    parent = Parent.find(config.resume_from)
    if parent.run_dir.resolve() == Path(config.run_dir).resolve():
        raise UserError(f"run_dir: {config.run_dir} is the run to resume from; a branch needs a run_dir of its own")
    step, tokens, state = (parent.description[key] for key in ("step", "tokens", "state"))
    if config.training.tokens <= tokens:
        raise UserError(
            f"training.tokens: {config.training.tokens} tokens end before the branch begins, since they count those of "
            f"{parent.run_dir}, {tokens} up to step {step}; give more"
        )
    theirs, own = parent.config.optimizer, config.optimizer
    if theirs.name != own.name:
        raise UserError(
            f"optimizer.name: {parent.run_dir} has the state of {theirs.name}, which {own.name} cannot continue; set "
            f"it to {theirs.name}, or start from its exported model with model.initialize_from"
        )
    if theirs.has_layers_apart != own.has_layers_apart:
        raise UserError(
            f"optimizer.layers_learning_rate: was {theirs.layers_learning_rate} in {parent.run_dir} and is "
            f"{own.layers_learning_rate}; the optimizer's state has the matrices of the layers apart or not, so give "
            "one if the parent has one and null if it has none, or start from its exported model with "
            "model.initialize_from"
        )
    manifest = Manifest.load(config.corpus)
    _raise_if_other_vocabulary(parent, config, manifest)
    new_stream_for = _new_stream_for(parent, config, manifest)
    if new_stream_for is None:
        languages, stream = chosen_languages(manifest, config.stream), parent.config.stream
        earlier = None if parent.branch is None else parent.branch.stream
        past = continued(state["stream"], stream, languages, parent.timeline.total_tokens, earlier)
    else:
        past = PlanPast(first_token=tokens)
    return Branch(
        parent=str(parent.run_dir.resolve()),
        step=step,
        tokens=tokens,
        checkpoint_sha256=parent.description["sha256"],
        steps=parent.timeline.until(step),
        stream=past,
        new_stream_for=new_stream_for,
    )


def rollbacks_of_run(config: RunConfig, branch: Branch | None) -> list[Rollback]:
    """Return the rollbacks of a run; in a new branch whose stream goes on, those after which its parent still skips.

    Raises:
        UserError: if their file is damaged.
    """
    if not is_new(config):
        return read_rollbacks(Path(config.run_dir))
    if branch is None or branch.new_stream_for is not None:
        return []
    return [one for one in read_rollbacks(Path(branch.parent)) if one.to_step >= branch.step]


def raise_if_other_architecture(branch: Branch, model: UniBERT) -> None:
    """Raise UserError, with each difference, if the parent's weights are not those of ``model``."""
    parent = Parent.find(f"{branch.parent}@{branch.step}")
    config = model.masked_lm.config
    before, now = (
        json.loads(json.dumps(one.to_dict()))
        for one in (load_config(parent.run_dir / "model_config", "resume_from"), config)
    )
    free = {key for key in before | now if key in _NO_ARCHITECTURE or "dropout" in key or key.startswith("initializer")}
    if architecture_of(config).rotary:
        free.add("max_position_embeddings")
    found = [
        f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
        for key in sorted((before.keys() | now.keys()) - free)
        if before.get(key) != now.get(key)
    ]
    if not found:
        theirs = parameter_shapes(parent.checkpoint)
        own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        found = [
            f"{name} was {theirs.get(name, 'absent')} and is now {shape}"
            for name, shape in own.items()
            if theirs.get(name) != shape
        ]
        found += [f"{name} is now absent" for name in sorted(theirs.keys() - model.state_dict().keys())]
    if found:
        raise UserError(
            f"resume_from: a branch has its parent's architecture, but {shortened(found, _NAMED)}; take the sections "
            f"model, adversary and distillation of {parent.run_dir / 'config.yaml'}, or start from its exported model "
            "with model.initialize_from"
        )


def begin_branch(branch: Branch, config: RunConfig, stream: Stream) -> None:
    """Make the first checkpoint of a new branch, and the first line of its metrics; the parent is not needed again.

    Raises:
        UserError: if the checkpoint is damaged, or the run folder cannot be written.
    """
    parent = Parent.find(f"{branch.parent}@{branch.step}")
    run_dir = Path(config.run_dir)
    line = _first_line(branch, parent, config)
    try:
        write_atomically(run_dir / "metrics.jsonl", json.dumps(line) + "\n")
        write_json(run_dir / PARENT_FILE, branch.to_json())
        if (parent.run_dir / PLANES).is_file():
            shutil.copyfile(parent.run_dir / PLANES, run_dir / PLANES)
    except OSError as error:
        raise UserError(f"run_dir: {run_dir} cannot be written ({error.strerror}); choose another") from error
    state = parent.description["state"]
    lanes = state["stream"] if branch.new_stream_for is None else fresh_lanes(config.stream.lanes)
    own_state = state | {"corpus": stream.manifest.fingerprint, "stream": lanes | {"fingerprint": stream.fingerprint}}
    if state["corpus"] != stream.manifest.fingerprint:
        own_state |= {"skipped_blocks": {}, "damage": {}}
    adopt(parent.checkpoint, run_dir / "checkpoints", own_state)
    _announce(line, run_dir)


def _raise_if_other_vocabulary(parent: Parent, config: RunConfig, manifest: Manifest) -> None:
    """Also compare the languages, if there is a discriminator that tells them apart."""
    before = manifest
    if parent.description["state"]["corpus"] != manifest.fingerprint:
        before = Manifest.load(parent.config.corpus)
    vocabularies = [(one.tokenizer_sha256, one.vocab_size, one.special_ids) for one in (before, manifest)]
    if vocabularies[0] != vocabularies[1]:
        raise UserError(
            f"corpus: {config.corpus} has another vocabulary than {parent.config.corpus}, of which {parent.run_dir} "
            f"has learnt the pieces; build it with --tokenizer {parent.config.corpus}/tokenizer"
        )
    languages = [chosen_languages(before, parent.config.stream), chosen_languages(manifest, config.stream)]
    if config.adversary is not None and languages[0] != languages[1]:
        raise UserError(
            f"stream.languages: the discriminator of {parent.run_dir} tells {', '.join(languages[0])} apart, and this "
            f"run has {', '.join(languages[1])}; train on the same languages"
        )


def _new_stream_for(parent: Parent, config: RunConfig, manifest: Manifest) -> str | None:
    """Return the first key whose value keeps the lanes from going on where the parent's stand."""
    if parent.description["state"]["corpus"] != manifest.fingerprint:
        return "corpus"
    before, now = parent.config, config
    values = {
        "seed": (before.seed, now.seed),
        "stream.lanes": (before.stream.lanes, now.stream.lanes),
        "stream.window_shards": (before.stream.window_shards, now.stream.window_shards),
        "stream.languages": tuple(chosen_languages(manifest, one.stream) for one in (before, now)),
        # Vectors of the corpus's teacher belong to pieces of documents.
        "distillation.teacher": (before.learns_from_corpus, now.learns_from_corpus),
    }
    return next((key for key, (theirs, own) in values.items() if theirs != own), None)


def _first_line(branch: Branch, parent: Parent, config: RunConfig) -> dict[str, Any]:
    changed = differences(to_dict(parent.config), to_dict(config))
    changed.pop("resume_from", None)
    before = _scheduled(parent.config, branch.tokens / parent.timeline.total_tokens)
    now = _scheduled(config, branch.tokens / config.training.timeline(branch.steps).total_tokens)
    return {
        "step": branch.step,
        "tokens": branch.tokens,
        "branch_of": {
            "run": Path(branch.parent).name,
            "run_dir": branch.parent,
            "checkpoint_sha256": branch.checkpoint_sha256,
        },
        "stream": "continues" if branch.new_stream_for is None else f"starts anew ({branch.new_stream_for})",
        "changed": {key: {"from": theirs, "to": own} for key, (theirs, own) in changed.items()},
        "scheduled": {
            key: {"from": before.get(key), "to": value}
            for key, value in now.items()
            # A decay that begins here is not at its exact beginning in floating-point numbers.
            if key not in before or not math.isclose(before[key], value, rel_tol=1e-6)
        },
        "reason": config.change_reason,
    }


def _scheduled(config: RunConfig, progress: float) -> dict[str, float]:
    """Return the values of all schedules at ``progress``, which another length of the run moves."""
    optimizer, adversary, distillation = config.optimizer, config.adversary, config.distillation
    factor = learning_rate_factor(progress, warmup=optimizer.warmup, decay=optimizer.decay, shape=optimizer.decay_shape)
    values = {
        "learning_rate": optimizer.learning_rate * factor,
        "masking_rate": value_at(config.stream.masking_rate, progress),
        "sampling_exponent": value_at(config.stream.sampling_exponent, progress),
        "mlm_weight": value_at(config.mlm.weight, progress),
    }
    if adversary is not None:
        values["reversal_lambda"] = adversary.lambda_at(progress)
    if distillation is not None:
        values["distillation_weight"] = value_at(distillation.weight, progress)
    return values


def _announce(line: dict[str, Any], run_dir: Path) -> None:
    parent, stream = line["branch_of"]["run_dir"], line["stream"]
    where = "goes on where the parent's stood" if stream == "continues" else stream
    print(
        f"unibert: {run_dir} is a branch of {parent} at step {line['step']}, after {line['tokens']:,} tokens; its "
        f"stream {where}",
        file=sys.stderr,
    )
    for key, values in line["changed"].items():
        print(
            f"unibert: from step {line['step'] + 1}, {key} is {values['to']} instead of {values['from']}",
            file=sys.stderr,
        )
    for key, values in line["scheduled"].items():
        print(
            f"unibert: at the branch point, {key} goes from {values['from']} to {values['to']:.6g}",
            file=sys.stderr,
            flush=True,
        )
