"""The mini-Wikipedia's translated sentences.

An article has the same page id in every language and begins with nine sentences, each on a line of its own, so line
*i* of page *p* has the same meaning in every language. What follows (tables, lists of links) differs or is not prose.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unibert.corpus.inputs import find_inputs
from unibert.corpus.readers import DocumentReader
from unibert.corpus.selection import split_heldout
from unibert.corpus.spool import INDEX_DTYPE, stable_hash

WIKI = Path(__file__).parent / "wiki"
SENTENCES_PER_ARTICLE = 9
HELDOUT_SHARE = 0.1
"""Share of articles that the demo's corpus holds out; it amounts to four, the same in every language."""


def aligned_sentences(*, heldout: bool = False) -> dict[str, list[str]]:
    """Return sentences by language code, in order of page id; equal indices are translations of each other.

    ``heldout`` selects the articles that the demo's corpus holds out.
    """
    aligned = {}
    for file in find_inputs([str(WIKI)]):
        articles = sorted(DocumentReader(file), key=lambda document: int(document.id))
        if heldout:
            index = np.zeros(len(articles), INDEX_DTYPE)
            index["id_hash"] = [stable_hash(article.id) for article in articles]
            hashes = split_heldout(index, HELDOUT_SHARE)[1]["id_hash"]
            articles = [article for article in articles if stable_hash(article.id) in hashes]
        aligned[file.language] = [
            line for article in articles for line in article.text.split("\n")[:SENTENCES_PER_ARTICLE]
        ]
    return aligned


def write_aligned(folder: Path, *, heldout: bool = False) -> None:
    """Write one file ``<code>.txt`` per language with aligned lines, as ``unibert evaluate --retrieval`` reads them.

    ``heldout`` selects the articles that the demo's corpus holds out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for language, sentences in aligned_sentences(heldout=heldout).items():
        (folder / f"{language}.txt").write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
