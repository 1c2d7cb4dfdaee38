"""Progress of a download on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from unibert.text import with_unit

_SECONDS_BETWEEN_LINES = 30


def bytes_for_people(number: float) -> str:
    """Return a number of bytes as ``1.23 GB``."""
    return with_unit(number, ("kB", "MB", "GB", "TB"), " ")


class Progress:
    """Counts bytes of a known total; used as a context manager."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._last = time.monotonic()
        self._bar = tqdm(total=total, desc="downloading", unit="B", unit_scale=True, disable=None, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, number: int) -> None:
        """Count bytes; a negative number if bytes were discarded."""
        self._done += number
        self._bar.update(number)
        if self._bar.disable and time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            done, total = bytes_for_people(self._done), bytes_for_people(self._total)
            print(f"downloading: {done} of {total}", file=sys.stderr, flush=True)

    @staticmethod
    def tell(line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line, file=sys.stderr)
