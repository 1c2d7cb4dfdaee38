"""``unibert corpus tokenizers``: tokenizers of several sizes, trained on a corpus's text, compared on held-out text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from tokenizers import Tokenizer

from unibert.command_options import TokenizersOptions
from unibert.corpus.manifest import Manifest, Split
from unibert.corpus.selection import sample_quotas
from unibert.corpus.text_tokenizer import TOKENIZER_NAME
from unibert.corpus.tokenizer import MODEL_NAME, OwnTokenizer, train_tokenizer
from unibert.errors import UserError
from unibert.files import replacing, write_atomically, write_json
from unibert.languages import language
from unibert.reports.plots import SCATTER_COLOURS, WIDTH, style
from unibert.stream.config import StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource
from unibert.text import percent, ruled_table

_INCHES_PER_LANGUAGE = 0.12


@dataclass(frozen=True, kw_only=True)
class SizeScore:
    """What a tokenizer makes of the held-out text of one language."""

    vocab_size: int
    language: str
    tokens: int
    words: int
    """Number of words separated by spaces: few in Chinese, Japanese, Thai, Khmer and Burmese."""
    characters: int
    byte_tokens: int
    """Number of tokens that are a byte of a character without a piece."""

    @property
    def tokens_per_word(self) -> float:
        """Fertility."""
        return self.tokens / self.words

    @property
    def tokens_per_character(self) -> float:
        """Comparable among scripts with spaces and without."""
        return self.tokens / self.characters


def compare_sizes(options: TokenizersOptions) -> None:
    """Train a tokenizer of each size, write them with their scores and a plot, and print a table.

    The text is that which the corpus's tokens stand for.

    Raises:
        UserError: if the corpus cannot be read or has no held-out documents, ``output`` cannot be written, or the text
            does not allow a size.
    """
    manifest = Manifest.load(options.corpus)
    if not any(shard.split == "heldout" for shard in manifest.shards):
        raise UserError(f"{options.corpus}: the corpus has no held-out documents; build it with heldout_share above 0")
    text_bytes = {code: sum(shard.text_bytes for shard in manifest.shards_of(code)) for code in manifest.languages}
    quotas = sample_quotas(text_bytes, options.train_bytes, options.exponent)
    lines = [
        line for code in manifest.languages for line in _texts(options.corpus, manifest, code, "train", quotas[code])
    ]
    heldout = {
        code: texts
        for code in manifest.languages
        if (texts := list(_texts(options.corpus, manifest, code, "heldout", options.heldout_bytes)))
    }
    scores: list[SizeScore] = []
    for size in sorted(set(options.sizes)):
        folder = options.output / str(size)
        model = train_tokenizer(lines, vocab_size=size)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / MODEL_NAME, model)
        except OSError as error:
            raise UserError(f"output: {folder} cannot be written ({error.strerror})") from error
        tokenizer = OwnTokenizer(folder / MODEL_NAME)
        scores += [_score(tokenizer, code, texts) for code, texts in heldout.items()]
    _write(scores, options.output)
    print("\n".join(_table(scores)))
    print(f"\ntokenizers  {options.output}")


def _texts(corpus: Path, manifest: Manifest, code: str, split: Split, max_bytes: int) -> Iterator[str]:
    """Yield documents of a language until they have ``max_bytes``."""
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer" / TOKENIZER_NAME))
    source = ShardSource(corpus, StreamConfig())
    for shard in manifest.shards_of(code, split):
        for block in read_blocks(source, shard, manifest.vocab_size):
            for tokens in block.documents():
                if max_bytes <= 0:
                    return
                if text := tokenizer.decode(tokens.tolist()).strip():
                    max_bytes -= len(text.encode())
                    yield text


def _score(tokenizer: OwnTokenizer, code: str, texts: Sequence[str]) -> SizeScore:
    tokens = np.concatenate(tokenizer.encode_batch(texts))
    return SizeScore(
        vocab_size=tokenizer.vocab_size,
        language=code,
        tokens=len(tokens),
        words=sum(len(text.split()) for text in texts),
        characters=sum(map(len, texts)),
        byte_tokens=int(np.isin(tokens, list(tokenizer.byte_ids)).sum()),
    )


def _write(scores: Sequence[SizeScore], output: Path) -> None:
    rows = [
        asdict(score) | {"tokens_per_word": score.tokens_per_word, "tokens_per_character": score.tokens_per_character}
        for score in scores
    ]
    write_json(output / "tokenizers.json", rows)
    with io.StringIO(newline="") as buffer:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(output / "tokenizers.csv", buffer.getvalue())
    # A fixed salt makes equal figures equal files.
    with style(), matplotlib.rc_context({"svg.hashsalt": "unibert"}):
        figure = _figure(scores)
        for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
            with replacing(output / f"tokenizers{suffix}") as unfinished:
                figure.savefig(unfinished, format=suffix[1:], facecolor="white", metadata=metadata)


def _figure(scores: Sequence[SizeScore]) -> Figure:
    """Plot both ratios of each language, by size, the languages in the order of the smallest size's."""
    by_size = {size: list(group) for size, group in groupby(scores, lambda score: score.vocab_size)}
    smallest = next(iter(by_size.values()))
    order = sorted(range(len(smallest)), key=lambda index: -smallest[index].tokens_per_character)
    figure = Figure(figsize=(max(WIDTH, 1.2 + _INCHES_PER_LANGUAGE * len(order)), 5.2))
    for axes, ratio in zip(figure.subplots(2, 1), ("tokens_per_character", "tokens_per_word"), strict=True):
        for colour, (size, of_size) in zip(SCATTER_COLOURS * len(by_size), by_size.items(), strict=False):
            values = [getattr(of_size[index], ratio) for index in order]
            axes.plot(values, linestyle="none", marker="o", markersize=4, color=colour, label=f"{size:,} pieces")
        axes.set(title=f"{ratio.replace('_', ' ').capitalize()} of held-out text", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(range(len(order)), [smallest[index].language for index in order], rotation=90, fontsize=7)
    figure.axes[0].legend(fontsize=8)
    return figure


def _table(scores: Sequence[SizeScore]) -> list[str]:
    sizes = list(dict.fromkeys(score.vocab_size for score in scores))
    by_language = {
        code: list(group)
        for code, group in groupby(sorted(scores, key=lambda score: score.language), lambda score: score.language)
    }
    rows = [
        [
            language(code).label,
            *(f"{score.tokens_per_word:.2f}" for score in of_language),
            *(f"{1 / score.tokens_per_character:.2f}" for score in of_language),
            *(percent(score.byte_tokens / score.tokens) for score in of_language),
        ]
        for code, of_language in by_language.items()
    ]
    names = [f"{size:,}" for size in sizes]
    groups = [("", 1), *((name, len(sizes)) for name in ("tokens per word", "characters per token", "in bytes"))]
    return ruled_table(["language", *names, *names, *names], rows, groups)
