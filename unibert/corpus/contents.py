"""The contents of a corpus, counted from its manifest alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from unibert.corpus.manifest import Manifest, Shard


@dataclass(frozen=True, kw_only=True)
class LanguageContents:
    """One language of a corpus: its train split, unless a field says otherwise."""

    code: str
    documents: int
    tokens: int
    """Without special tokens, as everywhere in a manifest."""
    text_bytes: int
    """UTF-8 bytes of the documents."""
    shards: int
    smallest_shard: int
    """Tokens of the smallest shard; the next two are in tokens too."""
    median_shard: float
    largest_shard: int
    heldout_documents: int
    heldout_tokens: int

    @property
    def tokens_per_document(self) -> float:
        """Mean tokens per document; a manifest does not list single documents."""
        return self.tokens / self.documents if self.documents else 0.0


def language_contents(manifest: Manifest) -> list[LanguageContents]:
    """Return the contents of every language with train shards, most tokens first."""
    train: dict[str, list[Shard]] = defaultdict(list)
    heldout: dict[str, list[Shard]] = defaultdict(list)
    for shard in manifest.shards:
        (train if shard.split == "train" else heldout)[shard.language].append(shard)
    contents = []
    for code, shards in train.items():
        sizes = [shard.tokens for shard in shards]
        contents.append(
            LanguageContents(
                code=code,
                documents=sum(shard.documents for shard in shards),
                tokens=sum(sizes),
                text_bytes=sum(shard.text_bytes for shard in shards),
                shards=len(shards),
                smallest_shard=min(sizes),
                median_shard=median(sizes),
                largest_shard=max(sizes),
                heldout_documents=sum(shard.documents for shard in heldout[code]),
                heldout_tokens=sum(shard.tokens for shard in heldout[code]),
            )
        )
    return sorted(contents, key=lambda entry: (-entry.tokens, entry.code))
