"""Reading of shards: damaged blocks are skipped, missing shards are refused."""

from __future__ import annotations

from collections.abc import Iterator

from webdataset.tariterators import group_by_keys, tar_file_expander

from unibert.corpus.manifest import Shard
from unibert.corpus.shards import Block, decode_block
from unibert.errors import UserError
from unibert.stream.source import ShardSource


def read_blocks(
    source: ShardSource,
    shard: Shard,
    vocab_size: int,
    piece_length: int | None = None,
    *,
    with_lines: bool = False,
) -> Iterator[Block]:
    """Yield the shard's intact blocks, in order.

    Blocks that are damaged, cut off, or hold ids outside the vocabulary are skipped: ``shard.blocks`` minus the number
    of yielded blocks is the damage. With ``piece_length``, blocks have their teacher's vectors of pieces of so many
    tokens, and are damaged without; ``with_lines``, they have the lines of their documents if the shard does.

    Raises:
        UserError: if the shard is missing or the file system fails; a failing disk must not change the batches.
    """
    location = source.location(shard)
    try:
        with source.open(shard) as file:
            members = tar_file_expander([{"url": location, "stream": file}], handler=_skip_damage)
            for sample in group_by_keys(members, handler=_skip_damage):
                try:
                    block = decode_block(sample, piece_length, with_lines=with_lines)
                except ValueError:
                    continue
                if int(block.tokens.max(initial=0)) < vocab_size:
                    yield block
    except OSError as error:
        raise UserError(
            f"{location}: shard cannot be read ({error.strerror or error}); copy it there or build the corpus again"
        ) from error


def _skip_damage(error: Exception) -> bool:
    if isinstance(error, OSError):
        raise error
    return True
