"""What the card of a model says about a corpus."""

from __future__ import annotations

from collections.abc import Iterable

from unibert.corpus.manifest import Manifest
from unibert.model_card import LanguageCounts


def language_counts(manifest: Manifest, languages: Iterable[str] | None = None) -> list[LanguageCounts]:
    """Return documents and tokens of the train split of each language; by default of all that the corpus has."""
    return [
        LanguageCounts(
            code=code,
            documents=sum(shard.documents for shard in manifest.shards_of(code)),
            tokens=manifest.tokens(code),
        )
        for code in (manifest.languages if languages is None else sorted(languages))
    ]
