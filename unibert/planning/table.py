"""``unibert plan``: what a run needs and how long it takes, as text and data."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unibert.accelerators import find_accelerator
from unibert.configuration import to_dict
from unibert.corpus.manifest import Manifest
from unibert.environment import describe_environment
from unibert.errors import UserError
from unibert.files import write_json
from unibert.languages import LANGUAGES
from unibert.planning.estimate import CANDIDATES, GIB, SATURATING_TOKENS, USABLE_SHARE, Choice, Plan
from unibert.planning.measured_speeds import speeds_for
from unibert.text import described_lines, duration, percent, ruled_table, short
from unibert.training.config import RunConfig

Record = dict[str, Any]

DEFAULT_NUM_LANGUAGES = sum(language.in_107 for language in LANGUAGES.values())
"""Number of the discriminator's classes if there is no corpus yet."""


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
    """Print the plan of a run and, with ``output``, write it to that JSON file.

    Raises:
        UserError: for an impossible world size, an unknown device, a model that cannot be built, an unknown vocabulary
            size and, after everything is printed and written, for a run that fits nowhere.
    """
    for name, value in (("nodes", nodes), ("gpus", gpus), ("network_gbit", network_gbit)):
        if not value > 0:
            raise UserError(f"--{name}: must be positive, got {value}")
    vocabulary, languages, source = _corpus_sizes(config, vocab_size)
    accelerator = find_accelerator(gpu, gpus)
    plan = Plan(
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
        recommended, does_not_fit = plan.recommended, None
    except UserError as error:
        recommended, does_not_fit = None, error
    print(format_plan(plan, recommended, source))
    if output is not None:
        _write(plan_record(plan, recommended), output)
    if does_not_fit is not None:
        raise does_not_fit


def _corpus_sizes(config: RunConfig, vocab_size: int | None) -> tuple[int, int, str]:
    """Return vocabulary size, number of languages, and the source of both."""
    if (Path(config.corpus) / "manifest.json").is_file():
        manifest = Manifest.load(config.corpus)
        chosen = config.stream.languages
        num_languages = len({shard.language for shard in manifest.shards}) if chosen is None else len(chosen)
        if vocab_size not in (None, manifest.vocab_size):
            raise UserError(
                f"--vocab_size: {config.corpus} has a vocabulary of {manifest.vocab_size}, not {vocab_size}; omit it"
            )
        return manifest.vocab_size, num_languages, f"as in {config.corpus}"
    if vocab_size is None:
        raise UserError(
            f"corpus: {config.corpus} does not exist, so the vocabulary size is unknown; give --vocab_size or an "
            "existing --corpus"
        )
    if vocab_size <= 0:
        raise UserError(f"--vocab_size: must be positive, got {vocab_size}")
    num_languages = DEFAULT_NUM_LANGUAGES if config.stream.languages is None else len(config.stream.languages)
    return vocab_size, num_languages, "as given; there is no corpus yet"


def format_plan(plan: Plan, recommended: Choice | None, source: str) -> str:
    """Format the plan as a few lines and tables; ``source`` says where vocabulary and languages come from."""
    return "\n".join(
        [
            *described_lines(_inputs(plan, source)),
            "",
            *_parts_table(plan),
            "",
            *_memory_table(plan, recommended),
            "",
            *_step_table(plan, recommended),
            *_scaling_table(plan, recommended or plan.as_configured),
            *described_lines(_estimates(plan, recommended)),
        ]
    )


def _inputs(plan: Plan, source: str) -> dict[str, str]:
    accelerator = plan.accelerator
    branched = f", after {short(plan.first_token)} tokens of {plan.config.resume_from}" if plan.first_step else ""
    bandwidth = "" if accelerator.bandwidth_tbs is None else f", {accelerator.bandwidth_tbs:g} TB/s"
    kind = "fp32, measured just now" if accelerator.name == "cpu" else "dense bf16, data sheet"
    batches = ", then ".join(
        dict.fromkeys(f"{phase.num_sequences:,} × {phase.sequence_length:,}" for phase in plan.phases)
    )
    return {
        "machine": f"{plan.nodes} × {plan.gpus} = {plan.world_size} {accelerator.product}; each "
        f"{accelerator.peak_tflops:.4g} TFLOP/s ({kind}), {accelerator.memory_gib:.1f} GiB{bandwidth}",
        "run": f"{short(plan.tokens)} tokens in {plan.steps:,} steps of {batches} tokens{branched}",
        "vocabulary": f"{plan.vocab_size:,} pieces, {plan.num_languages} languages; {source}",
    }


def _parts_table(plan: Plan) -> list[str]:
    flops, parameters = plan.flops_by_part, plan.parameters_by_part
    names = list(dict.fromkeys([*parameters, *flops]))
    rows = [
        [
            name,
            short(parameters[name]) if name in parameters else "",
            percent(parameters[name] / plan.parameters) if name in parameters else "",
            f"{flops[name] / 1e6:,.2f}" if name in flops else "",
            percent(flops[name] / plan.flops_per_token) if name in flops else "",
        ]
        for name in names
    ]
    total = ["total", short(plan.parameters), "", f"{plan.flops_per_token / 1e6:,.2f}", ""]
    return ruled_table(["part", "parameters", "share", "MFLOPs/token", "share"], [*rows, total])


def _memory_table(plan: Plan, recommended: Choice | None) -> list[str]:
    header = [
        "GiB per rank",
        "weights",
        "gradients",
        "optimizer",
        "buffers",
        "host",
        "DeepSpeed",
        "micro-batch",
        "its GiB",
        "total",
        "",
    ]
    rows = []
    for choice in _choices(plan):
        memory, states = choice.memory, choice.memory.states
        estimate = plan.deepspeed_estimate(choice.ds_config)
        rows.append(
            [
                Path(choice.ds_config).stem,
                *(_gib(size) for size in (states.weights, states.gradients, states.optimizer, states.buffers)),
                _gib(memory.host) if memory.host else "",
                "" if estimate is None else f"{estimate:.2f}",
                f"{choice.micro_batch_size}",
                _gib(memory.activations + memory.head + memory.teacher),
                _gib(memory.device),
                _marks(plan, choice, recommended),
            ]
        )
    return ruled_table(header, rows)


def _choices(plan: Plan) -> list[Choice]:
    """The configured choice, unless it is a candidate's, and the best micro-batch of every candidate."""
    best = [plan.best_micro_batch(name) for name in CANDIDATES]
    return [*([plan.as_configured] if plan.as_configured not in best else []), *best]


def _step_table(plan: Plan, recommended: Choice | None) -> list[str]:
    """What a step costs under each stage, for the micro-batches of the memory table; of offload only what is chosen."""
    if plan.world_size == 1 or plan.link(plan.nodes) is None:
        return []
    header = ["ms per step", "micro-batch", "computing", "gradients", "weights", "total", "at best", "tokens/s", ""]
    rows = []
    for choice in _choices(plan):
        if "offload" in choice.ds_config and choice not in (recommended, plan.as_configured):
            continue
        time = plan.step_time(choice)
        parts = (time.computing, time.gradients, time.weights, time.longest, time.shortest)
        rows.append(
            [
                Path(choice.ds_config).stem,
                f"{choice.micro_batch_size}",
                *(f"{1e3 * seconds:.1f}" for seconds in parts),
                short(plan.tokens / plan.steps / time.longest),
                _marks(plan, choice, recommended),
            ]
        )
    return [*ruled_table(header, rows), ""]


def _scaling_table(plan: Plan, chosen: Choice) -> list[str]:
    machines = plan.machines()
    if len(machines) < 2 or plan.link(1) is None:
        return []
    rows = []
    for nodes, gpus in machines:
        time, world_size = plan.step_time(chosen, nodes=nodes, gpus=gpus), nodes * gpus
        tokens = plan.tokens / plan.steps / world_size
        rows.append(
            [
                f"{nodes} × {gpus}",
                short(tokens),
                f"{1e3 * time.longest:.1f}",
                percent(time.exchange / time.longest) if time.exchange else "",
                short(plan.tokens / plan.steps / time.longest),
                percent(time.computing / time.longest),
                duration(plan.steps * time.longest),
                "" if tokens >= SATURATING_TOKENS else "few tokens per rank",
            ]
        )
    header = ["nodes", "tokens/rank", "ms per step", "exchange", "tokens/s", "efficiency", "time", ""]
    return [*ruled_table(header, rows), ""]


def _marks(plan: Plan, choice: Choice, recommended: Choice | None) -> str:
    marks = {
        "recommended": choice == recommended,
        "too large": not choice.fits,
        "yours": choice == plan.as_configured,
    }
    return ", ".join(mark for mark, holds in marks.items() if holds)


def _estimates(plan: Plan, recommended: Choice | None) -> dict[str, str]:
    speeds, chosen = plan.speeds, recommended or plan.as_configured
    low, high = speeds.spread()
    time = plan.step_time(chosen)
    shortest, longest = plan.step_time(chosen, factor=high).shortest, plan.step_time(chosen, factor=low).longest
    over = [*(["the spread of those speeds"] if low != high else []), *(["what is hidden"] if time.hidden else [])]
    spread = f", from {duration(plan.steps * shortest)} to {duration(plan.steps * longest)} over {' and '.join(over)}"
    lines = {
        "speed": f"{short(plan.tokens / plan.steps / time.longest)} tokens/s in total: {plan.efficiency:.1%} of the "
        f"peak, {short(plan.rank_tokens_per_second)} per rank, without the exchange of gradients; {speeds.source}",
        "time": f"{duration(plan.steps * time.longest)}{spread if over else ''}; {time.longest:.3g} s per step; "
        "evaluation, checkpoints and stops are not included",
    }
    if time.exchange:
        where = f"the network's {plan.network_gbit:g} Gbit/s per rank" if plan.nodes > 1 else "the node's links"
        hidden = "none of it is hidden behind computation"
        if time.hidden:
            hidden = f"up to {1e3 * time.hidden:.3g} ms may be hidden behind computation"
        lines["exchange"] = (
            f"{time.exchange / time.longest:.0%} of the time, {1e3 * time.exchange:.3g} ms per step for gradients and "
            f"weights over {where}; {hidden}; a larger training.global_batch_size makes it rarer"
        )
    keep, checkpoint = plan.num_kept_checkpoints, plan.checkpoint_bytes(chosen.ds_config)
    lines["disk"] = (
        f"{_gib((keep + 1) * checkpoint)} GiB for {keep} kept checkpoints and one being written, {_gib(checkpoint)} "
        f"GiB each; {_gib(plan.exported_bytes)} GiB for the exported model"
    )
    if recommended is not None:
        sequences = max(phase.num_sequences for phase in plan.phases) // plan.world_size
        size = recommended.micro_batch_size
        lines["recommended"] = (
            f"--training.ds_config {recommended.ds_config} --training.micro_batch_size {size}: "
            f"{_gib(recommended.memory.device)} of {plan.accelerator.memory_gib:.1f} GiB; {sequences} sequences per "
            f"rank and step, {sequences // size} × {size}"
        )
        tokens = size * plan.max_sequence_length
        if plan.accelerator.device_type == "cuda" and tokens < SATURATING_TOKENS:
            lines["small"] = (
                f"{tokens:,} tokens per micro-batch; below {SATURATING_TOKENS:,} a GPU is likely slower than estimated "
                "here"
            )
    if not plan.as_configured.fits:
        lines["as configured"] = (
            f"{plan.as_configured.ds_config} with a micro-batch of {plan.as_configured.micro_batch_size} does "
            f"not fit: it needs {_gib(plan.as_configured.memory.device)} GiB, and {_gib(plan.usable_bytes)} GiB "
            f"({USABLE_SHARE:.0%}) may be used"
        )
    attention = "all scores of a sequence" if plan.uses_attention_masks else "only scores within documents and windows"
    lines["assumed"] = (
        f"one document per sequence, which costs most; attention computes {attention}; MLM head path "
        f"{plan.configured_head_path}; {plan.mean_masking_rate:.1%} of the tokens masked"
    )
    return lines


def plan_record(plan: Plan, recommended: Choice | None) -> Record:
    """Return all figures for the JSON file."""
    low, high = plan.speeds.spread()
    chosen = recommended or plan.as_configured
    time = plan.step_time(chosen)
    return {
        "format": 1,
        "environment": describe_environment(),
        "command": " ".join(["unibert", *sys.argv[1:]]),
        "run": to_dict(plan.config),
        "nodes": plan.nodes,
        "gpus": plan.gpus,
        "network_gbit": plan.network_gbit,
        "accelerator": asdict(plan.accelerator),
        "vocab_size": plan.vocab_size,
        "languages": plan.num_languages,
        "tokens": plan.tokens,
        "steps": plan.steps,
        "tokens_of_parent": plan.first_token,
        "parameters": plan.parameters_by_part,
        "teacher_parameters": plan.teacher_parameters,
        "flops_per_token": plan.flops_by_part,
        "memory": [_choice_record(plan, choice) for choice in _choices(plan)],
        "recommended": None if recommended is None else _choice_record(plan, recommended),
        "speeds": asdict(plan.speeds),
        "efficiency": plan.efficiency,
        "tokens_per_second": plan.tokens / plan.steps / time.longest,
        "exchange_seconds_per_step": time.exchange,
        "seconds": plan.steps * time.longest,
        "seconds_from_to": [
            plan.steps * plan.step_time(chosen, factor=high).shortest,
            plan.steps * plan.step_time(chosen, factor=low).longest,
        ],
        "scaling": [
            {"nodes": nodes, "gpus": gpus, **asdict(plan.step_time(chosen, nodes=nodes, gpus=gpus))}
            for nodes, gpus in plan.machines()
        ],
        "exported_bytes": plan.exported_bytes,
    }


def _choice_record(plan: Plan, choice: Choice) -> Record:
    return {
        **asdict(choice),
        "step_seconds": asdict(plan.step_time(choice)),
        "device_bytes": choice.memory.device,
        "deepspeed_estimate_gib": plan.deepspeed_estimate(choice.ds_config),
        "checkpoint_bytes": plan.checkpoint_bytes(choice.ds_config),
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
