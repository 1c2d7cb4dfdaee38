"""Options of ``bench corpus``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Part = Literal["cleaning", "tokenising", "build"]


@dataclass(kw_only=True)
class CorpusBenchConfig:
    """Options of ``unibert bench corpus``."""

    inputs: list[str]
    """MediaWiki dumps (.xml, .xml.bz2), folders of them or CODE=PATH, as of ``unibert corpus build``. Without the part
    cleaning, files of other kinds too."""

    parts: list[Part] | None = None
    """What to measure: cleaning, tokenising, build. Default: all."""

    repeats: int = 3
    """Number of rounds. In each round everything runs once, in its own process."""

    vocab_size: int = 32_000
    """Pieces of the SentencePiece model that is trained on the text."""

    pretrained: str | None = None
    """Pretrained fast tokenizer to measure too: a folder or hub id."""

    work: Path | None = None
    """Folder for texts and corpora, about five times the size of the text. Default: a temporary folder."""

    output: Path = Path("docs/benchmarks/corpus.json")
    """JSON file to write."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ValueError("inputs: give at least one dump, or a folder of dumps")
        if self.parts is not None and not self.parts:
            raise ValueError(f"parts: name at least one of {', '.join(get_args(Part))}")
        for key, minimum in {"repeats": 1, "vocab_size": 300}.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"{key}: must be at least {minimum}, got {getattr(self, key)}")
