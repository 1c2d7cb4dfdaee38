"""Reading of sentences that are aligned across languages: Tatoeba pairs or N-way files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from unibert.errors import UserError

_PAIR_FILE = re.compile(r"tatoeba\.([a-z]+)-([a-z]+)\.([a-z]+)")
_LANGUAGE_FILE = re.compile(r"([a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)\.txt")

# ISO 639-3 codes, as in the file names of Tatoeba and FLORES, and the Wikipedia code of each.
_ISO639_3_TO_CODE = """
    afr:af amh:am ara:ar aze:az bak:ba bel:be ben:bn bos:bs bre:br bul:bg cat:ca ces:cs chv:cv cmn:zh cym:cy dan:da
    deu:de ell:el eng:en epo:eo est:et eus:eu fin:fi fra:fr fry:fy gle:ga glg:gl guj:gu hat:ht hau:ha heb:he hin:hi
    hrv:hr hun:hu hye:hy ibo:ig ind:id isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khm:km kin:rw kir:ky kor:ko
    kur:ku lat:la lit:lt ltz:lb lvs:lv mal:ml mar:mr mkd:mk mlg:mg mlt:mt mon:mn mya:my nld:nl nno:nn nob:no npi:ne
    oci:oc pan:pa pes:fa pol:pl por:pt pus:ps ron:ro rus:ru sin:si slk:sk slv:sl snd:sd som:so spa:es sqi:sq srp:sr
    sun:su swe:sv swh:sw tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tur:tr ukr:uk urd:ur uzb:uz vie:vi yor:yo zsm:ms
    zul:zu
"""
_CODES = dict(entry.split(":") for entry in _ISO639_3_TO_CODE.split())


@dataclass(frozen=True)
class AlignedSet:
    """Sentences of two or more languages; line i has the same meaning in every language.

    ``left_out`` counts the lines that are skipped: those with an empty sentence, and those with a sentence that occurs
    earlier in the same file, so that every sentence has exactly one right answer.
    """

    name: str
    sentences: dict[str, list[str]]
    left_out: int

    @property
    def languages(self) -> list[str]:
        return list(self.sentences)

    def __len__(self) -> int:
        return len(next(iter(self.sentences.values())))


def language_code(iso639_3: str) -> str:
    """Return the project's code of an ISO 639-3 language, or ``iso639_3`` itself if there is none."""
    return _CODES.get(iso639_3, iso639_3)


def read_aligned(
    folder: Path, max_sentences: int | None = None, languages: Sequence[str] | None = None
) -> list[AlignedSet]:
    """Read the aligned sets of a folder, each cut to its first ``max_sentences`` usable lines.

    With ``languages``, only sentences in these are read: pairs of two of them, or their N-way files.

    The folder holds either Tatoeba pairs, ``tatoeba.<a>-<b>.<a>`` beside ``tatoeba.<a>-<b>.<b>`` in ISO 639-3
    (one set per pair), or N-way files ``<code>.txt`` (one set with all languages). UTF-8, one sentence per line,
    lines end with ``\\n`` only.

    Raises:
        UserError: for a missing or empty folder, a mixture of both layouts, a missing side of a pair, unequal
            line counts, text that is not UTF-8, fewer than two usable lines, or a named language without sentences.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with aligned sentences")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pairs = sorted({match.group(1, 2) for path in files if (match := _PAIR_FILE.fullmatch(path.name))})
    files_of = {match[1]: path for path in files if (match := _LANGUAGE_FILE.fullmatch(path.name))}
    if pairs and files_of:
        raise UserError(f"{folder} mixes Tatoeba pairs with N-way files (<code>.txt); put them in separate folders")
    if languages is not None:
        pairs = [pair for pair in pairs if {language_code(side) for side in pair} <= set(languages)]
        files_of = {code: path for code, path in files_of.items() if code in languages}
        found = {language_code(side) for pair in pairs for side in pair} | set(files_of)
        if missing := [code for code in languages if code not in found]:
            raise UserError(
                f"languages: {folder} has no {missing[0]} beside another of {', '.join(languages)}; leave it out, or "
                "name the language that it is paired with too"
            )
    if pairs:
        return [_read_pair(folder, source, target, max_sentences) for source, target in pairs]
    if len(files_of) < 2:
        raise UserError(
            f"{folder} holds no aligned sentences: it needs tatoeba.<iso639-3>-eng.<iso639-3> with its .eng file, "
            f"or a file <code>.txt for each of at least two languages"
        )
    return [_read_set(folder.resolve().name, files_of, max_sentences)]


def line_groups(sets: Sequence[AlignedSet]) -> list[np.ndarray]:
    """Return the group of every line of every set, one (len(set),) int array per set.

    Lines with a sentence in common share their group. Splitting by groups keeps a sentence, its translations, and their
    translations in other sets on one side.
    """
    sentence_numbers: dict[str, int] = {}
    lines, sentences = [], []
    num_lines = 0
    for aligned in sets:
        for translations in zip(*aligned.sentences.values(), strict=True):
            for sentence in translations:
                lines.append(num_lines)
                sentences.append(sentence_numbers.setdefault(sentence, len(sentence_numbers)))
            num_lines += 1
    num_nodes = num_lines + len(sentence_numbers)
    edges = (np.ones(len(lines), dtype=bool), (lines, num_lines + np.array(sentences)))
    _, groups = connected_components(coo_matrix(edges, shape=(num_nodes, num_nodes)), directed=False)
    return np.split(groups[:num_lines], np.cumsum([len(aligned) for aligned in sets])[:-1])


def _read_pair(folder: Path, source: str, target: str, max_sentences: int | None) -> AlignedSet:
    paths = {language_code(side): folder / f"tatoeba.{source}-{target}.{side}" for side in (source, target)}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path} is missing, but the other side of its pair exists; add it or remove both")
    return _read_set("-".join(paths), paths, max_sentences)


def _read_set(name: str, paths: dict[str, Path], max_sentences: int | None) -> AlignedSet:
    columns = {language: _read_lines(path) for language, path in paths.items()}
    counts = {path.name: len(columns[language]) for language, path in paths.items()}
    if len(set(counts.values())) > 1:
        shortest, longest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise UserError(
            f"{next(iter(paths.values())).parent}: {shortest} has {counts[shortest]} lines and {longest} has "
            f"{counts[longest]}; aligned files need the same number, with line i a translation in each"
        )
    rows = list(zip(*columns.values(), strict=True))
    kept = _usable(rows)
    if len(kept) < 2:
        raise UserError(f"{next(iter(paths.values()))}: fewer than two lines are neither empty nor repeated")
    sentences = [list(column) for column in zip(*kept[:max_sentences], strict=True)]
    return AlignedSet(name, dict(zip(columns, sentences, strict=True)), len(rows) - len(kept))


def _usable(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    seen: set[tuple[int, str]] = set()
    kept = []
    for row in rows:
        keys = set(enumerate(row))
        if all(row) and not keys & seen:
            kept.append(row)
        seen |= keys
    return kept


def _read_lines(path: Path) -> list[str]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; convert the file to UTF-8") from None
    return [line.strip() for line in text.removesuffix("\n").split("\n")]
