"""Work in the background of a process."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class Background:
    """A thread that runs one function after the other.

    A process that ends does not wait for it, unlike for the threads of ThreadPoolExecutor: a server that does not
    respond must not keep a process alive.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=_run, args=(self._work,), name="unibert-stream", daemon=True).start()
        weakref.finalize(self, self._work.put, None)

    def start(self, function: Callable[[], Result]) -> Future[Result]:
        """Run ``function`` when those before it have ended."""
        future: Future[Result] = Future()
        self._work.put((function, future))
        return future


def _run(work: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    while (job := work.get()) is not None:
        function, future = job
        try:
            future.set_result(function())
        except BaseException as error:  # whoever asks for the result raises it
            future.set_exception(error)
        # While the thread waits, it must not keep alive what it has run.
        del job, function, future
