"""Check that corpus and models of a run exist and can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from unibert.corpus.manifest import Manifest, damaged_shards
from unibert.doctor.finding import Finding, fail, ok
from unibert.doctor.folders import run_check
from unibert.stream.config import StreamConfig
from unibert.training.config import RunConfig


def check_run(config: RunConfig) -> Iterator[Finding]:
    """Check corpus and models. Digests are left to `unibert corpus verify`, and models are not loaded."""
    yield from run_check("corpus", _check_corpus, Path(config.corpus), config.stream)
    for subject, folder in _models(config).items():
        yield from run_check(subject, _check_model, folder)


def folders_of_run(config: RunConfig) -> dict[str, Path]:
    """Return the folders that a run reads and writes, by name."""
    return {"run folder": Path(config.run_dir), "corpus": Path(config.corpus), **_models(config)}


def _models(config: RunConfig) -> dict[str, Path]:
    models = {} if config.distillation is None else {"teacher": Path(config.distillation.teacher)}
    if config.model.initialize_from is not None:
        models["initialize_from"] = Path(config.model.initialize_from)
    return models


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


def _check_model(subject: str, folder: Path) -> Iterator[Finding]:
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
