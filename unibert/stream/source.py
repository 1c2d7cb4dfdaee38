"""Where shards come from: files beside the manifest, or a server, with a cache on this machine."""

from __future__ import annotations

import io
import os
import shlex
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from webdataset.cache import LRUCleanup
from webdataset.gopen import Pipe, gopen, gopen_schemes

from unibert.corpus.manifest import Shard
from unibert.errors import UserError
from unibert.files import write_atomically
from unibert.stream.config import StreamConfig

STALL_SECONDS = 60.0
"""A transfer that gives no byte for so long is broken off."""

_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20
_OF_LOCAL_FILES = ("", "file")
_HTTP_ERROR = 22
"""curl's exit status when the server answers and refuses."""
_REFUSALS_BELIEVED = 3


class _TransferError(Exception):
    def __init__(self, problem: str, refused: bool) -> None:
        super().__init__(problem)
        self.refused = refused


class ShardSource:
    """Opens a corpus's shards.

    What comes over a network is taken as a whole before it is read, since a broken transfer must not pass for a damaged
    shard: batches would depend on the weather. A transfer that fails is tried again with growing pauses; one that ends
    in order but with another size than the manifest's is believed when it comes twice.

    Args:
        corpus_dir: folder of the manifest.
        config: the run file's ``stream`` section.

    Raises:
        UserError: if nothing can open ``stream.shards_url``.
    """

    def __init__(self, corpus_dir: Path, config: StreamConfig) -> None:
        self._url, self._retry_seconds = config.shards_url, config.retry_seconds
        self._folder: Path | None = corpus_dir
        if self._url is not None:
            scheme = urlsplit(self._url).scheme
            self._folder = Path(url2pathname(urlsplit(self._url).path)) if scheme in _OF_LOCAL_FILES else None
            if self._folder is None and scheme not in ("s3", *gopen_schemes):
                known = ", ".join(sorted({"s3", *gopen_schemes} - {"__default__"}))
                raise UserError(f"stream.shards_url: nothing opens {scheme}: addresses; known are {known}")
        self._cache = None if config.cache_dir is None else Path(config.cache_dir)
        limit = config.cache_gib
        self._cleanup = None if limit is None else LRUCleanup(config.cache_dir, int(limit * 2**30), interval=None)

    @property
    def folder(self) -> Path | None:
        """Of the shards, if they are files."""
        return self._folder

    def place(self, shard: Shard) -> str:
        """The shard's path, address or command, for messages too."""
        if self._folder is not None:
            # An absolute path has no scheme, so that no manifest can make WebDataset run a command.
            return str(self._folder.absolute() / shard.path)
        assert self._url is not None
        if self._url.startswith("pipe:"):
            return self._url.replace("{path}", shlex.quote(shard.path))
        return f"{self._url.rstrip('/')}/{quote(shard.path)}"

    def open(self, shard: Shard) -> BinaryIO:
        """The shard's bytes from the start.

        Raises:
            UserError: if the server has not given the shard in ``stream.retry_seconds``, or the cache is full.
            OSError: if the file cannot be opened.
        """
        if self._folder is not None:
            return Path(self.place(shard)).open("rb")
        if self._cache is None:
            return io.BytesIO(self._fetch(shard))
        path = self._cache / shard.sha256[:2] / f"{shard.sha256}.tar"
        try:
            if path.stat().st_size == shard.size_bytes:
                return path.open("rb")
        except OSError:
            # Not there yet, or dropped from the cache in this moment.
            pass
        content = self._fetch(shard)
        self._keep(path, content)
        return io.BytesIO(content)

    def _fetch(self, shard: Shard) -> bytes:
        place, pause = self.place(shard), _FIRST_PAUSE_SECONDS
        deadline = time.monotonic() + self._retry_seconds
        sizes: list[int] = []
        refusals = 0
        while True:
            try:
                content = _transfer(place)
            except _TransferError as error:
                problem, refusals = str(error), refusals + error.refused
            else:
                if len(content) == shard.size_bytes or len(content) in sizes:
                    return content
                sizes.append(len(content))
                problem = f"it gave {len(content)} bytes where the manifest says {shard.size_bytes}"
            if refusals == _REFUSALS_BELIEVED:
                raise UserError(f"{place}: the server has no such shard ({problem}); upload it or fix the address")
            if time.monotonic() + pause > deadline:
                raise UserError(
                    f"{place}: the server gave no whole shard in {self._retry_seconds:g} s ({problem}); fix it or "
                    "raise stream.retry_seconds"
                )
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _keep(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise UserError(
                f"stream.cache_dir: {self._cache} cannot be written ({error.strerror}); choose another or set "
                "stream.cache_gib"
            ) from error
        if self._cleanup is not None:
            self._cleanup.cleanup()


def check_shards_exist(source: ShardSource, shards: Sequence[Shard]) -> None:
    """Look for every shard by listing each folder once, which is kinder to a network file system than a look at each.

    Shards on a server are not looked for: asking for thousands would take longer than to meet a missing one.

    Raises:
        UserError: naming the first shard that is missing.
    """
    if source.folder is None:
        return
    present: dict[Path, set[str]] = {}
    for shard in shards:
        path = source.folder / shard.path
        if path.parent not in present:
            present[path.parent] = {entry.name for entry in os.scandir(path.parent)} if path.parent.is_dir() else set()
        if path.name not in present[path.parent]:
            raise UserError(f"{path}: missing shard; copy it there or build the corpus again")


def _transfer(place: str) -> bytes:
    """All that a server gives."""
    chunks: list[bytes] = []
    stalled = threading.Event()
    stream = _start(place)

    def break_off() -> None:
        stalled.set()
        leads_group = os.getpgid(stream.proc.pid) == stream.proc.pid
        (os.killpg if leads_group else os.kill)(stream.proc.pid, signal.SIGKILL)

    try:
        with stream:
            while True:
                watchdog = threading.Timer(STALL_SECONDS, break_off)
                watchdog.start()
                try:
                    chunk = stream.stream.read(_CHUNK_BYTES)
                finally:
                    watchdog.cancel()
                if not chunk:
                    break
                chunks.append(chunk)
    except OSError as error:
        problem = f"no byte for {STALL_SECONDS:g} s" if stalled.is_set() else f"exit status {stream.status}"
        refused = stream.status == _HTTP_ERROR and place.startswith("http")
        raise _TransferError(f"the transfer failed: {problem}", refused) from error
    return b"".join(chunks)


def _start(place: str) -> Pipe:
    try:
        if place.startswith("pipe:"):
            # A group of its own, so that a stalled command dies with all its parts.
            return Pipe(place.removeprefix("pipe:"), mode="rb", shell=True, start_new_session=True)
        if place.startswith("s3:"):
            return Pipe(["aws", "s3", "cp", "--only-show-errors", place, "-"], mode="rb")
        return gopen(place, bufsize=_CHUNK_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{place}: {error.filename} is needed to fetch it; install it") from error
