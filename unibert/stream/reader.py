"""Reading shards: damaged blocks are skipped and counted, missing shards are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import webdataset as wds

from unibert.corpus.manifest import Shard
from unibert.corpus.shards import Block, decode_block
from unibert.errors import UserError


def read_blocks(corpus_dir: Path, shard: Shard, vocab_size: int) -> Iterator[Block]:
    """The shard's sound blocks, in order. Blocks that are damaged, cut off, or hold ids outside the vocabulary are
    left out, so that ``shard.blocks`` minus those yielded is the damage.

    Raises:
        UserError: if the file is missing or the file system fails; a failing disk must not change the batches.
    """
    # An absolute path has no scheme, so that no manifest can make WebDataset open a `pipe:` or a network address.
    path = corpus_dir.absolute() / shard.path
    samples = wds.DataPipeline(wds.SimpleShardList([str(path)]), wds.tarfile_to_samples(handler=_skip_damage))
    try:
        for sample in samples:
            try:
                block = decode_block(sample)
            except ValueError:
                continue
            if int(block.tokens.max(initial=0)) < vocab_size:
                yield block
    except OSError as error:
        raise UserError(
            f"{path}: shard cannot be read ({error.strerror or error}); copy it there or build again"
        ) from error


def _skip_damage(error: Exception) -> bool:
    if isinstance(error, OSError):
        raise error
    return True
