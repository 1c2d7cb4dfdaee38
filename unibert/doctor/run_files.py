"""Check that corpus and models of a run exist, can be read and fit each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from unibert.corpus.manifest import Manifest, damaged_shards
from unibert.doctor.finding import Finding, fail, ok
from unibert.doctor.folders import run_check
from unibert.errors import UserError
from unibert.hub import is_on_hub
from unibert.stream.config import StreamConfig
from unibert.training.config import RunConfig


def check_run(config: RunConfig) -> Iterator[Finding]:
    """Check corpus and models as the start of the run does; digests are left to `unibert corpus verify`."""
    findings = run_check("corpus", _check_corpus, Path(config.corpus), config.stream)
    if config.training.retrieval is not None:
        sentences = Path(config.training.retrieval)
        findings += run_check("retrieval", _check_sentences, sentences, config.training.retrieval_sentences)
    for subject, folder in _model_folders(config).items():
        findings += run_check(subject, _check_model_files, folder)
    if config.resume_from is not None:
        findings += run_check("resume_from", _check_parent, config)
    yield from findings
    if config.training.compile or config.training.activation_checkpointing is not None:
        yield from _check_layers(config)
    if all(finding.mark == "ok" for finding in findings):
        yield from _check_models(config)


def folders_of_run(config: RunConfig) -> dict[str, Path]:
    """Return the folders that a run reads and writes, by name."""
    folders = {"run folder": Path(config.run_dir), "corpus": Path(config.corpus), **_model_folders(config)}
    return folders | ({"retrieval": Path(retrieval)} if (retrieval := config.training.retrieval) is not None else {})


def _model_folders(config: RunConfig) -> dict[str, Path]:
    """Return the folders with models; those on the Hugging Face hub are left out."""
    models = {}
    if config.distillation is not None and config.distillation.teacher is not None:
        models["teacher"] = config.distillation.teacher
    if config.model.initialize_from is not None:
        models["initialize_from"] = config.model.initialize_from
    return {subject: Path(name) for subject, name in models.items() if not is_on_hub(name)}


def _check_corpus(subject: str, folder: Path, stream: StreamConfig) -> Iterator[Finding]:
    manifest = Manifest.load(folder)
    size = sum(shard.size_bytes for shard in manifest.shards) / 2**30
    content = f"{folder}: {len(manifest.shards)} shards of {len(manifest.languages)} languages, {size:.2f} GiB"
    shards: Path | None = folder
    if stream.shards_url is not None:
        # This imports torch, which may be broken.
        from unibert.stream.source import ShardSource

        shards = ShardSource(folder, stream).folder
    if shards is None:
        yield ok(subject, f"{content}, read from {stream.shards_url}")
    elif damaged := damaged_shards(manifest, shards, digests=False):
        more = f" ({len(damaged) - 1} more are damaged)" if damaged[1:] else ""
        message, _, fix = damaged[0][1].rpartition("; ")
        yield fail(subject, message + more, fix)
    else:
        yield ok(subject, content)


def _check_parent(subject: str, config: RunConfig) -> Iterator[Finding]:
    try:
        from unibert.training.branch import branch_of_run
    except ImportError:
        return  # The check of the packages has reported it.
    branch = branch_of_run(config)
    assert branch is not None
    stream = "goes on" if branch.new_stream_for is None else f"begins anew ({branch.new_stream_for})"
    yield ok(subject, f"{branch.parent} at step {branch.step:,}, after {branch.tokens:,} tokens; its stream {stream}")


def _check_sentences(subject: str, folder: Path, max_sentences: int) -> Iterator[Finding]:
    # This imports scipy, which may be missing.
    from unibert.evaluation.aligned import read_aligned

    sets = read_aligned(folder, max_sentences)
    languages = {language for aligned in sets for language in aligned.languages}
    yield ok(subject, f"{folder}: {sum(map(len, sets)):,} aligned lines of {len(languages)} languages")


def _check_layers(config: RunConfig) -> Iterator[Finding]:
    try:
        import torch

        from unibert.training.encoder_layers import check_layers
        from unibert.training.engine import ds_config_path, read_ds_config
    except ImportError:
        return  # The check of the packages has reported it.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        check_layers(config.training, read_ds_config(ds_config_path(config.training.ds_config), device), device)
    except UserError as error:
        message, _, fix = str(error).rpartition("; ")
        yield fail("layers", message, fix)
        return
    yield ok("layers", "can be compiled" if config.training.compile else "can be checkpointed")


def _check_models(config: RunConfig) -> Iterator[Finding]:
    try:
        from unibert.training.models import build_model
    except ImportError:
        return  # The check of the packages has reported it.
    import torch

    try:
        manifest = Manifest.load(config.corpus)
        model = build_model(config, manifest, torch.device("cpu"))
    except UserError as error:
        message, _, fix = str(error).rpartition("; ")
        yield fail("models", message or fix, fix if message else "fix what this message names")
        return
    sizes = [f"student {model.masked_lm.num_parameters():,} parameters"]
    if model.distiller is not None:
        teacher = model.distiller.teacher
        sizes.append("teacher's vectors" if teacher is None else f"teacher {teacher.model.num_parameters():,}")
    yield ok("models", f"{', '.join(sizes)}; built and loaded as the run will")


def _check_model_files(subject: str, folder: Path) -> Iterator[Finding]:
    fix = "name a Hugging Face folder with config.json, model.safetensors and tokenizer.json"
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError:
        yield fail(subject, f"{folder}/config.json: no such file", fix)
        return
    except (ValueError, KeyError, TypeError):
        yield fail(subject, f"{folder}/config.json: not a model's configuration", fix)
        return
    weights = [path for suffix in ("safetensors", "bin") for path in sorted(folder.glob(f"*.{suffix}"))]
    for path in weights:
        with path.open("rb") as file:
            file.read(1)
    if weights:
        yield ok(subject, f"{folder}: {kind}, {sum(path.stat().st_size for path in weights) / 2**30:.2f} GiB")
    else:
        yield fail(subject, f"{folder}: no weights", fix)
