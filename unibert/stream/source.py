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
"""A transfer that delivers no byte for this long is aborted."""

_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20
_LOCAL_SCHEMES = ("", "file")
_HTTP_ERROR = 22
"""curl's exit status when the server answers and refuses."""
_MAX_REFUSALS = 3


class _TransferError(Exception):
    def __init__(self, problem: str, refused: bool) -> None:
        super().__init__(problem)
        self.refused = refused


class ShardSource:
    """Opens a corpus's shards.

    Shards on a server are downloaded completely before they are read: if a broken transfer were taken for a damaged
    shard, batches would depend on the network. A failed transfer is retried with growing pauses. One that ends normally
    but with another size than the manifest's is accepted when the same size comes twice.

    Args:
        corpus_dir: folder of the manifest.
        config: ``stream`` section of the run file.

    Raises:
        UserError: if the scheme of ``stream.shards_url`` is not supported.
    """

    def __init__(self, corpus_dir: Path, config: StreamConfig) -> None:
        self._url, self._retry_seconds = config.shards_url, config.retry_seconds
        self._folder: Path | None = corpus_dir
        if self._url is not None:
            scheme = urlsplit(self._url).scheme
            self._folder = Path(url2pathname(urlsplit(self._url).path)) if scheme in _LOCAL_SCHEMES else None
            if self._folder is None and scheme not in ("s3", *gopen_schemes):
                supported = ", ".join(sorted({"s3", *gopen_schemes} - {"__default__"}))
                raise UserError(f"stream.shards_url: {scheme}: is not supported; use one of {supported}")
        self._cache = None if config.cache_dir is None else Path(config.cache_dir)
        limit = config.cache_gib
        self._cleanup = None if limit is None else LRUCleanup(config.cache_dir, int(limit * 2**30), interval=None)

    @property
    def folder(self) -> Path | None:
        """Folder of the shards; None if they are on a server."""
        return self._folder

    def location(self, shard: Shard) -> str:
        """Return the shard's path, address or command; error messages name it too."""
        if self._folder is not None:
            # An absolute path has no scheme, so that no manifest can make WebDataset run a command.
            return str(self._folder.absolute() / shard.path)
        assert self._url is not None
        if self._url.startswith("pipe:"):
            return self._url.replace("{path}", shlex.quote(shard.path))
        return f"{self._url.rstrip('/')}/{quote(shard.path)}"

    def open(self, shard: Shard) -> BinaryIO:
        """Open the shard's bytes.

        Raises:
            UserError: if the server has not delivered the shard within ``stream.retry_seconds``, or the cache is full.
            OSError: if the file cannot be opened.
        """
        if self._folder is not None:
            return Path(self.location(shard)).open("rb")
        if self._cache is None:
            return io.BytesIO(self._fetch(shard))
        path = self._cache / shard.sha256[:2] / f"{shard.sha256}.tar"
        try:
            if path.stat().st_size == shard.size_bytes:
                return path.open("rb")
        except OSError:
            # Not cached yet, or just dropped from the cache.
            pass
        content = self._fetch(shard)
        self._store(path, content)
        return io.BytesIO(content)

    def _fetch(self, shard: Shard) -> bytes:
        location, pause = self.location(shard), _FIRST_PAUSE_SECONDS
        deadline = time.monotonic() + self._retry_seconds
        sizes: list[int] = []
        refusals = 0
        while True:
            try:
                content = _transfer(location)
            except _TransferError as error:
                problem, refusals = str(error), refusals + error.refused
            else:
                if len(content) == shard.size_bytes or len(content) in sizes:
                    return content
                sizes.append(len(content))
                problem = f"it delivered {len(content)} bytes, the manifest says {shard.size_bytes}"
            if refusals == _MAX_REFUSALS:
                raise UserError(f"{location}: the server has no such shard ({problem}); upload it or fix the address")
            if time.monotonic() + pause > deadline:
                raise UserError(
                    f"{location}: the server did not deliver the shard within {self._retry_seconds:g} s ({problem}); "
                    "fix the server or raise stream.retry_seconds"
                )
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _store(self, path: Path, content: bytes) -> None:
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
    """Check that every shard exists. Listing each folder once loads a network file system less than a call per shard.

    Shards on a server are not checked: thousands of requests would take longer than meeting a missing one.

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


def _transfer(location: str) -> bytes:
    """Download everything that the server sends."""
    chunks: list[bytes] = []
    stalled = threading.Event()
    stream = _start(location)

    def abort() -> None:
        stalled.set()
        leads_group = os.getpgid(stream.proc.pid) == stream.proc.pid
        (os.killpg if leads_group else os.kill)(stream.proc.pid, signal.SIGKILL)

    try:
        with stream:
            while True:
                watchdog = threading.Timer(STALL_SECONDS, abort)
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
        refused = stream.status == _HTTP_ERROR and location.startswith("http")
        raise _TransferError(f"the transfer failed: {problem}", refused) from error
    return b"".join(chunks)


def _start(location: str) -> Pipe:
    try:
        if location.startswith("pipe:"):
            # In a process group of its own, a stalled command can be killed with all its parts.
            return Pipe(location.removeprefix("pipe:"), mode="rb", shell=True, start_new_session=True)
        if location.startswith("s3:"):
            return Pipe(["aws", "s3", "cp", "--only-show-errors", location, "-"], mode="rb")
        return gopen(location, bufsize=_CHUNK_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{location}: {error.filename} is needed to fetch it; install it") from error
