"""A lane: an independent reader of the run whose entire state is a few integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from unibert.errors import UserError
from unibert.stream.background import Background
from unibert.stream.packing import Packing, Permutation, Pieces, pack_shuffled
from unibert.stream.plan import Draw, Plan
from unibert.stream.randomness import Purpose, permutation
from unibert.stream.sequences import Sequences
from unibert.stream.source import ShardSource
from unibert.stream.vocabulary import Vocabulary
from unibert.stream.window import Window, load_window

_BUFFER_TOKENS = 1 << 15


@dataclass(frozen=True)
class _Opened:
    """A window, packed at the sequence length at which it will most likely be used."""

    window: Window
    sequence_length: int
    packing: Packing


class Lane:
    """Reads every ``num_lanes``-th draw of the plan, mixes a window of draws at a time, and packs their documents.

    Window w of a lane holds its draws w * window_shards and following. Their documents are shuffled and packed at the
    current sequence length. When that changes, the documents of the sequences not yet taken are packed again. Once half
    of a window is taken, the next one is opened in the background, since that takes as long as many steps.

    Args:
        index: index of this lane.
        num_lanes: number of lanes of the run.
        window_shards: draws per window.
        plan: plan of the run.
        source: source of the shards.
        vocabulary: vocabulary of the corpus; blocks with other ids count as damaged.
        seed: seed of the run.
        background: where windows are opened.
        piece_length: tokens of the pieces whose vectors to read, None for no vectors.
        state: state of an earlier lane of the same run, to continue from there.
    """

    def __init__(
        self,
        index: int,
        *,
        num_lanes: int,
        window_shards: int,
        plan: Plan,
        source: ShardSource,
        vocabulary: Vocabulary,
        seed: int,
        background: Background,
        piece_length: int | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._index, self._num_lanes, self._window_shards = index, num_lanes, window_shards
        self._plan, self._source, self._vocabulary, self._seed = plan, source, vocabulary, seed
        self._background, self._piece_length = background, piece_length
        self._window_index = 0
        self._packs: list[list[int]] = []
        self._window: Window | None = None
        self._packing: Packing | None = None
        self._next: Future[_Opened] | None = None
        self._buffer: tuple[int, Sequences] | None = None
        self._skipped: dict[str, int] = {}
        if state is not None:
            self._window_index = state["window"]
            for sequence_length, sequences_taken in state["packs"]:
                self._repack(sequence_length)
                self._packs[-1][1] = sequences_taken
            # The lane that took the first sequences has reported what was skipped.
            self._skipped = {}

    @property
    def state(self) -> dict[str, Any]:
        """Number of the window, and sequence length and number of sequences taken of each of its packings."""
        return {"window": self._window_index, "packs": [list(packed) for packed in self._packs]}

    def take(self, num_sequences: int, sequence_length: int) -> Sequences:
        """Return the next sequences.

        Raises:
            UserError: if a shard is missing or no shard of the corpus can be read.
        """
        return Sequences.concatenate(
            [self._sequences(first, last) for first, last in self._advance(num_sequences, sequence_length)]
        )

    def skip(self, num_sequences: int, sequence_length: int) -> None:
        """Advance as :meth:`take` does, without assembling the sequences."""
        for _ in self._advance(num_sequences, sequence_length):
            pass

    def collect_skipped(self) -> dict[str, int]:
        """Return the damaged blocks met since the last call, by shard."""
        skipped, self._skipped = self._skipped, {}
        return skipped

    def _advance(self, num_sequences: int, sequence_length: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of the current packing: first sequence and end."""
        empty_shards: set[str] = set()
        while num_sequences:
            if not self._packs or self._packs[-1][0] != sequence_length:
                self._repack(sequence_length)
            assert self._window is not None
            assert self._packing is not None
            taken = self._packs[-1][1]
            last = min(taken + num_sequences, self._packing.num_sequences)
            if last > taken:
                yield taken, last
                self._packs[-1][1] = last
                num_sequences -= last - taken
                empty_shards.clear()
            else:
                empty_shards.update(draw.shard.path for draw in self._draws(self._window_index))
                if len(empty_shards) == self._plan.num_shards:
                    raise UserError("the corpus is damaged: no shard has an intact block; copy it or build it again")
            if self._next is None and 2 * last >= self._packing.num_sequences:
                self._next = self._background.start(self._opening(self._window_index + 1, sequence_length))
            if last == self._packing.num_sequences:
                self._window_index += 1
                self._packs, self._window, self._packing, self._buffer = [], None, None, None

    def _sequences(self, first: int, last: int) -> Sequences:
        """Return sequences from a buffer: a lane gives few to a step, and assembling them has a fixed cost per call."""
        assert self._window is not None
        assert self._packing is not None
        if self._buffer is None or last > self._buffer[0] + self._buffer[1].num_sequences:
            sequence_length = self._packs[-1][0]
            end = min(max(last, first + _BUFFER_TOKENS // sequence_length), self._packing.num_sequences)
            self._buffer = first, self._window.sequences(self._packing.sequences(first, end), sequence_length)
        buffer_start, sequences = self._buffer
        return sequences.part(first - buffer_start, last - buffer_start)

    def _draws(self, window_index: int) -> list[Draw]:
        first = window_index * self._window_shards
        return [self._plan[(first + i) * self._num_lanes + self._index] for i in range(self._window_shards)]

    def _repack(self, sequence_length: int) -> None:
        """Open the window or, if it is open, rejoin what is left of it; then pack."""
        packed_at = None
        if self._window is None:
            opened = self._open(sequence_length)
            self._window, self._packing, packed_at = opened.window, opened.packing, opened.sequence_length
            for path, count in self._window.skipped.items():
                self._skipped[path] = self._skipped.get(path, 0) + count
        if packed_at != sequence_length:
            self._packing = self._pack(self._remaining(), sequence_length, self._window_index, len(self._packs))
        self._buffer = None
        self._packs.append([sequence_length, 0])

    def _open(self, sequence_length: int) -> _Opened:
        """Return the window whose turn it is."""
        opening, self._next = self._next, None
        if opening is not None:
            try:
                return opening.result()
            except UserError:
                # A server may have come back since.
                pass
        return self._background.start(self._opening(self._window_index, sequence_length)).result()

    def _opening(self, window_index: int, sequence_length: int) -> Callable[[], _Opened]:
        """Return a function that opens a window. It may run in a thread, since it does not read the lane's state."""
        shards = [(draw.language, draw.shard) for draw in self._draws(window_index)]

        def open_window() -> _Opened:
            window = load_window(self._source, shards, self._vocabulary, self._piece_length)
            return _Opened(window, sequence_length, self._pack(window.documents(), sequence_length, window_index, 0))

        return open_window

    def _pack(self, documents: Pieces, sequence_length: int, window_index: int, packs_before: int) -> Packing:
        return pack_shuffled(
            documents,
            sequence_length,
            self._vocabulary.special_ids.frame_tokens,
            order_documents=self._permutation(window_index, 2 * packs_before),
            order_sequences=self._permutation(window_index, 2 * packs_before + 1),
        )

    def _remaining(self) -> Pieces:
        assert self._window is not None
        assert self._packing is not None
        if not self._packs:
            return self._window.documents()
        return self._packing.sequences(self._packs[-1][1], self._packing.num_sequences).pieces.rejoin()

    def _permutation(self, window_index: int, decision: int) -> Permutation:
        return lambda count: permutation(count, self._seed, Purpose.WINDOW, self._index, window_index, decision)
