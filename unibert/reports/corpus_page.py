"""``report.html`` of a corpus: what came in, what was left out and why, with samples of both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unibert.corpus.contents import language_contents
from unibert.corpus.manifest import Manifest
from unibert.corpus.prose_loss import ALL_PAGES_BYTES, ONE_PAGE_IN, kept_percentage
from unibert.corpus.report import REPORT_JSON, REPORT_PAGE
from unibert.corpus.samples import KEPT, SAMPLES_NAME
from unibert.errors import UserError
from unibert.files import write_atomically
from unibert.languages import language, language_tag
from unibert.reports import corpus_plots
from unibert.reports.corpus_stages import num_dropped, stages_of
from unibert.reports.page import Finding, Table, Tile, render
from unibert.stream.plan import Plan
from unibert.text import percent, short, shortened, three_digits

Record = dict[str, Any]

EXPONENTS = (1.0, 0.7, 0.5, 0.3)
"""Sampling exponents whose mixtures the page compares."""
UNEXPECTED_SHARE = 0.1
"""Share of letters in unexpected scripts from which on a language stands out."""
_LISTED_LANGUAGES = 8
_LISTED_SCRIPTS = 4
_WORDS = ("why", "reason", "meaning", "page", "its scripts", "scripts", "evaluation set", "languages")
"""Columns that hold text, which is wrapped."""


@dataclass
class _Section:
    """A heading with a caption, a table, a figure and further tables, or the reason why they are missing."""

    title: str
    caption: str = ""
    table: Table | None = None
    image: str = ""
    more: list[Table] = field(default_factory=list)
    missing: str = ""


@dataclass(frozen=True)
class _Corpus:
    """What the page is about."""

    manifest: Manifest
    report: Record
    samples: Record | None
    """None if the corpus is older than samples."""

    @property
    def languages(self) -> dict[str, Record]:
        """The entries of report.json."""
        languages: dict[str, Record] = self.report["languages"]
        return languages

    def total(self, key: str) -> int:
        return sum(entry.get(key, 0) for entry in self.languages.values())


def write_corpus_page(corpus_dir: Path) -> Path:
    """Write ``report.html`` into a corpus folder; equal corpora get equal pages.

    It shows what the corpus's report.json, samples.json and manifest hold, and names what an older corpus lacks.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder is no corpus, its report is missing or damaged, or the page cannot be written.
    """
    corpus = _read(corpus_dir)
    try:
        page = _page(corpus)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{corpus_dir / REPORT_JSON}: damaged ({error!r}); build the corpus again") from error
    path = corpus_dir / REPORT_PAGE
    try:
        write_atomically(path, page)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); the corpus is complete, `unibert corpus report` tries again"
        ) from error
    return path


def _read(corpus_dir: Path) -> _Corpus:
    manifest = Manifest.load(corpus_dir)
    contents = {}
    for name in (REPORT_JSON, SAMPLES_NAME):
        try:
            contents[name] = json.loads((corpus_dir / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if name == REPORT_JSON:
                raise UserError(f"{corpus_dir}: has no {name}, which `unibert corpus build` writes") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{corpus_dir / name}: cannot be read ({error}); build the corpus again") from error
    return _Corpus(manifest, contents[REPORT_JSON], contents.get(SAMPLES_NAME))


def _page(corpus: _Corpus) -> str:
    codes = [code for code, entry in corpus.languages.items() if entry["kept"]]
    names = f"{len(codes)} languages" if len(codes) > _LISTED_LANGUAGES else ", ".join(language(c).name for c in codes)
    return render(
        "corpus_page.html",
        title=f"Corpus: {names}",
        tiles=_tiles(corpus, codes),
        findings=_findings(corpus),
        sections=[
            _flow(corpus),
            _prose(corpus),
            _scripts(corpus),
            _mixtures(corpus.manifest),
            _tokenizer(corpus),
            *_contaminated(corpus),
        ],
        words=_WORDS,
        samples=_samples(corpus),
        no_samples=_older("took samples"),
        notes=corpus.report.get("notes", []),
    )


def _older(what: str) -> str:
    return f"This corpus is older than builds that {what}; build it again to see them here."


# ---- headlines ---------------------------------------------------------------------------------------------------


def _tiles(corpus: _Corpus, codes: Sequence[str]) -> list[Tile]:
    read, kept, tokens = corpus.total("read"), corpus.total("kept"), corpus.total("train_tokens")
    in_107 = sum(language(code).in_107 for code in codes)
    tiles = [
        Tile("languages", f"{len(codes)}", f"{in_107} of them among UniBERT's 107"),
        Tile("documents kept", f"{kept:,}", f"{percent(kept / max(1, read))} of {read:,} read"),
        Tile("characters", short(corpus.total("characters")), f"{corpus.total('text_bytes'):,} bytes"),
        Tile("tokens", short(tokens), f"and {short(corpus.total('heldout_tokens'))} held out"),
        Tile("vocabulary", f"{corpus.manifest.vocab_size:,}", f"{len(corpus.manifest.shards):,} shards"),
    ]
    if prose := _total_prose(corpus):
        note = f"of {short(prose['visible_characters'])} characters on {prose['measured_pages']:,} pages"
        tiles.append(
            Tile("visible prose kept", kept_percentage(prose["visible_characters"], prose["kept_characters"]), note)
        )
    return tiles


def _findings(corpus: _Corpus) -> list[Finding]:
    languages = corpus.languages
    findings = []
    if empty := [code for code, entry in languages.items() if not entry["kept"]]:
        findings.append(Finding(f"Nothing was left of {_listed(empty)}; the corpus does not have them.", alarm=True))
    if cut_off := [code for code, entry in languages.items() if entry.get("cut_off_files")]:
        findings.append(Finding(f"Input files ended too early: {_listed(cut_off)}; what was read is kept.", alarm=True))
    if dropped := [f"{code} {percent(share)}" for code, share in _dropped_shares(languages) if share > 0.5]:
        findings.append(Finding(f"Rules drop more than half of the articles: {_listed(dropped)}.", alarm=True))
    shares = {code: share for code, entry in languages.items() if (share := _expected_share(code, entry)) is not None}
    unexpected = sorted((share, code) for code, share in shares.items() if 1 - share > UNEXPECTED_SHARE)
    if unexpected:
        listed = _listed([f"{code} {percent(1 - share)}" for share, code in unexpected])
        findings.append(Finding(f"Many letters are in scripts that the language does not use: {listed}.", alarm=True))
    elif shares:
        least = min(shares, key=lambda code: shares[code])
        text = (
            f"Nearly all letters are in scripts of their language; fewest in {language(least).name}: "
            f"{_floor(shares[least])}."
        )
        findings.append(Finding(text, alarm=False))
    losses = {
        code: prose["kept_characters"] / prose["visible_characters"]
        for code, entry in languages.items()
        if (prose := entry.get("visible_prose")) and prose["visible_characters"]
    }
    if losses:
        least = min(losses, key=lambda code: losses[code])
        text = f"The least visible prose of wiki pages is kept in {language(least).name}: {_floor(losses[least])}."
        findings.append(Finding(text, alarm=losses[least] < 0.98))
    if unknown := [code for code, entry in languages.items() if entry.get("unknown_token_share", 0) > 0.001]:
        text = f"More than 0.1% of the tokens stand for text that the tokenizer cannot spell: {_listed(unknown)}."
        findings.append(Finding(text, alarm=True))
    return findings


def _dropped_shares(languages: Mapping[str, Record]) -> list[tuple[str, float]]:
    """Return what share of its articles each language loses to the rules, most first."""
    shares = []
    for code, entry in languages.items():
        reading = sum(num_dropped(stage, entry) for stage in stages_of(entry["dropped"]) if stage.name == "reading")
        if (articles := entry["read"] - reading) and entry["kept"]:
            shares.append((code, 1 - entry["kept"] / articles))
    return sorted(shares, key=lambda entry: (-entry[1], entry[0]))


def _expected_share(code: str, entry: Record) -> float | None:
    """Return the share of the letters that are in the language's scripts; None if scripts or letters are not known."""
    scripts, letters = language(code).scripts, _letters(entry)
    if not scripts or not letters:
        return None
    return sum(letters.get(script, 0) for script in scripts) / sum(letters.values())


def _letters(entry: Record) -> dict[str, int]:
    """Return the letters by script, without the marks that all scripts use."""
    return {script: count for script, count in entry.get("letters_by_script", {}).items() if script != "Inherited"}


# ---- sections ----------------------------------------------------------------------------------------------------


def _flow(corpus: _Corpus) -> _Section:
    languages = corpus.languages
    stages = stages_of(reason for entry in languages.values() for reason in entry["dropped"])
    dropped = sum((Counter(entry["dropped"]) for entry in languages.values()), Counter[str]())
    left = corpus.total("read")
    funnel = [["inputs", "", "", "", f"{left:,}"]]
    for stage in stages:
        number = sum(dropped[reason] for reason in stage.reasons)
        why = ", ".join(f"{reason} {dropped[reason]:,}" for reason in stage.reasons)
        funnel.append([stage.name, f"{left:,}", f"{number:,}", why, f"{left - number:,}"])
        left -= number
    meanings = [
        [stage.name, reason, f"{dropped[reason]:,}", meaning]
        for stage in stages
        for reason, meaning in stage.reasons.items()
    ]
    has_files = any("files" in entry for entry in languages.values())
    reasons = [reason for stage in stages for reason in stage.reasons]
    header = ["language", *(["files"] if has_files else []), "read", *reasons]
    rows = [
        [
            language(code).label,
            *([f"{entry.get('files', 0):,}"] if has_files else []),
            f"{entry['read']:,}",
            *(f"{number:,}" if (number := entry["dropped"].get(reason, 0)) else "" for reason in reasons),
            *_kept_cells(entry),
        ]
        for code, entry in languages.items()
    ]
    sums = {key: corpus.total(key) for key in ("read", "kept", "heldout_documents", "characters")}
    sums |= {key: corpus.total(key) for key in ("train_tokens", "heldout_tokens", "text_bytes")}
    total = [
        "all",
        *([f"{corpus.total('files'):,}"] if has_files else []),
        f"{sums['read']:,}",
        *(f"{dropped[reason]:,}" for reason in reasons),
        *_kept_cells(sums),
    ]
    return _Section(
        "From the inputs to the corpus",
        "Documents of all languages, stage by stage. The table by language below has each reason; a click on a heading "
        "sorts it.",
        Table("all languages", ["stage", "came in", "dropped", "why", "went on"], funnel),
        corpus_plots.svg_uri(corpus_plots.outcomes(languages)),
        [
            Table(
                "By language",
                [*header, "kept", "share kept", "held out", "characters", "bytes", "tokens"],
                rows,
                total,
            ),
            *(
                [Table("What the reasons mean", ["stage", "reason", "documents", "meaning"], meanings)]
                if meanings
                else []
            ),
        ],
    )


def _kept_cells(entry: Record) -> list[str]:
    return [
        f"{entry['kept']:,}",
        percent(entry["kept"] / max(1, entry["read"])),
        *(f"{entry[key]:,}" for key in ("heldout_documents", "characters", "text_bytes")),
        f"{entry['train_tokens'] + entry['heldout_tokens']:,}",
    ]


def _prose(corpus: _Corpus) -> _Section:
    measured = {code: entry["visible_prose"] for code, entry in corpus.languages.items() if "visible_prose" in entry}
    title = "Visible prose of wiki pages"
    total = _total_prose(corpus)
    if total is None:
        return _Section(title, missing="No page of a dump was measured.")

    def cells(prose: Record) -> list[str]:
        visible, kept = prose["visible_characters"], prose["kept_characters"]
        return [f"{prose['measured_pages']:,}", f"{visible:,}", f"{visible - kept:,}", kept_percentage(visible, kept)]

    pages = ((page, language(code).label) for code, prose in measured.items() for page in prose["worst_pages"])
    worst = sorted(pages, key=lambda entry: (-entry[0]["lost"], entry[1], entry[0]["id"]))
    return _Section(
        title,
        "Paragraphs as readers of a page see them, against the text that is kept, in characters of words. Of input "
        f"files above {ALL_PAGES_BYTES >> 20} MiB, one page in {ONE_PAGE_IN} is measured, chosen by a hash of its id. "
        "unibert corpus show INPUT --title TITLE --diff shows what a page loses.",
        Table(
            "by language",
            ["language", "pages", "characters", "lost", "kept"],
            [[language(code).label, *cells(prose)] for code, prose in measured.items()],
            ["all", *cells(total)],
        ),
        more=[
            Table(
                "Pages that lose most",
                ["language", "page", "id", "characters lost"],
                [[label, page["title"], page["id"], f"{page['lost']:,}"] for page, label in worst],
            )
        ]
        if worst
        else [],
    )


def _total_prose(corpus: _Corpus) -> Record | None:
    measured = [entry["visible_prose"] for entry in corpus.languages.values() if "visible_prose" in entry]
    keys = ("measured_pages", "visible_characters", "kept_characters")
    total = {key: sum(prose[key] for prose in measured) for key in keys}
    return total if total["visible_characters"] else None


def _scripts(corpus: _Corpus) -> _Section:
    rows = []
    for code, entry in corpus.languages.items():
        if letters := _letters(entry):
            number = sum(letters.values())
            found = [f"{script} {percent(count / number)}" for script, count in letters.items()]
            share = _expected_share(code, entry)
            rows.append(
                [
                    language(code).label,
                    ", ".join(sorted(language(code).scripts)) or "not known",
                    "" if share is None else _floor(share),
                    shortened(found, _LISTED_SCRIPTS),
                ]
            )
    if not rows:
        return _Section("Scripts", missing=_older("counted letters"))
    return _Section(
        "Scripts",
        "Letters of all documents that passed the filters, by Unicode script; copies and stubs, which are dropped "
        "later, are among them. Names in Latin script are common in all languages.",
        Table("by language", ["language", "its scripts", "letters in them", "scripts"], rows),
    )


def _mixtures(manifest: Manifest) -> _Section:
    contents = language_contents(manifest)
    codes = [entry.code for entry in contents]
    total = sum(entry.tokens for entry in contents)
    shares = {
        exponent: Plan(manifest, codes, seed=0, run_tokens=1, exponent=exponent).mixture(0.0) for exponent in EXPONENTS
    }
    rows = [
        [
            language(entry.code).label,
            f"{entry.tokens:,}",
            *(percent(share[number]) for share in shares.values()),
            *(three_digits(shares[exponent][number] * total / entry.tokens) for exponent in EXPONENTS[1:]),
        ]
        for number, entry in enumerate(contents)
    ]
    return _Section(
        "Tokens under each sampling exponent",
        "A run draws a language in proportion to its train tokens to the power of stream.sampling_exponent. Epochs: "
        f"how often a run that reads as many tokens as the corpus has, {total:,}, reads each language.",
        Table(
            "by language",
            [
                "language",
                "train tokens",
                *(f"share, {exponent:g}" for exponent in EXPONENTS),
                *(f"epochs, {exponent:g}" for exponent in EXPONENTS[1:]),
            ],
            rows,
        ),
        corpus_plots.svg_uri(corpus_plots.mixtures(codes, shares)),
    )


def _tokenizer(corpus: _Corpus) -> _Section:
    entropies = corpus.manifest.unigram_entropy
    rows = [
        [
            language(code).label,
            *(f"{entry[key]:.2f}" if key in entry else "" for key in ("tokens_per_word", "characters_per_token")),
            *(percent(entry[key]) if key in entry else "" for key in ("byte_token_share", "unknown_token_share")),
            f"{entropies[code]:.2f}" if code in entropies else "",
        ]
        for code, entry in corpus.languages.items()
        if entry["kept"]
    ]
    header = ["language", "tokens per word", "characters per token", "in bytes", "unknown", "unigram loss"]
    return _Section(
        "Tokenizer",
        "Tokens per word (fertility) mean little in scripts without spaces; characters per token compare better. In "
        "bytes: tokens that are a byte of a character without a piece. Unknown: tokens for text that the tokenizer "
        "cannot spell. Unigram loss: nats per held-out token of a model that knows only frequencies.",
        Table("by language", header, rows),
    )


def _contaminated(corpus: _Corpus) -> list[_Section]:
    found: dict[str, dict[str, int]] = {}
    for code, entry in corpus.languages.items():
        for path, number in entry.get("contaminated", {}).items():
            found.setdefault(path, {})[code] = number
    if not found:
        return []
    rows = []
    for path, numbers in sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0])):
        most_first = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
        listed = _listed([f"{code} {number:,}" for code, number in most_first])
        rows.append([path, f"{sum(numbers.values()):,}", listed])
    return [
        _Section(
            "Evaluation sets",
            "Documents that share text with an evaluation set, and so were dropped; a document may share with several.",
            Table("by set", ["evaluation set", "documents", "languages"], rows),
        )
    ]


def _samples(corpus: _Corpus) -> list[Record]:
    if corpus.samples is None:
        return []
    shown = []
    for code, entry in corpus.languages.items():
        chosen = corpus.samples.get(code, {})
        reasons = [reason for stage in stages_of(chosen.keys() - {KEPT}) for reason in stage.reasons]
        outcomes = [
            {
                "name": name,
                "note": f"{entry['kept'] if name == KEPT else entry['dropped'].get(name, 0):,}",
                "samples": chosen[name],
            }
            for name in (KEPT, *reasons)
            if name in chosen
        ]
        summary = f"{entry['kept']:,} of {entry['read']:,} documents kept"
        record = {"label": language(code).label, "tag": language_tag(code), "summary": summary, "outcomes": outcomes}
        shown.append(record)
    return shown


def _listed(items: Sequence[str]) -> str:
    return shortened(items, _LISTED_LANGUAGES)


def _floor(share: float) -> str:
    """Return a share as text, rounded down, so that only the whole is 100 %."""
    return f"{int(10_000 * share) / 100:.2f} %"
