"""The mini-Wikipedia's translated sentences.

An article has the same page id in every language and begins with nine sentences, each on a line of its own, so line
*i* of page *p* is the same sentence everywhere. What follows them (tables, lists of links) differs or is no prose.
"""

from __future__ import annotations

from pathlib import Path

from unibert.corpus.readers import DocumentReader, find_inputs

WIKI = Path(__file__).parent / "wiki"
SENTENCES_PER_ARTICLE = 9


def aligned_sentences() -> dict[str, list[str]]:
    """Code → sentences in order of page id; the same index in another language is its translation."""
    aligned = {}
    for file in find_inputs([str(WIKI)]):
        articles = sorted(DocumentReader(file), key=lambda document: int(document.id))
        aligned[file.language] = [
            line for article in articles for line in article.text.split("\n")[:SENTENCES_PER_ARTICLE]
        ]
    return aligned


def write_aligned(folder: Path) -> None:
    """One file ``<code>.txt`` per language, same line = translation, as ``unibert evaluate --retrieval`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for language, sentences in aligned_sentences().items():
        (folder / f"{language}.txt").write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
