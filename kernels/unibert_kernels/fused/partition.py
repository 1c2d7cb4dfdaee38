"""How rows and vocabulary are cut, so that buffers stay bounded and a GPU stays busy."""

from __future__ import annotations

from typing import Any

from unibert_kernels.fused.configs import TileConfig

RECOMPUTE_WORKSPACE = 2**28
"""Bytes of the buffer that paths without stored logits fill a range of columns at a time: at 40,000 rows, columns
enough for the products to run at full speed."""
RECOMPUTE_ROWS = 2**16
"""Rows that those paths take at a time, so that the buffer never gets narrower than 2048 columns."""
MAX_SPLITS = 32
"""Partial sums are read again row by row."""


def row_slices(num_rows: int, most: int) -> list[slice]:
    """0 … num_rows cut into the fewest slices of at most ``most``, all but the last equal."""
    number = -(-num_rows // max(1, most))
    size = -(-num_rows // max(1, number))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, max(1, size))]


def rounded_rows(num_rows: int) -> int:
    """``num_rows`` rounded up to one of eight steps between powers of two.

    The number of masked rows changes from batch to batch. Buffers for just as many would make the allocator keep a
    block for every record so far; rounded, they soon find one that serves.
    """
    step = 1 << max(0, num_rows.bit_length() - 4)
    return -(-num_rows // step) * step


def column_slices(num_rows: int, element_size: int, vocab_size: int, block: int) -> list[slice]:
    """0 … vocab_size cut so that ``num_rows`` of a slice's columns fit `RECOMPUTE_WORKSPACE` bytes.

    All but the last are as wide as the first, a multiple of ``block``; at least one block.
    """
    width = max(1, RECOMPUTE_WORKSPACE // max(1, num_rows * element_size) // block) * block
    return [slice(start, min(start + width, vocab_size)) for start in range(0, vocab_size, width)]


def padded(columns: slice, block: int) -> int:
    """The width of a buffer that holds whole tiles of ``columns``."""
    return -(-(columns.stop - columns.start) // block) * block


def column_grid(
    num_rows: int, num_columns: int, config: TileConfig, multiprocessors: int
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid (row blocks, splits) of a kernel whose programs go over one split of the columns each, and how many tiles
    of ``config`` there are, in all and a split."""
    row_blocks, tiles = -(-num_rows // config.rows), -(-num_columns // config.columns)
    splits = number_of_splits(row_blocks, tiles, multiprocessors)
    return (row_blocks, splits), {"tiles": tiles, "tiles_per_split": -(-tiles // splits)}


def number_of_splits(row_blocks: int, tiles: int, multiprocessors: int) -> int:
    """Into how many parts the ``tiles`` of the vocabulary are cut, so that the programs of a wave end together."""

    def busy(splits: int) -> float:
        programs = row_blocks * splits
        waves = -(-programs // multiprocessors)
        return programs / (waves * multiprocessors) * tiles / (splits * -(-tiles // splits))

    if not row_blocks or not tiles:
        return 1
    # Rounded, so that the fewest splits win among those that are as good.
    return max(range(1, min(MAX_SPLITS, tiles) + 1), key=lambda splits: (round(busy(splits), 2), -splits))
