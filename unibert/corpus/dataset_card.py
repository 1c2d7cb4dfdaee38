"""The card of a corpus: the README.md of its folder, in the format of the Hugging Face hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from unibert.corpus.config import CorpusConfig
from unibert.corpus.inputs import DOWNLOADS_NAME, InputFile
from unibert.corpus.manifest import Manifest
from unibert.corpus.report import REPORT_FILES, LanguageReport
from unibert.corpus.sources import Source, save_downloads, sources_of
from unibert.files import write_atomically
from unibert.installation import unibert_version
from unibert.languages import iso_code, language, language_tag
from unibert.model_card import CARD_NAME
from unibert.text import compact_markdown_table, shortened

DESCRIPTIONS = (*REPORT_FILES, CARD_NAME, DOWNLOADS_NAME)
"""The files of a corpus that tell people about it."""

_PLACES = ("inputs", "output", "workers", "overwrite")
"""Keys that say where and how a corpus was built; its content does not depend on them."""
_NAMED_LANGUAGES = 3
_LICENSE_NAMES = {"cc-by-sa-3.0": "CC BY-SA 3.0", "cc-by-sa-4.0": "CC BY-SA 4.0", "gfdl": "the GFDL"}
_WITH_UNIBERT = """\
import webdataset
from transformers import AutoTokenizer
from unibert.corpus.manifest import Manifest
from unibert.corpus.shards import decode_block

manifest = Manifest.load("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER/tokenizer")
for shard in manifest.shards_of("CODE"):
    for sample in webdataset.WebDataset(f"FOLDER/{shard.path}", shardshuffle=False):
        block = decode_block(sample)
        for document_id, tokens in zip(block.ids, block.documents()):
            print(document_id, tokenizer.decode(tokens))"""
_WITHOUT_UNIBERT = """\
import numpy as np
import webdataset

for sample in webdataset.WebDataset("FOLDER/SHARD", shardshuffle=False).decode():
    ends = np.cumsum(sample["lengths.npy"], dtype=np.int64)
    for document_id, tokens in zip(sample["json"]["ids"], np.split(sample["tokens.npy"], ends[:-1])):
        print(document_id, tokens)"""


def save_card(
    corpus_dir: Path,
    config: CorpusConfig,
    files: Sequence[InputFile],
    reports: Mapping[str, LanguageReport],
    manifest: Manifest,
) -> None:
    """Write ``README.md`` and, if files were downloaded with `corpus download`, ``downloads.json``."""
    save_downloads(corpus_dir, files)
    kept = {code: report for code, report in sorted(reports.items()) if report.tokens}
    sources = sources_of(files)
    content = [
        f"# {_title(list(kept))}",
        _summary(kept, manifest),
        "## Sources",
        *_sources(sources),
        "## Licence",
        _licence(sources),
        "## Languages",
        *_languages(kept),
        "## Rules",
        *_rules(config, reports),
        "## Held-out documents",
        _heldout(config, kept),
        "## Tokenizer",
        _tokenizer(config, manifest),
        "## Reading it",
        *_reading(manifest),
    ]
    metadata = yaml.safe_dump(_metadata(kept, sources), sort_keys=False, allow_unicode=True)
    write_atomically(corpus_dir / CARD_NAME, f"---\n{metadata}---\n\n" + "\n\n".join(content) + "\n")


def _metadata(kept: Mapping[str, LanguageReport], sources: Sequence[Source]) -> dict[str, Any]:
    tags = {language_tag(code) for code in kept}
    licenses = _licenses(sources)
    return {
        "language": sorted({iso_code(code) for code in kept}),
        **({"language_bcp47": varieties} if (varieties := sorted(tag for tag in tags if "-" in tag)) else {}),
        **({"license": licenses} if licenses else {}),
        "pretty_name": _title(list(kept)),
        "size_categories": [_size_category(sum(report.kept for report in kept.values()))],
        "task_categories": ["fill-mask"],
        "tags": ["unibert", "webdataset"],
    }


def _licenses(sources: Sequence[Source]) -> list[str]:
    """Return the licences of all text; none if those of a part are not known."""
    if not all(source.licenses for source in sources):
        return []
    return sorted({license for source in sources for license in source.licenses})


def _size_category(num_documents: int) -> str:
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    reached = sum(num_documents >= 1000 * 10**power for power in range(len(bounds)))
    if reached == 0:
        return f"n<{bounds[0]}"
    return f"n>{bounds[-1]}" if reached == len(bounds) else f"{bounds[reached - 1]}<n<{bounds[reached]}"


def _title(codes: Sequence[str]) -> str:
    names = [language(code).name for code in codes]
    text = f"{len(codes)} languages" if len(codes) > _NAMED_LANGUAGES else ", ".join(names)
    return f"Tokenised text in {text}"


def _summary(kept: Mapping[str, LanguageReport], manifest: Manifest) -> str:
    documents, characters, tokens = (
        sum(getattr(report, name) for report in kept.values()) for name in ("kept", "characters", "tokens")
    )
    return (
        f"{_count(documents, 'document')} in {_count(len(kept), 'language')}, {characters:,} characters, {tokens:,} "
        f"tokens in {_count(len(manifest.shards), 'tar shard')}: cleaned, filtered and tokenised text for masked "
        f"language modelling, built with UniBERT {unibert_version()}. `report.html` shows what came in, what was left "
        "out and why, with samples of both."
    )


def _sources(sources: Sequence[Source]) -> Iterator[str]:
    rows = [
        [source.path.name, source.language, source.date, f"{source.size:,}", source.sha1]
        for source in sorted(sources, key=lambda source: (source.language, source.path.name))
    ]
    header = ["file", "language", "dump of", "bytes", "SHA-1"]
    shown = [column for column in range(len(header)) if any(row[column] for row in rows)]
    yield f"{_count(len(sources), 'input file')}, as they were read, with their sizes on disk:"
    yield _table([header[column] for column in shown], [[row[column] for column in shown] for row in rows], {"bytes"})
    if any(source.sha1 for source in sources):
        yield f"`{DOWNLOADS_NAME}` has the addresses from which `unibert corpus download` fetched files."


def _licence(sources: Sequence[Source]) -> str:
    unknown = sorted(source.path.name for source in sources if not source.licenses)
    known = sorted({license for source in sources for license in source.licenses})
    sentences = []
    if known:
        whose = "the dumps of Wikimedia" if unknown else "Wikimedia's projects"
        names = ", ".join(_LICENSE_NAMES[license] for license in known[:-1])
        sentences.append(
            f"The text of {whose} is under {names} and, for the most part, {_LICENSE_NAMES[known[-1]]}; its authors "
            "are named in the history of each page (https://dumps.wikimedia.org/legal.html)."
        )
    if unknown:
        files = f"{_count(len(unknown), 'file')} ({shortened(unknown, _NAMED_LANGUAGES)})"
        sentences.append(f"The licence of the text of {files} is not known to the program that built this corpus.")
    return " ".join(sentences)


def _languages(kept: Mapping[str, LanguageReport]) -> Iterator[str]:
    header = ["code", "language", "documents", "held out", "characters", "tokens"]
    rows = [
        [
            code,
            language(code).name,
            *(f"{n:,}" for n in (report.kept, report.heldout_documents, report.characters, report.tokens)),
        ]
        for code, report in kept.items()
    ]
    yield "Codes are those of Wikipedias."
    yield _table(header, rows, set(header[2:]))


def _rules(config: CorpusConfig, reports: Mapping[str, LanguageReport]) -> Iterator[str]:
    dropped: Counter[str] = sum((report.dropped for report in reports.values()), Counter())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1]))
    num_read = sum(report.read for report in reports.values())
    yield (
        f"Of {_count(num_read, 'document')} read, these were dropped: {reasons or 'none'}. Documents with equal text "
        "are kept once. The rules are described in UniBERT's `docs/curating.md`; `unibert help corpus build` explains "
        "their keys. Their values here:"
    )
    yield _table(["key", "value"], [[f"`{key}`", value] for key, value in _settings(config)], set())


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of a build and their values; of paths, the names alone."""
    for field in fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        if key in _PLACES:
            continue
        if is_dataclass(value):
            yield from _settings(value, f"{key}.")
        elif isinstance(value, bool) or value is None:
            yield key, {True: "true", False: "false", None: "null"}[value]
        elif isinstance(value, dict):
            yield key, ", ".join(f"{name}: {'null' if one is None else one}" for name, one in value.items()) or "none"
        elif isinstance(value, list):
            yield key, ", ".join(_name(str(one)) for one in value)
        else:
            yield key, _name(value) if isinstance(value, str) else str(value)


def _name(value: str) -> str:
    return Path(value).name if Path(value).exists() else value


def _heldout(config: CorpusConfig, kept: Mapping[str, LanguageReport]) -> str:
    documents = sum(report.heldout_documents for report in kept.values())
    tokens = sum(report.heldout_tokens for report in kept.values())
    return (
        f"{_count(documents, 'document')} with {_count(tokens, 'token')} are held out (`heldout_share` "
        f"{config.heldout_share:g}), in the shards `CODE/heldout-NUMBER.tar`. A hash of a document's id decides, so "
        "documents with one id are on one side of the split, in all languages and in all corpora."
    )


def _tokenizer(config: CorpusConfig, manifest: Manifest) -> str:
    origin = "a unigram model with bytes for rare characters, trained on this corpus's train text"
    if config.tokenizer is not None:
        origin = f"taken from `{_name(config.tokenizer)}`"
    if config.trim_vocabulary is not None:
        origin += ", with the pieces that this text uses most"
    return (
        f"`tokenizer/` has a vocabulary of {manifest.vocab_size:,} pieces: {origin}. `AutoTokenizer` loads it. The "
        f"SHA-256 of its model is `{manifest.tokenizer_sha256}`."
    )


def _reading(manifest: Manifest) -> Iterator[str]:
    shard = next(shard for shard in manifest.shards if shard.split == "train")
    yield (
        "In these examples, `FOLDER` stands for this folder. Each sample of a tar file is a block of documents: their "
        "tokens end to end, their lengths and their ids. `unibert pretrain small --corpus FOLDER` trains on them, "
        "`unibert corpus show FOLDER` prints them."
    )
    yield "With UniBERT, which checks the blocks:"
    yield f"```python\n{_WITH_UNIBERT.replace('CODE', shard.language)}\n```"
    yield "With webdataset alone:"
    yield f"```python\n{_WITHOUT_UNIBERT.replace('SHARD', shard.path)}\n```"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[str]) -> str:
    return "\n".join(compact_markdown_table(header, rows, numbers=numbers))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
