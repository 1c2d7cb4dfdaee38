"""Documents that share text with evaluation sets: n-grams of words, of characters in scripts without spaces.

A document is contaminated if it has 13 successive words of an evaluation set (Brown et al. 2020). A string of 8 to 12
words is looked for as a whole; shorter ones, which occur by chance, are not.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unibert.corpus.evaluation_sets import evaluation_files, strings_of
from unibert.corpus.inputs import LISTED_NAMES
from unibert.corpus.normalization import normalize
from unibert.corpus.shingles import Hashes, character_hashes, ngram_hashes, word_hashes, words_of
from unibert.text import shortened

_UNITS: dict[str, Callable[[list[str]], Hashes]] = {"words": word_hashes, "characters": character_hashes}
_MIN_UNITS = {"words": 8, "characters": 16}  # of a string that is looked for


@dataclass(frozen=True)
class EvaluationNgrams:
    """The n-grams of evaluation sets, which are on disk."""

    folder: Path
    files: tuple[str, ...]
    """The evaluation sets."""
    sizes: tuple[tuple[str, int], ...]
    """What the n-grams are of, "words" or "characters", and their sizes."""
    digest: str
    """SHA-256 of all n-grams."""

    def sources(self, text: str) -> list[str]:
        """Return the evaluation sets with which a normalised text shares an n-gram."""
        words = words_of(text)
        units = {name: hashes_of(words) for name, hashes_of in _UNITS.items()}
        found: set[int] = set()
        for name, size in self.sizes:
            hashes, files = _loaded(self.folder, name, size, self.digest)
            ngrams = ngram_hashes(units[name], size)
            if not len(ngrams):
                continue
            places = np.searchsorted(hashes, ngrams)
            for ngram in ngrams[hashes.take(places, mode="clip") == ngrams]:
                first, end = (np.searchsorted(hashes, ngram, side) for side in ("left", "right"))
                found.update(files[first:end].tolist())
        return [self.files[number] for number in sorted(found)]


class EvaluationText:
    """Evaluation sets, read to be left out of a corpus.

    Raises UserError if they cannot be read.
    """

    def __init__(self, paths: Iterable[str], words: int, characters: int) -> None:
        """Read files and folders; ``words`` and ``characters`` are the sizes of the n-grams."""
        sizes = {"words": words, "characters": characters}
        shortest = min(2 * _MIN_UNITS["words"] - 1, _MIN_UNITS["characters"], 2 * words - 1, characters)
        self.files = evaluation_files(paths)
        self.ngrams: dict[tuple[str, int], list[tuple[Hashes, int]]] = defaultdict(list)
        self.without_ngrams: list[str] = []
        """Files that have no string long enough."""
        for number, path in enumerate(self.files):
            found: dict[tuple[str, int], list[Hashes]] = defaultdict(list)
            for string in strings_of(path):
                if len(string) < shortest:  # tokens and tags, which are most strings of some files
                    continue
                string_words = words_of(normalize(string))
                for name, hashes_of in _UNITS.items():
                    units = hashes_of(string_words)
                    size = min(sizes[name], len(units))
                    if size >= min(sizes[name], _MIN_UNITS[name]):
                        found[name, size].append(ngram_hashes(units, size))
            for key, hashes in found.items():
                self.ngrams[key].append((np.unique(np.concatenate(hashes)), number))
            if not found:
                self.without_ngrams.append(str(path))

    def notes(self) -> list[str]:
        """Return a sentence on the files that have nothing to look for, if there are any."""
        if not self.without_ngrams:
            return []
        return [
            f"decontaminate: {len(self.without_ngrams):,} of {len(self.files):,} files have no string long enough "
            f"to be looked for ({shortened(self.without_ngrams, LISTED_NAMES)})"
        ]

    def save(self, folder: Path) -> EvaluationNgrams:
        """Write the n-grams into a folder, from which every process can read them."""
        folder.mkdir(exist_ok=True)
        digest = hashlib.sha256()
        for (name, size), parts in sorted(self.ngrams.items()):
            hashes = np.concatenate([part for part, _ in parts])
            files = np.concatenate([np.full(len(part), number, np.uint32) for part, number in parts])
            order = np.argsort(hashes, kind="stable")
            np.save(_path(folder, name, size, "hashes"), hashes[order], allow_pickle=False)
            np.save(_path(folder, name, size, "files"), files[order], allow_pickle=False)
            digest.update(hashes[order].tobytes() + files[order].tobytes())
        return EvaluationNgrams(folder, tuple(map(str, self.files)), tuple(sorted(self.ngrams)), digest.hexdigest())


@cache
def _loaded(folder: Path, name: str, size: int, _digest: str) -> tuple[Hashes, npt.NDArray[np.uint32]]:
    """Return sorted n-grams, and the number of the file that each is from."""
    paths = (_path(folder, name, size, kind) for kind in ("hashes", "files"))
    hashes, files = (np.asarray(np.load(path, mmap_mode="r")) for path in paths)  # memmaps themselves are slower
    return hashes, files


def _path(folder: Path, name: str, size: int, kind: str) -> Path:
    return folder / f"{name}-{size}-{kind}.npy"
