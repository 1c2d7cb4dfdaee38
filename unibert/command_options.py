"""The options of commands whose components have no configuration of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class VerifyOptions:
    """Which corpus."""

    corpus: Path
    """Corpus folder made by `unibert corpus build`."""


@dataclass(kw_only=True)
class InspectOptions:
    """Which corpus, for which run."""

    corpus: Path | None = None
    """Corpus folder made by `unibert corpus build`. Default: the one that the run file names."""

    run: str | None = None
    """Run file or preset whose mixture to forecast. Its keys are options too,
    as in --stream.sampling_exponent 0.5."""

    output: Path | None = None
    """Folder for inspect.json, inspect.csv, inspect.png and inspect.svg. Default: print only."""


@dataclass(kw_only=True)
class PlanOptions:
    """Which machines."""

    gpus: int
    """GPUs of each machine, and so ranks."""

    gpu: str
    """Model of the GPU: h100, h200, a100-80 and others. `cpu` is this machine, which is measured."""

    nodes: int = 1
    """Machines."""

    vocab_size: int | None = None
    """Pieces of the tokenizer. Needed only if there is no corpus yet."""

    benchmarks: Path = Path("docs/benchmarks")
    """Folder with the results of `unibert bench gpu`."""

    network_gbit: float = 200.0
    """Network between machines, in Gbit/s per rank."""

    output: Path | None = None
    """JSON file to write all figures to. Default: print only."""


@dataclass(kw_only=True)
class ExportOptions:
    """Which checkpoint, and where to."""

    run_dir: Path
    """Folder of the run."""

    step: int | None = None
    """Step of the checkpoint. Default: the newest."""

    output: Path | None = None
    """Model folder to write; an older export there is replaced. Default: RUN_DIR/model."""


@dataclass(kw_only=True)
class ReportOptions:
    """Which run."""

    run_dir: Path
    """Folder of the run."""


@dataclass(kw_only=True)
class ShowOptions:
    """Which results."""

    folder: Path
    """Folder with the results.json of `unibert bench kernels` or `unibert bench stream`."""


@dataclass(kw_only=True)
class CompletionOptions:
    """For which shell."""

    shell: Literal["bash", "zsh"]
    """The shell."""
