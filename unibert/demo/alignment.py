"""The mini-Wikipedia's translated sentences.

An article has the same page id in every language and begins with nine sentences, each on a line of its own, so line
*i* of page *p* has the same meaning in every language. What follows (tables, lists of links) differs or is not prose.
"""

from __future__ import annotations

from pathlib import Path

from unibert.corpus.readers import DocumentReader, find_inputs

WIKI = Path(__file__).parent / "wiki"
SENTENCES_PER_ARTICLE = 9


def aligned_sentences() -> dict[str, list[str]]:
    """Return sentences by language code, in order of page id; equal indices are translations of each other."""
    aligned = {}
    for file in find_inputs([str(WIKI)]):
        articles = sorted(DocumentReader(file), key=lambda document: int(document.id))
        aligned[file.language] = [
            line for article in articles for line in article.text.split("\n")[:SENTENCES_PER_ARTICLE]
        ]
    return aligned


def write_aligned(folder: Path) -> None:
    """Write one file ``<code>.txt`` per language with aligned lines, as ``unibert evaluate --retrieval`` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for language, sentences in aligned_sentences().items():
        (folder / f"{language}.txt").write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
