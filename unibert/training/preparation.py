"""Preparation of a run on one rank: the steps that a user's mistake can spoil, before the ranks first wait."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unibert.configuration import parse, to_dict
from unibert.corpus.manifest import Manifest, damaged_shards
from unibert.errors import UserError
from unibert.files import write_atomically
from unibert.model.unibert import UniBERT
from unibert.schedules import Timeline
from unibert.stream import Stream
from unibert.stream.plan import PlanPast
from unibert.stream.skips import Skips
from unibert.training.checkpoint.claim import Claim
from unibert.training.checkpoint.folder import complete_checkpoints
from unibert.training.checkpoint.retention import MAX_BYTES_PER_PARAMETER, raise_if_no_room
from unibert.training.config import CHANGEABLE_KEYS, RunConfig, differences
from unibert.training.encoder_layers import check_layers
from unibert.training.engine import ds_config_path, num_moments, read_ds_config, training_dtype
from unibert.training.kernel_paths import check_kernel_paths
from unibert.training.models import build_model
from unibert.training.ranks.placement import Placement
from unibert.training.utilisation import Utilisation

if TYPE_CHECKING:
    from unibert.training.retrieval import RetrievalSentences

DIGESTS_UP_TO_BYTES = 1 << 30
"""In corpora up to this size, every start checks the shards' digests, which takes seconds. In larger ones it checks
only their sizes; ``unibert corpus verify`` checks the rest."""


@dataclass(frozen=True)
class Preparation:
    """Parts of a run that need no other rank."""

    manifest: Manifest
    stream: Stream
    ds_config: dict[str, Any]
    model: UniBERT
    retrieval: RetrievalSentences | None
    changes: dict[str, tuple[Any, Any]]
    """Values before and after, by key, with which a run is continued in another way."""
    utilisation: Utilisation
    num_parameters: int
    """Counted before DeepSpeed builds the engine: ZeRO 3 leaves only its shard on each rank."""
    num_moments: int
    """Elements of the optimizer's moments, and of the weights' average."""


def prepare(
    config: RunConfig, placement: Placement, timeline: Timeline, past: PlanPast | None, skips: Skips
) -> Preparation:
    """Check the run and build its parts.

    Args:
        config: the run.
        placement: this rank.
        timeline: the run's steps.
        past: what the stream of a branch takes over.
        skips: data that the stream passes over.

    Raises:
        UserError: for anything that the user can fix.
    """
    manifest = Manifest.load(config.corpus)
    stream = Stream(
        config.corpus,
        config.stream,
        seed=config.seed,
        timeline=timeline,
        rank=placement.rank,
        world_size=placement.world_size,
        with_vectors=config.learns_from_corpus,
        past=past,
        skips=skips,
        manifest=manifest,
        check_shards=False,
    )
    ds_config = read_ds_config(ds_config_path(config.training.ds_config), placement.device)
    check_layers(config.training, ds_config, placement.device)
    changes = _changes(config)
    model = build_model(config, manifest, placement.device)
    check_kernel_paths(model, placement.device, training_dtype(ds_config))
    retrieval = None
    if config.training.retrieval is not None:
        # This imports scikit-learn, for which other runs need not wait.
        from unibert.training.retrieval import read_retrieval_sentences

        retrieval = read_retrieval_sentences(config, model.masked_lm.config, manifest.special_ids.pad)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    raise_if_no_room(Path(config.run_dir), MAX_BYTES_PER_PARAMETER * num_parameters)
    dtype = training_dtype(ds_config)
    utilisation = Utilisation(model, config, placement.device, dtype, placement.world_size)
    return Preparation(
        manifest,
        stream,
        ds_config,
        model,
        retrieval,
        changes,
        utilisation,
        num_parameters,
        num_moments(model, config),
    )


def claim_run_dir(config: RunConfig, model: UniBERT, *, changed: bool) -> Claim:
    """Claim the run folder and write the configuration, unless it has changed, and that of the model, which the export
    needs, into it.

    Raises:
        UserError: if the folder cannot be written.
    """
    run_dir = Path(config.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        claim = Claim(run_dir)
        if not changed:
            _write_config(config)
        model.masked_lm.config.save_pretrained(run_dir / "model_config")
    except OSError as error:
        raise UserError(f"run_dir: {run_dir} cannot be written ({error.strerror}); choose another") from error
    return claim


def write_changed_config(config: RunConfig) -> None:
    """Write the configuration of a run that has changed, after the line in metrics.jsonl that says so.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        _write_config(config)
    except OSError as error:
        raise UserError(f"run_dir: {config.run_dir} cannot be written ({error.strerror}); choose another") from error


def _write_config(config: RunConfig) -> None:
    resolved = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    write_atomically(Path(config.run_dir) / "config.yaml", resolved)


def check_shards(manifest: Manifest, stream: Stream) -> None:
    """Check that every shard is there and has its size; damage below the limit is only reported.

    One rank does this for all: a file system that serves many ranks may need minutes for half a million shards.

    Raises:
        UserError: if a shard is missing, or the damage exceeds the limit.
    """
    folder = stream.shards_folder
    if folder is None:
        return
    stream.check_shards_exist()
    size = sum(shard.size_bytes for shard in manifest.shards)
    damaged = damaged_shards(manifest, folder, digests=size <= DIGESTS_UP_TO_BYTES)
    heldout_problems = [problem for shard, problem in damaged if shard.split == "heldout"]
    limit, blocks = stream.damage_limit, sum(shard.blocks for shard, _ in damaged)
    if heldout_problems:
        raise UserError(f"{heldout_problems[0]}; held-out shards must be whole")
    if blocks > limit:
        raise UserError(
            f"{damaged[0][1]}; in all, {len(damaged)} shards with {blocks} blocks are damaged, and "
            f"stream.max_damaged_share allows {limit}"
        )
    for _, problem in damaged:
        print(f"unibert: {problem}; its damaged blocks will be skipped", file=sys.stderr)


def _changes(config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return how the configuration differs from that of the checkpoints in the run folder.

    Raises:
        UserError: if a key differs that must not or is not allowed to.
    """
    run_dir = Path(config.run_dir)
    if not complete_checkpoints(run_dir / "checkpoints"):
        return {}
    # A version that did not have a key behaved as its default.
    before_run = parse(RunConfig, ["--config", str(run_dir / "config.yaml")])
    changes = differences(to_dict(before_run), to_dict(config))
    for key, (before, after) in changes.items():
        if key not in config.allow_change:
            advice = f"give --allow_change {key} to continue with the new value, " if key in CHANGEABLE_KEYS else ""
            raise UserError(
                f"{run_dir} belongs to a run of another configuration: {key} was {before!r} and is now {after!r}; "
                f"{advice}branch off it with --run_dir NEW --resume_from {run_dir}, or choose another run_dir or "
                "remove this one"
            )
    return changes
