"""``unibert plan``: what a run will need and take, as text and data."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unibert.configuration import to_dict
from unibert.corpus.manifest import Manifest
from unibert.environment import describe_environment
from unibert.errors import UserError
from unibert.files import write_json
from unibert.languages import LANGUAGES
from unibert.planning.accelerators import accelerator_named, speeds_for
from unibert.planning.estimate import CANDIDATES, ENOUGH_TOKENS, GIB, USABLE_SHARE, Choice, Planned
from unibert.text import described_lines, percent, ruled_table, short
from unibert.training.config import RunConfig

Record = dict[str, Any]

LIKELY_LANGUAGES = sum(language.in_107 for language in LANGUAGES.values())
"""Classes of the discriminator where there is no corpus yet."""


def plan_run(
    config: RunConfig,
    *,
    nodes: int,
    gpus: int,
    gpu: str,
    vocab_size: int | None,
    benchmarks: Path,
    network_gbit: float,
    output: Path | None,
) -> None:
    """Print the plan of a run; with ``output``, write it to that JSON file too.

    Raises:
        UserError: for a world size or a device that cannot be, a model that cannot be built, no vocabulary to estimate
            with, and, after all is printed and written, a run that fits nowhere.
    """
    for name, value in (("nodes", nodes), ("gpus", gpus), ("network_gbit", network_gbit)):
        if not value > 0:
            raise UserError(f"--{name}: must be positive, got {value}")
    vocabulary, languages, remark = _corpus_sizes(config, vocab_size)
    accelerator = accelerator_named(gpu, gpus)
    planned = Planned(
        config,
        accelerator,
        nodes=nodes,
        gpus=gpus,
        vocab_size=vocabulary,
        num_languages=languages,
        speeds=speeds_for(accelerator, benchmarks),
        network_gbit=network_gbit,
    )
    try:
        recommended, complaint = planned.recommended, None
    except UserError as error:
        recommended, complaint = None, error
    print(format_plan(planned, recommended, remark))
    if output is not None:
        _write(plan_record(planned, recommended), output)
    if complaint is not None:
        raise complaint


def _corpus_sizes(config: RunConfig, vocab_size: int | None) -> tuple[int, int, str]:
    """Vocabulary, languages, and where they come from."""
    if (Path(config.corpus) / "manifest.json").is_file():
        manifest = Manifest.load(config.corpus)
        own = config.stream.languages
        num_languages = len({shard.language for shard in manifest.shards}) if own is None else len(own)
        if vocab_size not in (None, manifest.vocab_size):
            raise UserError(
                f"--vocab_size: {config.corpus} has a vocabulary of {manifest.vocab_size}, not {vocab_size}; omit it"
            )
        return manifest.vocab_size, num_languages, f"as in {config.corpus}"
    if vocab_size is None:
        raise UserError(
            f"corpus: {config.corpus} is not there to take the vocabulary's size from; give --vocab_size, or a corpus "
            "with --corpus"
        )
    if vocab_size <= 0:
        raise UserError(f"--vocab_size: must be positive, got {vocab_size}")
    num_languages = LIKELY_LANGUAGES if config.stream.languages is None else len(config.stream.languages)
    return vocab_size, num_languages, "as told; there is no corpus yet"


def format_plan(planned: Planned, recommended: Choice | None, corpus_remark: str) -> str:
    """The plan in a few lines and tables."""
    return "\n".join(
        [
            *described_lines(_head(planned, corpus_remark)),
            "",
            *_parts_table(planned),
            "",
            *_memory_table(planned, recommended),
            "",
            *described_lines(_outcome(planned, recommended)),
        ]
    )


def _head(planned: Planned, corpus_remark: str) -> dict[str, str]:
    accelerator, timeline = planned.accelerator, planned.timeline
    bandwidth = "" if accelerator.bandwidth_tbs is None else f", {accelerator.bandwidth_tbs:g} TB/s"
    kind = "fp32, measured just now" if accelerator.name == "cpu" else "dense bf16, data sheet"
    batches = ", then ".join(
        dict.fromkeys(f"{phase.num_sequences:,} × {phase.sequence_length:,}" for phase in planned.phases)
    )
    return {
        "machine": f"{planned.nodes} × {planned.gpus} = {planned.world_size} {accelerator.product}; each "
        f"{accelerator.peak_tflops:.4g} TFLOP/s ({kind}), {accelerator.memory_gib:.1f} GiB{bandwidth}",
        "run": f"{short(timeline.total_tokens)} tokens in {len(timeline):,} steps of {batches} tokens",
        "vocabulary": f"{planned.vocab_size:,} pieces, {planned.num_languages} languages; {corpus_remark}",
    }


def _parts_table(planned: Planned) -> list[str]:
    flops, parameters = planned.flops_by_part, planned.parameters_by_part
    names = list(dict.fromkeys([*parameters, *flops]))
    rows = [
        [
            name,
            short(parameters[name]) if name in parameters else "",
            percent(parameters[name] / planned.parameters) if name in parameters else "",
            f"{flops[name] / 1e6:,.2f}" if name in flops else "",
            percent(flops[name] / planned.flops_per_token) if name in flops else "",
        ]
        for name in names
    ]
    total = ["together", short(planned.parameters), "", f"{planned.flops_per_token / 1e6:,.2f}", ""]
    return ruled_table(["part", "parameters", "share", "MFLOPs a token", "share"], [*rows, total])


def _memory_table(planned: Planned, recommended: Choice | None) -> list[str]:
    header = ["GiB a rank", "weights", "gradients", "AdamW", "buffers", "host", "DeepSpeed's", "micro-batch", "for it"]
    rows = []
    for choice in _choices(planned):
        memory, states = choice.memory, choice.memory.states
        estimate = planned.deepspeed_estimate(choice.ds_config)
        marks = {
            "recommended": choice == recommended,
            "too large": not choice.fits,
            "yours": choice == planned.as_configured,
        }
        rows.append(
            [
                Path(choice.ds_config).stem,
                *(_gib(size) for size in (states.weights, states.gradients, states.optimizer, states.buffers)),
                _gib(memory.host) if memory.host else "",
                "" if estimate is None else f"{estimate:.2f}",
                f"{choice.micro_batch_size}",
                _gib(memory.activations + memory.head + memory.teacher),
                _gib(memory.device),
                ", ".join(mark for mark, holds in marks.items() if holds),
            ]
        )
    return ruled_table([*header, "in all", ""], rows)


def _choices(planned: Planned) -> list[Choice]:
    """The run's own, unless that is among them, and the best micro-batch of every candidate."""
    best = [planned.best_micro_batch(name) for name in CANDIDATES]
    return [*([planned.as_configured] if planned.as_configured not in best else []), *best]


def _outcome(planned: Planned, recommended: Choice | None) -> dict[str, str]:
    speeds, seconds, steps = planned.speeds, planned.seconds(), len(planned.timeline)
    low, high = speeds.spread()
    shortest, longest = _duration(planned.seconds(high)), _duration(planned.seconds(low))
    spread = "" if low == high else f", from {shortest} to {longest} over the spread of those speeds"
    lines = {
        "speed": f"{short(planned.tokens_per_second)} tokens/s in all: {planned.efficiency:.1%} of the peak, "
        f"{short(planned.rank_speed)} a rank, before gradients are exchanged; {speeds.source}",
        "time": f"{_duration(seconds)}{spread}; {seconds / steps:.3g} s a step; evaluation, checkpoints and stops come "
        "on top",
    }
    if planned.exchange_seconds:
        where = f"the network's {planned.network_gbit:g} Gbit/s a rank" if planned.nodes > 1 else "the node's links"
        lines["exchange"] = (
            f"{planned.exchange_seconds * steps / seconds:.0%} of the time, {1e3 * planned.exchange_seconds:.3g} ms a "
            f"step for gradients and weights over {where}, none of it hidden; a larger training.global_batch_size makes"
            " it rarer"
        )
    chosen = recommended or planned.as_configured
    keep, one = planned.kept_checkpoints, planned.checkpoint(chosen.ds_config)
    lines["disk"] = (
        f"{_gib((keep + 1) * one)} GiB for {keep} checkpoints that are kept and one being written, {_gib(one)} GiB "
        f"each; the exported model {_gib(planned.exported)} GiB"
    )
    if recommended is not None:
        rows = max(phase.num_sequences for phase in planned.phases) // planned.world_size
        size = recommended.micro_batch_size
        lines["recommended"] = (
            f"--training.ds_config {recommended.ds_config} --training.micro_batch_size {size}: "
            f"{_gib(recommended.memory.device)} of {planned.accelerator.memory_gib:.1f} GiB; {rows} sequences a rank "
            f"and step, {rows // size} times {size}"
        )
        if planned.accelerator.device_type == "cuda" and size * planned.longest < ENOUGH_TOKENS:
            lines["small"] = (
                f"{size * planned.longest:,} tokens in a micro-batch; below {ENOUGH_TOKENS:,} a GPU is likely slower "
                "than this plan says"
            )
    if not planned.as_configured.fits:
        lines["as configured"] = (
            f"{planned.as_configured.ds_config} with a micro-batch of {planned.as_configured.micro_batch_size} does "
            f"not fit: it needs {_gib(planned.as_configured.memory.device)} GiB of the {_gib(planned.usable)} GiB, "
            f"{USABLE_SHARE:.0%}, that may be filled"
        )
    attention = "all scores of a row" if planned.masks else "each token's own document, or window"
    lines["assumed"] = (
        f"rows of one document each, which cost most; attention computes {attention}; the MLM head by "
        f"{planned.configured_head_path}, {planned.masked:.1%} of the tokens masked"
    )
    return lines


def plan_record(planned: Planned, recommended: Choice | None) -> Record:
    """All figures, for JSON."""
    low, high = planned.speeds.spread()
    return {
        "format": 1,
        "environment": describe_environment(),
        "command": " ".join(["unibert", *sys.argv[1:]]),
        "run": to_dict(planned.config),
        "nodes": planned.nodes,
        "gpus": planned.gpus,
        "network_gbit": planned.network_gbit,
        "accelerator": asdict(planned.accelerator),
        "vocab_size": planned.vocab_size,
        "languages": planned.num_languages,
        "tokens": planned.timeline.total_tokens,
        "steps": len(planned.timeline),
        "parameters": planned.parameters_by_part,
        "teacher_parameters": planned.teacher_parameters,
        "flops_per_token": planned.flops_by_part,
        "memory": [_choice_record(planned, choice) for choice in _choices(planned)],
        "recommended": None if recommended is None else _choice_record(planned, recommended),
        "speeds": asdict(planned.speeds),
        "efficiency": planned.efficiency,
        "tokens_per_second": planned.tokens_per_second,
        "exchange_seconds_per_step": planned.exchange_seconds,
        "seconds": planned.seconds(),
        "seconds_from_to": [planned.seconds(high), planned.seconds(low)],
        "exported_bytes": planned.exported,
    }


def _choice_record(planned: Planned, choice: Choice) -> Record:
    return {
        **asdict(choice),
        "device_bytes": choice.memory.device,
        "deepspeed_estimate_gib": planned.deepspeed_estimate(choice.ds_config),
        "checkpoint_bytes": planned.checkpoint(choice.ds_config),
    }


def _write(record: Record, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise UserError(f"{path}: the plan cannot be written ({error.strerror}); choose another file") from error
    print(f"\nplan  {path}")


def _gib(size: float) -> str:
    return f"{size / GIB:.3g}" if size < GIB else f"{size / GIB:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86400 else f"{seconds / 86400:.1f} days"
