"""manifest.json: the contents of a corpus folder, with digests.

Imports only the standard library, so that any program can read a manifest quickly.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from unibert.corpus.special_ids import OWN_SPECIAL_IDS, SpecialIds
from unibert.errors import UserError
from unibert.files import file_sha256, write_json

MANIFEST_NAME = "manifest.json"
_FORMAT = "unibert-corpus"
_VERSION = 3
"""Version 1 did not name the special ids, which were those of UniBERT's own tokenizers; versions 1 and 2 knew no
teaching."""

_FOLDERS_AT_ONCE = 16

Split = Literal["train", "heldout"]
_SPLITS = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file of a corpus."""

    path: str
    """Path relative to the corpus folder, with forward slashes: ``af/train-000000.tar``."""
    language: str
    split: Split
    documents: int
    blocks: int
    """Number of tar samples; each holds several documents."""
    tokens: int
    """Number of tokens, without special tokens."""
    text_bytes: int
    """UTF-8 bytes of the documents' text before tokenising."""
    size_bytes: int
    """Size of the tar file."""
    sha256: str
    """SHA-256 of the tar file, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What a teacher's vectors in the train shards are, see `unibert.corpus.shards`."""

    teacher: str
    """Name or folder of the model."""
    weights_sha256: str
    """See `unibert.model.teacher.weights_sha256`."""
    prompt: str
    """Text that it read at the start of every piece."""
    sequence_length: int
    """Documents were cut from their beginning into pieces that fit into sequences of this many tokens."""
    depth: int
    """Number of its layers; the last one's states were averaged."""
    width: int
    """Dimensions of a vector."""

    def __post_init__(self) -> None:
        for name in ("sequence_length", "depth", "width"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"teaching: {name} cannot be {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All shards of a corpus folder, and what is needed to read them."""

    shards: tuple[Shard, ...]
    vocab_size: int
    token_dtype: Literal["uint16", "uint32"]
    tokenizer_sha256: str
    """SHA-256 of ``tokenizer/sentencepiece.model``, or of ``tokenizer/tokenizer.json`` if there is no such model."""
    unigram_entropy: dict[str, float]
    """Nats per held-out token, for "all" and every language: the loss of a model that knows only word frequencies.

    Cross-entropy of the held-out tokens under the add-one-smoothed unigram distribution of the train tokens; a
    language's entry uses its own tokens only. Languages without held-out documents have no entry.
    """
    special_ids: SpecialIds = OWN_SPECIAL_IDS
    teaching: Teaching | None = None
    """None if the shards hold no vectors."""
    document_filter: str | None = None
    """The user's function that changed or dropped documents, as ``module:function``."""

    @property
    def piece_length(self) -> int | None:
        """Tokens of the pieces of documents that a teacher read; None if the shards hold no vectors."""
        return None if self.teaching is None else self.teaching.sequence_length - self.special_ids.frame_tokens

    def teaching_for(self, corpus_dir: str | os.PathLike[str], sequence_lengths: Collection[int]) -> Teaching:
        """Return what the vectors are, for runs with these sequence lengths; ``corpus_dir`` is named in the error.

        Raises:
            UserError: if there are no vectors, or none of the lengths cuts documents into the pieces that were read.
        """
        if self.teaching is None:
            raise UserError(
                f"distillation.teacher: null takes the teacher's vectors from the corpus, but {corpus_dir} has none; "
                "name a teacher, or write them with `unibert corpus teach`"
            )
        if self.teaching.sequence_length not in sequence_lengths:
            raise UserError(
                f"training.sequence_length: {', '.join(map(str, sorted(sequence_lengths)))}, but the teacher of "
                f"{corpus_dir} read pieces for sequences of {self.teaching.sequence_length} tokens; use "
                f"{self.teaching.sequence_length} or teach the corpus again"
            )
        return self.teaching

    @cached_property
    def languages(self) -> list[str]:
        """Sorted codes of the languages that have train shards."""
        return sorted({shard.language for shard in self.shards if shard.split == "train"})

    def shards_of(self, language: str, split: Split = "train") -> list[Shard]:
        """Return the language's shards of a split, in order of path."""
        return list(self._by_language.get((language, split), []))

    def tokens(self, language: str, split: Split = "train") -> int:
        """Return the number of tokens of a language's split, without special tokens."""
        return sum(shard.tokens for shard in self.shards_of(language, split))

    @cached_property
    def _by_language(self) -> dict[tuple[str, Split], list[Shard]]:
        shards: dict[tuple[str, Split], list[Shard]] = {}
        for shard in sorted(self.shards, key=lambda shard: shard.path):
            shards.setdefault((shard.language, shard.split), []).append(shard)
        return shards

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokenizer and of all shards' paths and digests; equal for equal corpora."""
        digests = sorted((shard.path, shard.sha256) for shard in self.shards)
        return hashlib.sha256(json.dumps([digests, self.tokenizer_sha256]).encode()).hexdigest()

    def save(self, corpus_dir: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` atomically."""
        content = {"format": _FORMAT, "version": _VERSION} | asdict(self)
        if self.document_filter is None:  # older programs, which do not know the key, can read such corpora
            del content["document_filter"]
        write_json(Path(corpus_dir) / MANIFEST_NAME, content)

    @classmethod
    def load(cls, corpus_dir: str | os.PathLike[str]) -> Manifest:
        """Read ``manifest.json`` of a corpus folder.

        Raises:
            UserError: if it is missing, not a corpus manifest, of another version, or malformed.
        """
        path = Path(corpus_dir) / MANIFEST_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; build the corpus with `unibert corpus build` first") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as JSON ({error}); build the corpus again") from error
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise UserError(f"{path}: not the manifest of a UniBERT corpus; name another folder")
        if (version := content.pop("version", None)) not in range(1, _VERSION + 1):
            raise UserError(
                f"{path}: has manifest version {version}, this program reads {_VERSION}; build the corpus again"
            )
        try:
            return cls._from_content(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: malformed manifest ({error}); build the corpus again") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Manifest:
        entropy = content["unigram_entropy"]
        if not isinstance(content["vocab_size"], int) or content["token_dtype"] not in ("uint16", "uint32"):
            raise ValueError("vocab_size must be an integer and token_dtype uint16 or uint32")
        if not all(isinstance(nats, float) for nats in entropy.values()):
            raise ValueError("unigram_entropy must hold numbers")
        shards = tuple(_checked_shard(Shard(**entry)) for entry in content["shards"])
        if len({shard.path for shard in shards}) < len(shards):
            raise ValueError("a shard is listed twice")
        special_ids = SpecialIds.of(content["special_ids"]) if "special_ids" in content else OWN_SPECIAL_IDS
        if special_ids.special[-1] >= content["vocab_size"]:
            raise ValueError(f"special_ids go up to {special_ids.special[-1]}, beyond the vocabulary")
        teaching = Teaching(**content["teaching"]) if content.get("teaching") else None
        return cls(**content | {"shards": shards, "special_ids": special_ids, "teaching": teaching})


_INTEGERS = [field.name for field in fields(Shard) if field.type == "int"]
_STRINGS = [field.name for field in fields(Shard) if field.type != "int"]


def _checked_shard(shard: Shard) -> Shard:
    # A corpus may have half a million shards.
    content = vars(shard)
    for name in _INTEGERS:
        if type(content[name]) is not int or content[name] < 0:
            raise ValueError(f"shard {shard.path}: {name} cannot be {content[name]!r}")
    for name in _STRINGS:
        if type(content[name]) is not str:
            raise ValueError(f"shard {shard.path}: {name} cannot be {content[name]!r}")
    if shard.path.startswith("/") or ".." in shard.path.split("/") or shard.split not in _SPLITS:
        raise ValueError(f"shard {shard.path}: path is not inside the corpus, or split {shard.split!r} is unknown")
    return shard


def damaged_shards(manifest: Manifest, folder: str | os.PathLike[str], digests: bool = True) -> list[tuple[Shard, str]]:
    """Return every shard whose file differs from the manifest in size or, if ``digests``, content, with a message.

    Raises:
        UserError: naming the first shard that is missing.
    """
    damaged = []
    for shard, size in zip(manifest.shards, _sizes(manifest.shards, folder), strict=True):
        path = Path(folder) / shard.path
        if size is None:
            raise UserError(f"{path}: missing, but listed in {MANIFEST_NAME}; copy it there or build the corpus again")
        if size != shard.size_bytes:
            damaged.append((shard, f"{path}: {size} bytes where the manifest says {shard.size_bytes}; copy it again"))
        elif digests and file_sha256(path) != shard.sha256:
            damaged.append((shard, f"{path}: content differs from the manifest's digest; copy it again"))
    return damaged


def _sizes(shards: Collection[Shard], folder: str | os.PathLike[str]) -> list[int | None]:
    """Size of each shard's file, None if there is none."""
    # On a network file system each file waits for a server, so several folders are looked at together.
    parents = sorted({shard.path.rpartition("/")[0] for shard in shards})
    with ThreadPoolExecutor(_FOLDERS_AT_ONCE) as pool:
        sizes = dict(zip(parents, pool.map(lambda parent: _sizes_in(Path(folder, parent)), parents), strict=True))
    places = (shard.path.rpartition("/") for shard in shards)
    return [sizes[parent].get(name) for parent, _, name in places]


def _sizes_in(folder: Path) -> dict[str, int]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def verify(corpus_dir: str | os.PathLike[str]) -> Manifest:
    """Check that every shard is in the folder, with the size and the content of the manifest.

    Raises:
        UserError: naming the first shard that is missing or differs in size or digest, and the number of those.
    """
    manifest = Manifest.load(corpus_dir)
    if damaged := damaged_shards(manifest, corpus_dir):
        more = f" ({len(damaged) - 1} more shards are damaged)" if damaged[1:] else ""
        raise UserError(damaged[0][1] + more)
    return manifest
