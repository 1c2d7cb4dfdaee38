"""An HTTP client that keeps to a server's limits: few connections, the pauses that it asks for, no endless waits."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx2

from unibert.errors import UserError, short_message
from unibert.installation import unibert_version

CONNECTIONS = 2
"""Requests at the same time. Wikimedia allows two connections per address."""
_ATTEMPTS_BEFORE_FIRST_ANSWER = 3
_SECONDS_WORTH_A_LINE = 10
_LEAST_BYTES = 1000
"""Bytes that a connection must bring in the time in which it must not stall."""
_PROJECT = "https://arxiv.org/abs/2503.12608"


@dataclass(frozen=True)
class Patience:
    """How long the client waits and how often it tries again; all times in seconds."""

    connect: float = 15.0
    """For a connection."""
    read: float = 60.0
    """For the next bytes of an answer. A connection that stalls for longer, or brings less than 1 kB in this time,
    counts as cut."""
    attempts: int = 10
    """Attempts in a row that bring nothing new."""
    first_pause: float = 1.0
    """After the first of them. Each further pause is twice as long."""
    longest_pause: float = 600.0
    """Longest pause that a server may ask for."""


class Interrupted(Exception):
    """An answer that did not come, or not to its end. Another attempt may succeed."""

    def __init__(self, reason: str, retry_after: float | None = None, *, connected: bool = True) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds that the server asked to wait."""
        self.connected = connected


class NotFound(UserError):
    """The server has no such file."""


class UnreachableServer(UserError):
    """The server cannot be reached, or wants no requests for long, so that further requests are in vain."""


class Client:
    """Sends requests to one server; used as an asynchronous context manager."""

    def __init__(self, patience: Patience, contact: str | None, on_pause: Callable[[str], None]) -> None:
        """Create a client.

        Args:
            patience: times and numbers of attempts.
            contact: address of the user, for the User-Agent. Wikimedia blocks clients that name no contact.
            on_pause: called with a line about each pause that is worth a line.
        """
        self.patience = patience
        self.answered = False
        """Whether the server has ever answered."""
        self._on_pause = on_pause
        self._paused_until = -math.inf
        self._http = httpx2.AsyncClient(
            headers={
                "User-Agent": f"UniBERT/{unibert_version()} ({contact or _PROJECT}) httpx2/{httpx2.__version__}",
                # Checksums and ranges are those of the file as it is.
                "Accept-Encoding": "identity",
            },
            timeout=httpx2.Timeout(patience.read, connect=patience.connect, pool=None),
            limits=httpx2.Limits(max_connections=CONNECTIONS),
            follow_redirects=True,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def text(self, url: str) -> str:
        """Return the content of a small file.

        Raises:
            NotFound: if there is none.
            UserError: if the server refuses it, or all attempts fail.
        """
        attempts = Attempts(self, url)
        while True:
            try:
                async with self.answer(url, {}) as response:
                    return b"".join([chunk async for chunk in self.body(response)]).decode(errors="replace")
            except Interrupted as error:
                await attempts.pause(error)

    @asynccontextmanager
    async def answer(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """Send one request when the limits allow it; yield the answer, of status 200, 206 or 416, without its body.

        Raises:
            Interrupted: if another attempt may succeed.
            NotFound: if the file does not exist.
            UserError: if the server refuses the request.
        """
        while (seconds := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(seconds)
        async with AsyncExitStack() as stack:
            try:
                response = await stack.enter_async_context(self._http.stream("GET", url, headers=headers))
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                raise Interrupted(f"no connection ({short_message(error)})", connected=False) from error
            except httpx2.HTTPError as error:
                raise Interrupted(f"no answer ({short_message(error)})") from error
            except httpx2.InvalidURL as error:
                raise UserError(f"{url}: not an address ({short_message(error)})") from error
            self.answered = True
            self._raise_for_status(url, response)
            yield response

    async def body(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """Yield the body of an answer in chunks, as it was sent.

        Raises:
            Interrupted: if the connection is cut or stalls.
        """
        started, received = time.monotonic(), 0
        try:
            async for chunk in response.aiter_raw():
                yield chunk
                received += len(chunk)
                if time.monotonic() - started > self.patience.read:
                    if received < _LEAST_BYTES:
                        raise Interrupted("the connection stalls")
                    started, received = time.monotonic(), 0
        except httpx2.HTTPError as error:
            stalled = isinstance(error, httpx2.ReadTimeout)
            raise Interrupted("the connection stalls" if stalled else "the connection was cut") from error

    def _raise_for_status(self, url: str, response: httpx2.Response) -> None:
        status = f"{response.status_code} {response.reason_phrase}"
        match response.status_code:
            case 200 | 206 | 416:
                return
            case 404 | 410:
                raise NotFound(f"{url} does not exist")
            case 403:
                raise UserError(
                    f"{url}: the server refuses it ({status}); Wikimedia wants to know whom to contact: give an e-mail "
                    "address with --contact, or name another server with --mirror"
                )
            case code if code in (408, 429) or code >= 500:
                raise Interrupted(f"the server answers {status}", _retry_after(response.headers.get("Retry-After", "")))
        raise UserError(f"{url}: the server answers {status}; is this the address of a mirror of Wikimedia's dumps?")

    def pause(self, seconds: float) -> None:
        """Send no request for this long."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def tell_pause(self, text: str) -> None:
        """Tell the user about a pause."""
        self._on_pause(text)


class Attempts:
    """Counts attempts at one file that bring nothing new, and pauses between them."""

    def __init__(self, client: Client, url: str) -> None:
        self._client = client
        self._url = url
        self._failed = 0

    def restart(self) -> None:
        """Count from the beginning, since an attempt has brought something new."""
        self._failed = 0

    async def pause(self, error: Interrupted) -> None:
        """Wait before the next attempt.

        Raises:
            UserError: if this was the last one; UnreachableServer if there was no connection, no answer ever, or the
                server wants a longer pause than is allowed.
        """
        patience = self._client.patience
        self._failed += 1
        if (error.retry_after or 0) > patience.longest_pause:
            raise UnreachableServer(
                f"{self._url}: {error} and asks to wait {error.retry_after:.0f} s; start the same command again then"
            ) from error
        allowed = patience.attempts if self._client.answered else min(patience.attempts, _ATTEMPTS_BEFORE_FIRST_ANSWER)
        if self._failed >= allowed:
            failure = f"{self._url}: {error}, {self._failed} times in a row"
            if not self._client.answered:
                raise UnreachableServer(f"{failure}; check the network, HTTPS_PROXY and --mirror") from error
            kind = UserError if error.connected else UnreachableServer
            raise kind(f"{failure}; the same command goes on from what there is") from error
        own = min(patience.first_pause * 2 ** (self._failed - 1), patience.longest_pause)
        asked = error.retry_after or 0.0
        if max(own, asked) > _SECONDS_WORTH_A_LINE:
            self._client.tell_pause(f"{self._url}: {error}; next attempt in {max(own, asked):.0f} s")
        self._client.pause(asked)  # other requests would be refused as well
        await asyncio.sleep(own)


def _retry_after(value: str) -> float | None:
    """Return the seconds in a Retry-After header, which has seconds or a date; None if it has neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
