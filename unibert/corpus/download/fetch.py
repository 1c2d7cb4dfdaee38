"""Download of one file, from what there is of it to its right checksum."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx2

from unibert.corpus.download.client import Attempts, Client, Interrupted
from unibert.corpus.download.partial_file import PartialFile
from unibert.corpus.download.wikimedia import RemoteFile
from unibert.errors import UserError

_DOWNLOADS = 2
"""How often a file is fetched if its checksum is wrong."""


async def fetch_file(client: Client, remote: RemoteFile, path: Path, on_change: Callable[[int], None]) -> None:
    """Download ``remote`` to ``path``, which appears when it is complete and its SHA-1 is right.

    If this is interrupted, ``NAME.part`` stays, and the next call continues it if the file on the server is the same.
    ``on_change`` is told the number of bytes by which the file grows, negative if bytes are discarded.

    Raises:
        UserError: if the server refuses the file, does not send it in as many attempts as the client has, or sends it
            with a wrong checksum twice.
        OSError: if the disk is full.
    """
    with PartialFile(path, remote, on_change) as part:
        await part.read_existing()
        for _ in range(_DOWNLOADS):
            await _complete(client, part)
            if part.size == remote.size and part.has_right_digest():
                part.finish()
                return
            part.discard()
        part.remove()
    raise UserError(
        f"{remote.url}: the checksum is wrong, {_DOWNLOADS} times; the server's copy is damaged, try another --mirror"
    )


async def _complete(client: Client, part: PartialFile) -> None:
    """Receive bytes until there are as many as the file has, or more."""
    attempts = Attempts(client, part.remote.url)
    furthest = part.size
    while part.size < part.remote.size:
        try:
            async with client.answer(part.remote.url, part.range_headers()) as response:
                await _receive(client, response, part)
            if part.size < part.remote.size:
                raise Interrupted("the answer ends too early")
        except Interrupted as error:
            if part.size > furthest:
                furthest = part.size
                attempts.restart()
            await attempts.pause(error)


async def _receive(client: Client, response: httpx2.Response, part: PartialFile) -> None:
    if response.status_code == 200:
        length = response.headers.get("Content-Length", str(part.remote.size))
        if length != str(part.remote.size):
            # What there is stays: this may be the page of a proxy.
            raise UserError(
                f"{part.remote.url}: the server sends {length} bytes, but the dump's status says {part.remote.size}; "
                "try again later, or another --mirror"
            )
        # The whole file: there was nothing to continue, it has changed, or the server knows no ranges.
        part.begin(_validator(response))
    elif not _continues(response, part):
        part.discard()
        raise Interrupted("the server sends another range than it was asked for")
    async for chunk in client.body(response):
        part.write(chunk)
        if part.size > part.remote.size:
            return


def _continues(response: httpx2.Response, part: PartialFile) -> bool:
    """Whether the answer goes on where the file ends, in a file of the same length."""
    content_range = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or content_range is None:
        return False
    start, length = content_range.groups()
    return int(start) == part.size and length in ("*", str(part.remote.size))


def _validator(response: httpx2.Response) -> str | None:
    """Return what identifies this version of the file in If-Range: a strong ETag, or the time of its last change."""
    etag = response.headers.get("ETag")
    if etag is not None and not etag.startswith("W/"):
        return str(etag)
    modified = response.headers.get("Last-Modified")
    return None if modified is None else str(modified)
