"""Work in the background of a process."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from unibert.background_threads import compute_on_one_thread

Result = TypeVar("Result")


SECONDS_TO_END = 1.0
"""How long an end waits for work, which takes less unless a server does not respond."""


class Background:
    """A thread that runs one function after the other.

    A process that ends does not wait for it, unlike for the threads of ThreadPoolExecutor: a server that does not
    respond must not keep a process alive.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=_run, args=(self._work,), name="unibert-stream", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._work.put, None)

    def start(self, function: Callable[[], Result]) -> Future[Result]:
        """Run ``function`` when those before it have ended."""
        future: Future[Result] = Future()
        self._work.put((function, future))
        return future

    def close(self) -> None:
        """Begin nothing more. Wait for the function at work, unless it takes more than a second.

        A process that is forked while a thread is at work inherits the locks that the thread holds, for ever.
        """
        with suppress(Empty):
            while (job := self._work.get_nowait()) is not None:
                job[1].cancel()
        self._work.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(SECONDS_TO_END)


def _run(work: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    compute_on_one_thread()
    while (job := work.get()) is not None:
        function, future = job
        try:
            future.set_result(function())
        except BaseException as error:  # whoever asks for the result raises it
            future.set_exception(error)
        # While the thread waits, it must not keep alive what it has run.
        del job, function, future
