"""Build a corpus: read, clean, filter, deduplicate, split, train the tokenizer, tokenise, write shards.

A build that was interrupted at any moment goes on with the same command: units that are done are not done again, and
the corpus is the same to the byte. See `unibert.corpus.journal`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from unibert.corpus import selection
from unibert.corpus.build_tokenizer import given_tokenizer, write_tokenizer
from unibert.corpus.cleaning import clean_files
from unibert.corpus.config import CorpusConfig
from unibert.corpus.dataset_card import save_card
from unibert.corpus.decontamination import EvaluationText
from unibert.corpus.document_filter import load_document_filter
from unibert.corpus.exclusions import ExclusionMatches, Exclusions, read_exclusions
from unibert.corpus.executors import Workers, write_corpus
from unibert.corpus.identification import load_identifier
from unibert.corpus.inputs import LISTED_NAMES, InputFile, find_inputs, unread_files
from unibert.corpus.journal import Journal
from unibert.corpus.manifest import Manifest
from unibert.corpus.near_duplicates import without_near_duplicates
from unibert.corpus.output_folder import open_output
from unibert.corpus.report import REPORT_MARKDOWN, LanguageReport, save_report
from unibert.corpus.selection import Selection
from unibert.corpus.spool import Index, difference, read_index
from unibert.corpus.stubs import without_stubs
from unibert.corpus.tokenising import write_shards
from unibert.errors import UserError
from unibert.files import DISK_FULL
from unibert.languages import language, language_code, nearest_code
from unibert.text import shortened


def build_corpus(config: CorpusConfig) -> Manifest:
    """Build the corpus folder that ``config`` describes, or go on with it; ``manifest.json`` is written last.

    Under mpirun or srun every rank calls this; rank 0 coordinates and the others work.

    Raises:
        UserError: if inputs cannot be read, the output folder is in use, no document of a language is left, the text
            does not allow the vocabulary size, units failed, or the disk is full.
    """
    try:
        return write_corpus(lambda workers: _build(config, workers), config.output, config.workers)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"output: the disk of {config.output} is full or takes no larger file; the build needs about twice the "
            "size of the text; make room, and the same command goes on"
        ) from error


def _build(config: CorpusConfig, workers: Workers) -> Manifest:
    output = Path(config.output)
    files = _chosen_files(config)
    exclusions = read_exclusions(config.exclude)
    if config.wrong_language.min_probability is not None or config.wrong_language.by_language:
        load_identifier()
    if config.document_filter is not None:
        load_document_filter(config.document_filter)  # a mistake in its name is said before the work
    evaluation = None
    if config.decontaminate:
        evaluation = EvaluationText(
            config.decontaminate, config.decontamination_words, config.decontamination_characters
        )
    unread = unread_files(config.inputs)
    for sentence in unread:
        print(sentence, file=sys.stderr)
    given = given_tokenizer(config)
    with open_output(output, config.overwrite) as folder:
        journal = Journal(folder, workers)
        spools, reports, matches = _clean(config, files, exclusions, evaluation, journal)
        documents = {code: _included(paths, matches[code], reports[code]) for code, paths in spools.items()}
        if config.stubs.max_template_share is not None:
            documents = without_stubs(config.stubs, spools, documents, reports, journal)
        if config.near_duplicates.threshold is not None:
            documents = without_near_duplicates(config.near_duplicates, spools, documents, reports, journal)
        selections = {
            code: _select(config, code, spools[code], kept, reports[code]) for code, kept in documents.items()
        }
        _raise_if_nothing_is_left(config, selections, reports)
        selections = {code: kept for code, kept in selections.items() if len(kept.train)}
        tokenizer_sha256 = write_tokenizer(config, given, selections, reports, journal)
        manifest = write_shards(config, selections, tokenizer_sha256, reports, journal)
        notes = _notes(config, selections, exclusions, matches)
        if evaluation is not None:
            notes += evaluation.notes()
        save_report(output, reports, manifest, [*unread, *notes])
        save_card(output, config, files, reports, manifest)
        manifest.save(output)
    _print_summary(output, reports, manifest, notes)
    return manifest


def _clean(
    config: CorpusConfig,
    files: list[InputFile],
    exclusions: Mapping[str, Exclusions],
    evaluation: EvaluationText | None,
    journal: Journal,
) -> tuple[dict[str, list[Path]], dict[str, LanguageReport], dict[str, ExclusionMatches]]:
    ngrams = None if evaluation is None else evaluation.save(journal.folder / "evaluation")
    spools: dict[str, list[Path]] = defaultdict(list)
    reports: dict[str, LanguageReport] = defaultdict(LanguageReport)
    matches: dict[str, ExclusionMatches] = defaultdict(ExclusionMatches)
    for file in files:
        reports[file.language].files += 1
    for part in clean_files(config, files, exclusions, ngrams, journal):
        spools[part.language].append(part.spool)
        reports[part.language].add(part.result.counts)
        reports[part.language].contaminated += part.result.contaminated
        reports[part.language].prose.add(part.result.prose)
        reports[part.language].letters.update(part.result.letters)
        reports[part.language].samples.add(part.result.samples)
        matches[part.language].update(part.result.matches)
    return dict(sorted(spools.items())), reports, matches


def _chosen_files(config: CorpusConfig) -> list[InputFile]:
    files = find_inputs(config.inputs)
    if config.languages is None:
        return files
    found = sorted({file.language for file in files})
    chosen = {language_code(code) for code in config.languages}
    missing = sorted(chosen.difference(found))
    if missing and (not config.skip_empty_languages or not chosen.intersection(found)):
        raise UserError(
            f"languages: the inputs hold no document in {', '.join(missing)}; they hold {', '.join(found)}; did you "
            f"mean {nearest_code(missing[0], found)!r}?"
        )
    return [file for file in files if file.language in chosen]


def _notes(
    config: CorpusConfig,
    selections: Mapping[str, Selection],
    exclusions: Mapping[str, Exclusions],
    matches: Mapping[str, ExclusionMatches],
) -> list[str]:
    """Return sentences on what a user may not expect."""
    notes = []
    if unknown := [code for code in selections if not language(code).scripts]:
        notes.append(
            f"the scripts of {', '.join(unknown)} are not known; their documents were not checked for foreign scripts"
        )
    if alone := [
        code
        for code, kept in selections.items()
        if config.heldout_share and len(kept.train) > 1 and not len(kept.heldout)
    ]:
        notes.append(f"no document is held out of {', '.join(alone)}; all documents there have the same id")
    for code, excluded in exclusions.items():
        if code not in selections:
            notes.append(f"exclude: {len(excluded.entries):,} titles or ids are of {code}, which is not in this corpus")
        elif unmatched := excluded.unmatched(matches[code].entries):
            notes.append(
                f"exclude: {len(unmatched):,} of {len(excluded.entries):,} titles or ids of {code} matched no document "
                f"({shortened(unmatched, LISTED_NAMES)})"
            )
    return notes


def _print_summary(
    output: Path, reports: Mapping[str, LanguageReport], manifest: Manifest, notes: Iterable[str]
) -> None:
    for note in notes:
        print(note, file=sys.stderr)
    if cut_off := {code: report.cut_off_files for code, report in reports.items() if report.cut_off_files}:
        number = sum(cut_off.values())
        print(
            f"{number} input file{'s' * (number > 1)} ended too early ({', '.join(cut_off)}); what was read is kept, "
            f"see {output / REPORT_MARKDOWN}",
            file=sys.stderr,
        )
    num_tokens = sum(shard.tokens for shard in manifest.shards)
    print(
        f"{output}: {len(manifest.languages)} languages, {num_tokens:,} tokens in {len(manifest.shards):,} shards",
        file=sys.stderr,
    )


def _included(spools: list[Path], matches: ExclusionMatches, report: LanguageReport) -> Index:
    """Return the documents of a language without those excluded and without copies."""
    index = read_index(spools)
    included = selection.without_titles(index, matches.targets)
    kept = selection.without_duplicates(included)
    report.count_dropped("excluded", difference(index, included), spools)
    report.count_dropped("duplicate", difference(included, kept), spools)
    return kept


def _select(config: CorpusConfig, code: str, spools: list[Path], kept: Index, report: LanguageReport) -> Selection:
    train, heldout = selection.split_heldout(selection.shuffled(kept, code, config.seed), config.heldout_share)
    report.count_kept(kept, spools)
    return Selection(spools, train, heldout)


def _raise_if_nothing_is_left(
    config: CorpusConfig, selections: dict[str, Selection], reports: dict[str, LanguageReport]
) -> None:
    empty = {code: reports[code] for code, kept in selections.items() if not len(kept.train)}
    if empty and (not config.skip_empty_languages or len(empty) == len(selections)):
        causes = "; ".join(f"{code}: {report.read} read, dropped {report.reasons}" for code, report in empty.items())
        raise UserError(
            f"nothing is left of some languages ({causes}); "
            "loosen filters, leave those inputs out, or give --skip_empty_languages true"
        )
