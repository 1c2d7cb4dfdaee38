"""The options of commands whose modules have no configuration class."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class DownloadOptions:
    """Options of ``unibert corpus download``."""

    languages: list[str]
    """Languages of Wikipedia, as in vi,uk: the part of the address before `.wikipedia.org`."""

    date: str = "latest"
    """Date of the dumps, as in 20261101. `latest` is the newest finished dump of each language."""

    output: Path = Path("dumps")
    """Folder for the files."""

    parts: bool = True
    """Fetch a large dump as its parts, which can be read in parallel. With false, fetch it as one file."""

    mirror: str = "https://dumps.wikimedia.org"
    """Address of the server: Wikimedia's own, or a mirror with the same folders, as in
    https://dumps.wikimedia.your.org."""

    contact: str | None = None
    """E-mail address or page that tells Wikimedia whom to contact about the downloads. It is sent with each request."""

    def __post_init__(self) -> None:
        if not self.languages:
            raise ValueError("languages: name at least one, as in vi,uk")
        for code in self.languages:
            if not re.fullmatch("[a-z][a-z0-9_-]*", code):
                raise ValueError(f"languages: {code!r} is not a code of Wikipedia, such as vi or zh-yue")
        if not re.fullmatch(r"latest|\d{8}", self.date):
            raise ValueError(f"date: must be latest or a date as in 20261101, got {self.date!r}")
        if not re.match("https?://[^/]", self.mirror):
            raise ValueError(f"mirror: must be an address that begins with https://, got {self.mirror!r}")
        if self.contact is not None and not (self.contact.isascii() and self.contact.isprintable()):
            raise ValueError(f"contact: must be plain ASCII text, got {self.contact!r}")


@dataclass(kw_only=True)
class CorpusReportOptions:
    """Options of ``unibert corpus report``."""

    corpus: Path
    """Corpus folder made by `unibert corpus build`."""


@dataclass(kw_only=True)
class VerifyOptions:
    """Options of ``unibert corpus verify``."""

    corpus: Path
    """Corpus folder made by `unibert corpus build`."""


@dataclass(frozen=True, kw_only=True)
class TeachOptions:
    """Options of ``unibert corpus teach``."""

    corpus: Path
    """Corpus folder made by `unibert corpus build` with the teacher's tokenizer, whole or trimmed."""

    teacher: str
    """Hugging Face folder or hub id of the teacher."""

    output: Path
    """Corpus folder to create: the same documents with the teacher's vectors."""

    sequence_length: int
    """training.sequence_length of the runs that will learn from the vectors. Documents are cut for it, and a piece that
    training cuts otherwise is not taught."""

    prompt: str = ""
    """Text that the teacher reads at the start of every piece, as "query:" for e5."""

    batch_tokens: int = 16384
    """Maximum number of tokens in a batch. Lower it if the device runs out of memory."""

    device: str = "auto"
    """Device: `cpu`, `cuda`, `cuda:1` or another. `auto` takes all GPUs of the machine, or the CPU."""

    workers: int | None = None
    """Processes. Default: one for each GPU, or one. Not used under mpirun or srun."""

    def __post_init__(self) -> None:
        for name in ("sequence_length", "batch_tokens", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: must be positive, got {value}")


@dataclass(kw_only=True)
class TokenizersOptions:
    """Options of ``unibert corpus tokenizers``."""

    corpus: Path
    """Corpus folder made by `unibert corpus build`, with held-out documents."""

    output: Path
    """Folder for the tokenizers, tokenizers.json, tokenizers.csv, tokenizers.png and tokenizers.svg."""

    sizes: list[int] = field(default_factory=lambda: [32_000, 64_000, 128_000])
    """Vocabulary sizes to compare, as in 32000,64000."""

    exponent: float = 0.3
    """A language's share of the training text is proportional to its bytes of text to this power."""

    train_bytes: int = 200_000_000
    """Maximum bytes of training text, of all languages together."""

    heldout_bytes: int = 200_000
    """Maximum bytes of held-out text of each language."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 300:
            raise ValueError(f"sizes: give vocabulary sizes of at least 300, got {self.sizes}")
        for name in ("train_bytes", "heldout_bytes"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: must be positive, got {value}")
        if not 0 <= self.exponent <= 1:
            raise ValueError(f"exponent: must lie between 0 and 1, got {self.exponent}")


@dataclass(kw_only=True)
class InspectOptions:
    """Options of ``unibert corpus inspect``."""

    corpus: Path | None = None
    """Corpus folder made by `unibert corpus build`. Default: the one in the run file."""

    run: str | None = None
    """Run file or preset whose mixture to forecast. Its keys are options too,
    as in --stream.sampling_exponent 0.5."""

    output: Path | None = None
    """Folder for inspect.json, inspect.csv, inspect.png and inspect.svg. Default: print only."""


@dataclass(kw_only=True)
class PlanOptions:
    """Options of ``unibert plan``."""

    gpus: int
    """Number of GPUs, and so of ranks, on each machine."""

    gpu: str
    """Model of the GPU: h100, h200, a100-80 and others. `cpu` is this machine, which is measured."""

    nodes: int = 1
    """Number of machines."""

    vocab_size: int | None = None
    """Size of the tokenizer's vocabulary. Needed only if there is no corpus yet."""

    benchmarks: Path = Path("docs/benchmarks")
    """Folder with the results of `unibert bench gpu`."""

    network_gbit: float = 200.0
    """Network between machines, in Gbit/s per rank."""

    output: Path | None = None
    """JSON file to write all figures to. Default: print only."""


@dataclass(kw_only=True)
class ExportOptions:
    """Options of ``unibert export``."""

    run_dir: Path
    """Folder of the run."""

    step: int | None = None
    """Step of the checkpoint. Default: the newest."""

    output: Path | None = None
    """Model folder to write. An older export there is replaced. Default: RUN_DIR/model, or RUN_DIR/ema with --ema."""

    ema: bool = False
    """Write the moving average of the weights, which runs with training.ema_half_life keep."""

    center: bool = False
    """Also write each language's mean vector over training text, for users who compare sentences across languages."""


@dataclass(kw_only=True)
class AverageOptions:
    """Options of ``unibert average``."""

    run_dir: Path
    """Folder of the run."""

    last: int | None = None
    """Number of newest checkpoints to average."""

    steps: list[int] = field(default_factory=list)
    """Steps of the checkpoints to average, as in 1000,1500,2000, instead of --last."""

    output: Path | None = None
    """Model folder to write. An older one there is replaced. Default: RUN_DIR/average."""

    center: bool = False
    """Also write each language's mean vector over training text, for users who compare sentences across languages."""

    def __post_init__(self) -> None:
        if (self.last is None) == (not self.steps):
            raise ValueError("last: give either --last N or --steps N,N,…")
        if self.last is not None and self.last < 2:
            raise ValueError(f"last: must be at least 2, got {self.last}")
        if self.steps and len(set(self.steps)) < 2:
            raise ValueError(f"steps: name at least two, got {self.steps}")


@dataclass(kw_only=True)
class PushOptions:
    """Options of ``unibert push``."""

    model: Path
    """Folder of a run that has an exported model, or any model folder that UniBERT has written."""

    to: str
    """ORG/NAME on the Hugging Face hub."""

    license: str | None = None
    """Licence for the card, by the hub's name, as in apache-2.0. Needed unless the card has one."""

    private: bool = False
    """Make a new repository private."""

    dry_run: Path | None = None
    """New folder to write the files into, instead of uploading them."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.to):
            raise ValueError(f"to: must be ORG/NAME, got {self.to!r}")


@dataclass(kw_only=True)
class TrimOptions:
    """Options of ``unibert trim``."""

    model: str
    """Model folder or hub id."""

    corpus: Path
    """Corpus folder that was built with the model's tokenizer and --trim_vocabulary."""

    output: Path
    """Model folder to create."""


@dataclass(kw_only=True)
class WatchOptions:
    """Options of ``unibert watch``."""

    run_dir: Path
    """Folder of the run. It is only read, so it may be another user's."""

    once: bool = False
    """Print the status once and end."""

    interval: float = 2.0
    """Seconds between two looks."""

    def __post_init__(self) -> None:
        if self.interval <= 0:
            raise ValueError(f"interval: must be positive, got {self.interval}")


@dataclass(kw_only=True)
class ReportOptions:
    """Options of ``unibert report``."""

    run_dirs: list[Path]
    """Folders of runs. Of several, each page also compares the losses of all."""

    retrieval: Path | None = None
    """Folder of aligned sentences, as for `unibert evaluate`. With it, every kept checkpoint that has no score yet is
    scored first, and the page shows retrieval over the run. training.keep_every_tokens keeps checkpoints."""

    max_sentences: int = 1000
    """Number of lines to use of each aligned set, from its beginning."""

    def __post_init__(self) -> None:
        if self.max_sentences < 2:
            raise ValueError(f"max_sentences: must be at least 2, got {self.max_sentences}")


@dataclass(kw_only=True)
class ShowOptions:
    """Options of ``unibert bench show``."""

    folder: Path
    """Folder with the results.json of `unibert bench kernels` or `unibert bench stream`."""


@dataclass(kw_only=True)
class CompletionOptions:
    """Options of ``unibert completion``."""

    shell: Literal["bash", "zsh"]
    """The shell."""


@dataclass(kw_only=True)
class StudyOptions:
    """Options of ``unibert study``."""

    study: Path
    """Study file with arms, seeds and tasks, or the folder of a study that has begun."""

    processes: int = 1
    """Number of trainings and evaluations at once."""

    part: str | None = None
    """K/N, as in 0/4: the share of the work that this command does, one of N with K from 0. Default: all."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes: must be at least 1, got {self.processes}")


@dataclass(kw_only=True)
class StudyReportOptions:
    """Options of ``unibert study report``."""

    study: Path
    """Study file, or the folder of a study."""
