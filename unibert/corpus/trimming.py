"""Fast tokenizers with fewer pieces.

A trimmed tokenizer segments a text as the original does wherever the original uses kept pieces only:

- Unigram: the best segmentation remains the best when other pieces go. The piece with the lowest score is kept, because
  the score of unknown characters follows from it.
- WordPiece: the longest match remains the longest.
- BPE: every merge that the original applies leads to a piece that is kept, because the pieces from which a kept piece
  is merged are kept too. The merges among kept pieces keep their order.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from unibert.errors import UserError

Ids = npt.NDArray[np.int64]


def trim(content: str, counts: npt.NDArray[np.float64], vocab_size: int, special: tuple[int, ...]) -> tuple[str, Ids]:
    """Trim a tokenizer to the pieces with the highest counts.

    Special and other added tokens, bytes and single characters are always kept.

    Args:
        content: text of a ``tokenizer.json``.
        counts: (V,) number of times that each piece is used, or any other weight.
        vocab_size: number of pieces to keep. Fewer are kept if fewer have a count.
        special: ids that must be kept.

    Returns:
        Text of the trimmed ``tokenizer.json``, and (N,) the original id of each new id, ascending.

    Raises:
        UserError: if ``vocab_size`` has no room for what must be kept, or the algorithm is unknown.
    """
    tokenizer = json.loads(content)
    model = tokenizer["model"]
    pieces = _ids_by_piece(model)
    taken = set(pieces.values())
    kept = {id for id in special if id in taken} | {token["id"] for token in tokenizer["added_tokens"]}
    kept |= _indivisible(model, pieces)
    if len(kept) > vocab_size:
        raise UserError(
            f"trim_vocabulary: {vocab_size} is too small; special tokens, bytes and single characters alone are "
            f"{len(kept)} pieces"
        )
    parts = _Parts(model, pieces) if model["type"] == "BPE" else None
    for id in sorted(np.flatnonzero(counts).tolist(), key=lambda id: (-counts[id], id)):
        if len(kept) == vocab_size:
            break
        needed = ({id} if parts is None else parts.of(id)) - kept
        if len(kept) + len(needed) <= vocab_size:
            kept |= needed
    source_ids = np.array(sorted(kept), dtype=np.int64)
    _keep_only(tokenizer, {old: new for new, old in enumerate(source_ids.tolist())})
    return json.dumps(tokenizer, ensure_ascii=False), source_ids


def _ids_by_piece(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] not in ("Unigram", "WordPiece", "BPE"):
        raise UserError(f"trim_vocabulary: {model['type']} tokenizers cannot be trimmed; use Unigram, WordPiece or BPE")
    if model["type"] == "Unigram":
        return {piece: id for id, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _indivisible(model: dict[str, Any], pieces: dict[str, int]) -> set[int]:
    prefix = model.get("continuing_subword_prefix") or ""
    found = {id for piece, id in pieces.items() if len(piece) == 1 or is_byte(piece)}
    if prefix:
        found |= {id for piece, id in pieces.items() if piece.startswith(prefix) and len(piece) == len(prefix) + 1}
    if model["type"] == "Unigram":
        found.add(min(range(len(model["vocab"])), key=lambda id: model["vocab"][id][1]))
    return found


def is_byte(piece: str) -> bool:
    """Return whether a piece is spelt as the ones that stand for a byte: ``<0x0A>``."""
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


class _Parts:
    """The pieces from which BPE merges a piece."""

    def __init__(self, model: dict[str, Any], pieces: dict[str, int]) -> None:
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self._ids = pieces
        self._pieces = {id: piece for piece, id in pieces.items()}

    def of(self, id: int) -> set[int]:
        """Ids of the piece and of all intermediate results of its merges."""
        symbols = list(self._pieces[id])
        needed = {id}
        while len(symbols) > 1:
            ranked = [(self._ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in self._ranks]
            if not ranked:
                break
            place = min(ranked)[1]
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
            needed.add(self._ids[symbols[place]])
        return needed


def _keep_only(tokenizer: dict[str, Any], new_ids: dict[int, int]) -> None:
    """Remove all pieces but those of ``new_ids``, new id by old id, and give these their new ids."""
    model = tokenizer["model"]
    if model["type"] == "Unigram":
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
        model["vocab"] = [entry for id, entry in enumerate(model["vocab"]) if id in new_ids]
    else:
        model["vocab"] = {piece: new_ids[id] for piece, id in model["vocab"].items() if id in new_ids}
    if model["type"] == "BPE":
        model["merges"] = [merge for merge in model["merges"] if _is_within(merge, model["vocab"])]
    for token in tokenizer["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if tokenizer["post_processor"] is not None:
        _renumber_frame(tokenizer["post_processor"], new_ids)


def _is_within(merge: str | list[str], vocab: dict[str, int]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in vocab and right in vocab and left + right in vocab


def _renumber_frame(processor: dict[str, Any], new_ids: dict[int, int]) -> None:
    for inner in processor.get("processors", []):
        _renumber_frame(inner, new_ids)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new_ids[id] for id in token["ids"]]
    for role in ("sep", "cls"):
        if role in processor:
            piece, id = processor[role]
            processor[role] = [piece, new_ids[id]]
