"""``unibert corpus inspect``: what a corpus contains and what a run would read of it, as text, data and plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from unibert.corpus.contents import LanguageContents, language_contents
from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.files import write_atomically
from unibert.languages import LANGUAGES, language
from unibert.stream.forecast import WORTHWHILE_EPOCHS, Forecast, mixing_warning
from unibert.text import described_lines, percent, ruled_table, short, shortened, three_digits, with_unit
from unibert.training.config import RunConfig

Record = dict[str, Any]

MAX_PHASES_WITH_NAMES = 4
"""Maximum phases for which a table has room for the languages' names."""
MAX_LISTED_LANGUAGES = 12
"""Maximum languages listed on a line; the table and inspect.csv list all."""


def inspect_corpus(corpus: str, config: RunConfig | None, output: Path | None) -> None:
    """Print the content of ``corpus`` and, with a run, the forecast of its mixture. ``output`` gets data and plots.

    Raises:
        UserError: if the manifest is missing or malformed, the run needs languages that the corpus lacks, ``output``
            cannot be written or, after everything is printed and written, ``max_epochs`` leaves too little text.
    """
    manifest = Manifest.load(corpus)
    contents = language_contents(manifest)
    if not any(entry.tokens for entry in contents):
        raise UserError(f"{corpus}: the corpus has no train tokens; build it from more text")
    print(f"{corpus}\n{format_contents(manifest, contents)}")
    forecast = None
    if config is not None:
        timeline = config.training.timeline()
        forecast = Forecast(manifest, config.stream, seed=config.seed, timeline=timeline)
        print(f"\nThe run {config.run_dir}\n{format_forecast(forecast, config)}")
    if output is not None:
        write_inspection(corpus, manifest, contents, config, forecast, output)
        print(f"\ninspection  {output}")
    if forecast is not None and forecast.shortage:
        raise UserError(forecast.shortage)


def format_contents(manifest: Manifest, contents: Sequence[LanguageContents]) -> str:
    """Format the corpus as a few lines and a table of its languages, most tokens first."""
    total = corpus_totals(manifest, contents)
    sizes = [shard.tokens for shard in manifest.shards if shard.split == "train"]
    lengths = sorted((entry.tokens_per_document, entry.code) for entry in contents)
    (shortest, shortest_in), (longest, longest_in) = lengths[0], lengths[-1]
    in_107 = sum(language(entry.code).in_107 for entry in contents)
    num_tokens, num_heldout = total["train_tokens"], total["heldout_tokens"]
    single = [entry.code for entry in contents if entry.shards == 1]
    described = {
        "languages": f"{len(contents)}, {in_107} of them among UniBERT's 107",
        "documents": _train_and_heldout(total["train_documents"], total["heldout_documents"]),
        "tokens": _train_and_heldout(num_tokens, num_heldout),
        "text": f"{_bytes(total['text_bytes'])}, {total['text_bytes'] / max(1, num_tokens + num_heldout):.2f} bytes "
        "per token",
        "shards": f"{total['train_shards']:,}, and {total['heldout_shards']:,} of held-out documents; "
        f"{_bytes(total['size_bytes'])} in total",
        "train shards": f"{min(sizes):,} to {max(sizes):,} tokens, median {median(sizes):,.0f}",
        "vocabulary": f"{manifest.vocab_size:,} pieces, stored as {manifest.token_dtype}",
        "mean length": f"{num_tokens / max(1, total['train_documents']):,.0f} tokens per document; by language "
        f"{shortest:,.0f} ({shortest_in}) to {longest:,.0f} ({longest_in}), median "
        f"{median(length for length, _ in lengths):,.0f}",
        "largest": ", ".join(f"{entry.code} {percent(entry.tokens / num_tokens)}" for entry in contents[:8]),
        "smallest": ", ".join(f"{entry.code} {short(entry.tokens)}" for entry in contents[:-9:-1]) + " tokens",
    }
    if (teaching := manifest.teaching) is not None:
        described["teacher"] = (
            f"vectors of {teaching.width:,} dimensions from {teaching.teacher}, for sequences of "
            f"{teaching.sequence_length:,} tokens"
        )
    if single:
        described["single shard"] = f"{_languages(len(single))} read completely with every draw: {_listed(single)}"
    header = ["language", "documents", "tokens", "share", "tokens/doc", "bytes/token", "shards", "min/median/max"]
    rows = [
        [
            language(entry.code).label,
            short(entry.documents),
            short(entry.tokens),
            percent(entry.tokens / num_tokens),
            f"{entry.tokens_per_document:,.0f}",
            f"{entry.text_bytes / max(1, entry.tokens):.2f}",
            f"{entry.shards:,}",
            "/".join(short(size) for size in (entry.smallest_shard, entry.median_shard, entry.largest_shard)),
            short(entry.heldout_documents),
        ]
        for entry in contents
    ]
    return "\n".join([*described_lines(described), "", *ruled_table([*header, "held out"], rows)])


def format_forecast(forecast: Forecast, config: RunConfig) -> str:
    """Format the run as a few lines with warnings, its phases, and a table of its languages."""
    fewest, middle, most = forecast.languages_at_a_time
    stream, num_languages = config.stream, len(forecast.languages)
    described = {
        "tokens": f"{forecast.run_tokens:,} in {len(config.training.timeline()):,} steps",
        "languages": f"{num_languages}",
        "shards read": f"{forecast.num_draws:,}, counting repeats",
        "batches": f"drawn from {stream.lanes} lanes of {stream.window_shards} shards, which hold {fewest} to {most} "
        f"languages at a time, median {middle:g}",
        **_remarks(forecast, config),
    }
    return "\n".join([*described_lines(described), "", *_phase_table(forecast), "", *_language_table(forecast)])


def corpus_totals(manifest: Manifest, contents: Sequence[LanguageContents]) -> Record:
    """Return sums over the languages; bytes include both splits."""
    num_train = sum(entry.shards for entry in contents)
    return {
        "languages": len(contents),
        "train_documents": sum(entry.documents for entry in contents),
        "train_tokens": sum(entry.tokens for entry in contents),
        "train_shards": num_train,
        "heldout_documents": sum(entry.heldout_documents for entry in contents),
        "heldout_tokens": sum(entry.heldout_tokens for entry in contents),
        "heldout_shards": len(manifest.shards) - num_train,
        "text_bytes": sum(shard.text_bytes for shard in manifest.shards),
        "size_bytes": sum(shard.size_bytes for shard in manifest.shards),
        "vocab_size": manifest.vocab_size,
        "token_dtype": manifest.token_dtype,
        "fingerprint": manifest.fingerprint,
    }


def language_rows(contents: Sequence[LanguageContents], forecast: Forecast | None) -> list[Record]:
    """Return one flat record per language, most tokens first. A run adds columns, empty for languages that it omits."""
    num_tokens = sum(entry.tokens for entry in contents)
    rows = []
    for entry in contents:
        known = LANGUAGES.get(entry.code)
        rows.append(
            {"language": entry.code, "name": known.name if known else "", "family": known.family if known else ""}
            | {key: value for key, value in vars(entry).items() if key != "code"}
            | {"share": entry.tokens / num_tokens, "tokens_per_document": entry.tokens_per_document}
            | (_run_columns(forecast, entry.code) if forecast is not None else {})
        )
    return rows


def write_inspection(
    corpus: str,
    manifest: Manifest,
    contents: Sequence[LanguageContents],
    config: RunConfig | None,
    forecast: Forecast | None,
    folder: Path,
) -> None:
    """Write inspect.json, inspect.csv, inspect.png and inspect.svg, each atomically.

    Raises:
        UserError: if the folder cannot be written.
    """
    from unibert.reports.inspection_plots import draw

    rows = language_rows(contents, forecast)
    content: Record = {"corpus": str(corpus), "manifest": corpus_totals(manifest, contents), "languages": rows}
    if forecast is not None and config is not None:
        content["run"] = _run_record(forecast, config)
    table = io.StringIO()
    writer = csv.DictWriter(table, max((row.keys() for row in rows), key=len), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("inspect.csv", table.getvalue()), ("inspect.json", json.dumps(content, indent=1) + "\n")):
            write_atomically(folder / name, text)
        draw(rows, forecast, folder / "inspect")
    except OSError as error:
        raise UserError(
            f"{folder}: the inspection cannot be written ({error.strerror}); choose another folder"
        ) from error


def _run_columns(forecast: Forecast, code: str) -> Record:
    if code not in forecast.languages:
        return {}
    index = forecast.languages.index(code)
    columns = {
        "natural_share": float(forecast.natural_shares[index]),
        "run_tokens": int(forecast.tokens[index]),
        "run_share": float(forecast.tokens[index] / forecast.run_tokens),
        "epochs": float(forecast.epochs[index]),
        "first_read": forecast.first_read.get(code),
        "reached_max_epochs": forecast.reached_cap.get(code),
    }
    for phase in forecast.phases:
        columns[f"share_{phase.start:.4g}_{phase.end:.4g}"] = float(phase.shares[index])
        columns[f"epochs_{phase.end:.4g}"] = float(phase.epochs[index])
        columns[f"documents_per_batch_{phase.start:.4g}_{phase.end:.4g}"] = float(phase.documents_per_batch[index])
    return columns


def _run_record(forecast: Forecast, config: RunConfig) -> Record:
    fewest, middle, most = forecast.languages_at_a_time
    return {
        "run_dir": config.run_dir,
        "seed": config.seed,
        "tokens": forecast.run_tokens,
        "steps": len(config.training.timeline()),
        "shards_read": forecast.num_draws,
        "languages": forecast.languages,
        "lanes": config.stream.lanes,
        "window_shards": config.stream.window_shards,
        "languages_at_a_time": {"fewest": fewest, "median": middle, "most": most},
        "max_epochs": config.stream.max_epochs,
        "reached_max_epochs": forecast.reached_cap,
        "epochs_above_4": forecast.often_repeated,
        "never_read": _never_read(forecast),
        "shortage": forecast.shortage,
        "phases": [
            {
                "start": phase.start,
                "end": phase.end,
                "sampling_exponent": phase.exponents,
                "num_sequences": phase.num_sequences,
                "sequence_length": phase.sequence_length,
                "tokens": int(phase.tokens.sum()),
                "languages": int((phase.tokens > 0).sum()),
                "documents_per_batch": float(phase.documents_per_batch.sum()),
            }
            for phase in forecast.phases
        ],
    }


def _remarks(forecast: Forecast, config: RunConfig) -> dict[str, str]:
    """Return what a user may want to change, by its name."""
    remarks = {}
    if warning := mixing_warning(config.stream, len(forecast.languages)):
        remarks["mixing"] = warning
    if repeated := forecast.often_repeated:
        listed = _listed([f"{code} {three_digits(epochs)}" for code, epochs in repeated.items()])
        remarks["repeats"] = (
            f"{_languages(len(repeated))} read more than {WORTHWHILE_EPOCHS:g} times, marked *: {listed}. Up to about "
            "4 times is nearly as good as new text, each further time adds less (Muennighoff et al. 2023, arXiv "
            "2305.16264). More text, fewer training.tokens or a higher stream.sampling_exponent reduce repeats; "
            "stream.max_epochs limits them"
        )
    if reached := forecast.reached_cap:
        listed = _listed([f"{code} at {_progress(at)}" for code, at in reached.items()])
        remarks["max_epochs"] = (
            f"{_languages(len(reached))} read {config.stream.max_epochs:g} times before the run ends and then left "
            f"out: {listed}"
        )
    starts = config.stream.language_starts
    if late := sorted((at, code) for code, at in forecast.first_read.items() if starts.get(code)):
        remarks["joining later"] = _listed([f"{code} first read at {_progress(at)}" for at, code in late])
    if never := _never_read(forecast):
        remarks["never read"] = _listed(never)
    return remarks


def _phase_table(forecast: Forecast) -> list[str]:
    header = [
        "phase",
        "progress",
        "exponent",
        "batch",
        "tokens",
        "languages",
        "documents/batch",
        "rarest language",
    ]
    rows = []
    for number, phase in enumerate(forecast.phases, 1):
        documents = phase.documents_per_batch
        rarest = int(np.where(documents > 0, documents, np.inf).argmin())
        exponents = dict.fromkeys(f"{exponent:.3g}" for exponent in phase.exponents)
        rows.append(
            [
                str(number),
                f"{_progress(phase.start)} to {_progress(phase.end)}",
                " to ".join(exponents),
                f"{phase.num_sequences:,} × {phase.sequence_length:,}",
                short(phase.tokens.sum()),
                f"{(phase.tokens > 0).sum()}",
                f"{documents.sum():,.0f}",
                f"{documents[rarest]:.2g} {forecast.languages[rarest]}",
            ]
        )
    return ruled_table(header, rows)


def _language_table(forecast: Forecast) -> list[str]:
    phases = forecast.phases
    shown = phases if len(phases) > 1 else []
    numbers = [str(number) for number in range(1, len(shown) + 1)]
    header = ["language", "tokens", "natural", "planned", *numbers, *(numbers or ["epochs"]), ""]
    groups = [("", 2), ("share", 2), ("share in phase", len(numbers)), ("epochs by the end of phase", len(numbers))]
    rows = []
    for index in np.argsort(-forecast.natural_shares, kind="stable"):
        code = forecast.languages[index]
        rows.append(
            [
                code if len(phases) > MAX_PHASES_WITH_NAMES else language(code).label,
                short(forecast.tokens[index]),
                percent(forecast.natural_shares[index]),
                percent(forecast.tokens[index] / forecast.run_tokens),
                *(percent(phase.shares[index]) for phase in shown),
                *(three_digits(phase.epochs[index]) for phase in phases),
                "*" if forecast.epochs[index] > WORTHWHILE_EPOCHS else "",
            ]
        )
    return ruled_table(header, rows, groups if shown else ())


def _never_read(forecast: Forecast) -> list[str]:
    return [code for code in forecast.languages if code not in forecast.first_read]


def _languages(number: int) -> str:
    return f"{number} language is" if number == 1 else f"{number} languages are"


def _listed(items: Sequence[str]) -> str:
    return shortened(items, MAX_LISTED_LANGUAGES)


def _progress(progress: float) -> str:
    return f"{100 * progress:.3g}%"


def _bytes(number: int) -> str:
    return with_unit(number, ("kB", "MB", "GB", "TB"), " ")


def _train_and_heldout(train: int, heldout: int) -> str:
    return f"{train:,}, and {heldout:,} held out ({percent(heldout / max(1, heldout + train))} of all)"
