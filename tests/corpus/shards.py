"""Writing of several shards without a corpus build."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from unibert.corpus.manifest import Shard, Split
from unibert.corpus.shards import ShardWriter


def write_shards(
    folder: Path,
    language: str,
    split: Split,
    documents: Iterable[tuple[str, np.ndarray]],
    *,
    vocab_size: int,
    tokens_per_shard: int,
    tokens_per_block: int = 1 << 16,
) -> list[Shard]:
    """Write documents (id, tokens) in order; a shard ends with the document that brings it to ``tokens_per_shard``."""
    remaining = iter(documents)
    shards: list[Shard] = []
    while True:
        num_tokens = 0
        writer = ShardWriter(
            folder, language, split, len(shards), vocab_size=vocab_size, tokens_per_block=tokens_per_block
        )
        with writer:
            for document_id, tokens in remaining:
                writer.write(document_id, tokens, text_bytes=len(tokens))
                num_tokens += len(tokens)
                if num_tokens >= tokens_per_shard:
                    break
        if writer.shard is None:
            return shards
        shards.append(writer.shard)
