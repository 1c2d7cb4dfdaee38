"""What a build read, dropped and kept, per language: report.json for programs, report.md for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unibert.corpus.document_tokenizer import DocumentTokenizer
from unibert.corpus.manifest import Manifest, Shard
from unibert.corpus.prose_loss import ALL_PAGES_BYTES, ONE_PAGE_IN, ProseLoss, kept_percentage
from unibert.corpus.samples import KEPT, SAMPLES_NAME, DocumentSamples, save_samples
from unibert.corpus.spool import Index
from unibert.files import write_atomically, write_json
from unibert.languages import language
from unibert.text import compact_markdown_table

REPORT_JSON, REPORT_MARKDOWN, REPORT_PAGE = "report.json", "report.md", "report.html"
REPORT_FILES = (REPORT_JSON, REPORT_MARKDOWN, REPORT_PAGE, SAMPLES_NAME)
_LISTED_PAGES = 3  # per language in report.md


@dataclass
class LanguageReport:
    """Counts of one language, filled stage by stage."""

    files: int = 0
    """Number of input files."""
    read: int = 0
    """Number of documents, including redirects and pages outside the article namespace."""
    cut_off_files: int = 0
    """Number of input files that ended too early; what came before was used."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of dropped documents by reason."""
    contaminated: Counter[str] = field(default_factory=Counter)
    """Number of documents that share text with an evaluation set, for each set; a document may share with several."""
    kept: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the kept documents; characters and words are theirs too."""
    characters: int = 0
    words: int = 0
    """Number of words separated by spaces: few in Chinese, Japanese, Thai, Khmer and Burmese."""
    train_documents: int = 0
    heldout_documents: int = 0
    train_tokens: int = 0
    heldout_tokens: int = 0
    untrimmed_train_tokens: int | None = None
    """Number of train tokens with the whole vocabulary, if it was trimmed."""
    byte_tokens: int = 0
    """Number of tokens that are a byte of a character for which the vocabulary has no piece."""
    unknown_tokens: int = 0
    """Number of tokens that stand for text which the tokenizer cannot spell."""
    prose: ProseLoss = field(default_factory=ProseLoss)
    """What cleaning lost of the visible prose of wiki pages."""
    letters: Counter[str] = field(default_factory=Counter)
    """Number of letters by script, of the documents that cleaning kept: equal ones and stubs are among them."""
    samples: DocumentSamples = field(default_factory=DocumentSamples)
    """Some of the kept and of the dropped documents."""

    def add(self, counts: Counter[str]) -> None:
        """Add the counts of a task: ``read``, ``cut_off_files``, and documents dropped by reason."""
        counts = counts.copy()
        self.read += counts.pop("read", 0)
        self.cut_off_files += counts.pop("cut_off_files", 0)
        self.dropped += counts

    def count_dropped(self, reason: str, documents: Index, spools: Sequence[Path]) -> None:
        """Add documents that are dropped after cleaning, (documents,)."""
        self.dropped += Counter({reason: len(documents)})
        self.samples.offer_spooled(reason, documents, spools)

    def count_kept(self, index: Index, spools: Sequence[Path]) -> None:
        """Add the kept documents, (documents,)."""
        self.samples.offer_spooled(KEPT, index, spools)
        self.kept += len(index)
        for name in ("text_bytes", "characters", "words"):
            setattr(self, name, getattr(self, name) + int(index[name].sum(dtype=np.int64)))

    def count_shard(self, shard: Shard) -> None:
        """Add a shard's documents and tokens."""
        if shard.split == "train":
            self.train_documents += shard.documents
            self.train_tokens += shard.tokens
        else:
            self.heldout_documents += shard.documents
            self.heldout_tokens += shard.tokens

    def count_unknown(self, counts: npt.NDArray[np.int64], tokenizer: DocumentTokenizer) -> None:
        """Add the tokens that stand for bytes and for unknown text, of the occurrences of each token, (V,)."""
        self.byte_tokens += int(counts[list(tokenizer.byte_ids)].sum())
        if tokenizer.unknown_id is not None:
            self.unknown_tokens += int(counts[tokenizer.unknown_id])

    @property
    def tokens(self) -> int:
        return self.train_tokens + self.heldout_tokens

    @property
    def trimming_cost(self) -> float | None:
        """Share of tokens that trimming the vocabulary adds, if it was trimmed."""
        if not self.untrimmed_train_tokens:
            return None
        return self.train_tokens / self.untrimmed_train_tokens - 1

    @property
    def reasons(self) -> str:
        """Dropped documents by reason, most frequent first, as text: ``too_short 12, duplicate 3``."""
        return ", ".join(f"{reason} {count}" for reason, count in sorted(self.dropped.items(), key=_by_count)) or "none"

    def content(self) -> dict[str, Any]:
        """Return the entry of report.json: the counts, and ratios if there are tokens."""
        content = vars(self) | {"dropped": dict(sorted(self.dropped.items(), key=_by_count))}
        content["contaminated"] = dict(sorted(self.contaminated.items(), key=_by_count))
        if not self.contaminated:
            del content["contaminated"]
        if self.untrimmed_train_tokens is None:
            del content["untrimmed_train_tokens"]
        for name in ("prose", "letters", "samples"):
            del content[name]
        if self.letters:
            content["letters_by_script"] = dict(sorted(self.letters.items(), key=_by_count))
        if self.prose.pages:
            content["visible_prose"] = self.prose.content()
        if self.tokens:
            content["tokens_per_word"] = round(self.tokens / self.words, 3)
            content["characters_per_token"] = round(self.characters / self.tokens, 3)
            content["bytes_per_token"] = round(self.text_bytes / self.tokens, 3)
            content["byte_token_share"] = round(self.byte_tokens / self.tokens, 6)
            content["unknown_token_share"] = round(self.unknown_tokens / self.tokens, 6)
        return content


def save_report(
    corpus_dir: Path, reports: Mapping[str, LanguageReport], manifest: Manifest, notes: Sequence[str] = ()
) -> None:
    """Write ``report.json``, ``report.md`` and ``samples.json`` into the corpus folder.

    ``notes`` are sentences on the whole build.
    """
    content = {
        "vocab_size": manifest.vocab_size,
        "unigram_entropy": manifest.unigram_entropy,
        "notes": list(notes),
        "languages": {code: report.content() for code, report in sorted(reports.items())},
    }
    write_json(corpus_dir / REPORT_JSON, content)
    write_atomically(corpus_dir / REPORT_MARKDOWN, _markdown(reports, manifest, notes))
    save_samples(corpus_dir, {code: report.samples for code, report in reports.items()})


def _markdown(reports: Mapping[str, LanguageReport], manifest: Manifest, notes: Sequence[str]) -> str:
    reasons: Counter[str] = Counter()
    for report in reports.values():
        reasons += report.dropped
    num_bytes = sum(report.text_bytes for report in reports.values())
    num_tokens = sum(report.tokens for report in reports.values())
    is_trimmed = any(report.trimming_cost is not None for report in reports.values())
    header = (
        "language",
        "read",
        "kept",
        "held out",
        "bytes",
        "tokens",
        "tokens/word",
        "characters/token",
        "in bytes",
        "unknown",
        "unigram loss",
        *(["trimming"] if is_trimmed else []),
        "dropped",
    )
    lines = [
        "# Corpus report",
        "",
        f"{len(manifest.languages)} languages, {sum(report.kept for report in reports.values()):,} documents, "
        f"{num_bytes:,} bytes of text, {num_tokens:,} tokens of a vocabulary of {manifest.vocab_size:,}, "
        f"{len(manifest.shards):,} shards.",
        "",
        "Tokens per word (fertility) means little in scripts without spaces; characters per token compares better.",
        "In bytes: share of tokens that are a byte of a character without a piece. Unknown: share of tokens for text "
        "that the tokenizer cannot spell, which is lost to the model.",
        "",
        *(["Trimming: tokens that the train text has more than with the whole vocabulary.", ""] if is_trimmed else []),
        *compact_markdown_table(
            header,
            [_row(code, report, manifest, is_trimmed) for code, report in sorted(reports.items())],
            numbers=header[1:-1],
        ),
        "",
        "## Dropped, all languages",
        "",
        *compact_markdown_table(
            ("reason", "documents"),
            [(reason, f"{count:,}") for reason, count in sorted(reasons.items(), key=_by_count)],
            numbers={"documents"},
        ),
    ]
    if contaminated := sum((report.contaminated for report in reports.values()), Counter[str]()):
        lines += [
            "",
            "## Contaminated, all languages",
            "",
            *compact_markdown_table(
                ("evaluation set", "documents"),
                [(path, f"{count:,}") for path, count in sorted(contaminated.items(), key=_by_count)],
                numbers={"documents"},
            ),
        ]
    lines += _prose_lines(reports)
    if empty := [code for code, report in sorted(reports.items()) if not report.tokens]:
        lines += ["", f"Skipped, nothing was left of them: {', '.join(empty)}."]
    if cut_off := [code for code, report in sorted(reports.items()) if report.cut_off_files]:
        lines += ["", f"Some input files ended too early: {', '.join(cut_off)}."]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _prose_lines(reports: Mapping[str, LanguageReport]) -> list[str]:
    measured = {code: report.prose for code, report in sorted(reports.items()) if report.prose.visible}
    if not measured:
        return []
    total = ProseLoss()
    for prose in measured.values():
        total.add(prose)
    rows = [
        (
            language(code).label,
            f"{prose.pages:,}",
            f"{prose.visible:,}",
            kept_percentage(prose.visible, prose.kept),
            ", ".join(f"{page.title} (id {page.id}) {page.lost:,}" for page in prose.worst[:_LISTED_PAGES]),
        )
        for code, prose in measured.items()
    ]
    return [
        "",
        "## Visible prose of wiki pages",
        "",
        f"Visible prose kept: {kept_percentage(total.visible, total.kept)} of {total.visible:,} characters of words on "
        f"{total.pages:,} pages.",
        "",
        "Visible prose: paragraphs as readers of a page see them. Of input files above "
        f"{ALL_PAGES_BYTES >> 20} MiB, one page in {ONE_PAGE_IN} is measured, chosen by a hash of its id. "
        f"Worst pages: those that lose most, with the number of characters; {REPORT_JSON} lists more. "
        "`unibert corpus show INPUT --title TITLE --diff` shows what a page loses.",
        "",
        *compact_markdown_table(
            ("language", "pages", "characters", "kept", "worst pages"), rows, numbers=("pages", "characters", "kept")
        ),
    ]


def _row(code: str, report: LanguageReport, manifest: Manifest, is_trimmed: bool) -> list[str]:
    counts = (report.read, report.kept, report.heldout_documents, report.text_bytes, report.tokens)
    ratios = [""] * 5
    if report.tokens:
        entropy = manifest.unigram_entropy.get(code)
        ratios = [
            f"{report.tokens / report.words:.2f}",
            f"{report.characters / report.tokens:.2f}",
            f"{report.byte_tokens / report.tokens:.2%}",
            f"{report.unknown_tokens / report.tokens:.2%}",
            "" if entropy is None else f"{entropy:.2f}",
        ]
    cost = report.trimming_cost
    trimming = ([""] if cost is None else [f"{cost:+.1%}"]) if is_trimmed else []
    return [language(code).label, *(f"{count:,}" for count in counts), *ratios, *trimming, report.reasons]


def _by_count(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]
