"""How rows and vocabulary are cut, so that buffers stay bounded and a GPU stays busy."""

from __future__ import annotations

from typing import Any

from unibert_kernels.fused.configs import TileConfig

RECOMPUTE_WORKSPACE = 2**28
"""Bytes of the buffer for a range of columns, on paths without stored logits: at 40,000 rows enough columns for the
products to run at full speed."""
RECOMPUTE_ROWS = 2**16
"""Maximum rows of a chunk on those paths, so that the buffer is never narrower than 2048 columns."""
MAX_SPLITS = 32
"""Maximum splits of the vocabulary: each row's partial sums are read once more."""


def row_slices(num_rows: int, max_rows: int) -> list[slice]:
    """Cut 0 … num_rows into as few slices of at most ``max_rows`` as possible, all but the last equal."""
    number = -(-num_rows // max(1, max_rows))
    size = -(-num_rows // max(1, number))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, max(1, size))]


def rounded_rows(num_rows: int) -> int:
    """``num_rows`` rounded up to one of eight steps between powers of two.

    The number of masked rows changes from batch to batch. With buffers of exactly that size the allocator would keep a
    new block for every new maximum; rounded sizes soon find one that fits.
    """
    step = 1 << max(0, num_rows.bit_length() - 4)
    return -(-num_rows // step) * step


def column_slices(num_rows: int, element_size: int, vocab_size: int, block: int) -> list[slice]:
    """Cut 0 … vocab_size so that ``num_rows`` rows of a slice's columns fit `RECOMPUTE_WORKSPACE` bytes.

    All but the last have the width of the first, a multiple of ``block`` and at least one block.
    """
    width = max(1, RECOMPUTE_WORKSPACE // max(1, num_rows * element_size) // block) * block
    return [slice(start, min(start + width, vocab_size)) for start in range(0, vocab_size, width)]


def padded_width(columns: slice, block: int) -> int:
    """Width of a buffer that holds whole tiles of ``columns``."""
    return -(-(columns.stop - columns.start) // block) * block


def column_grid(
    num_rows: int, num_columns: int, config: TileConfig, multiprocessors: int
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Tiling for a kernel whose programs each go over one split of the columns.

    Returns:
        The grid (row blocks, splits), and the kernel's arguments "tiles" and "tiles_per_split".
    """
    row_blocks, tiles = -(-num_rows // config.rows), -(-num_columns // config.columns)
    splits = choose_num_splits(row_blocks, tiles, multiprocessors)
    return (row_blocks, splits), {"tiles": tiles, "tiles_per_split": -(-tiles // splits)}


def choose_num_splits(row_blocks: int, tiles: int, multiprocessors: int) -> int:
    """Number of splits of the vocabulary's ``tiles`` at which the programs of a wave end together."""

    def utilization(splits: int) -> float:
        programs = row_blocks * splits
        waves = -(-programs // multiprocessors)
        return programs / (waves * multiprocessors) * tiles / (splits * -(-tiles // splits))

    if not row_blocks or not tiles:
        return 1
    # Rounded, so that the fewest splits win among those that are equally good.
    return max(range(1, min(MAX_SPLITS, tiles) + 1), key=lambda splits: (round(utilization(splits), 2), -splits))
