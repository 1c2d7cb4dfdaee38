"""A server with the layout of Wikimedia's dumps on this machine, whose answers can be broken on purpose."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """What the server was asked, and when."""

    path: str
    range: str | None
    if_range: str | None
    user_agent: str
    time: float


class Handler(BaseHTTPRequestHandler):
    """Answers from the files of a `DumpServer`, or as the next of a path's faults does."""

    protocol_version = "HTTP/1.1"
    server: DumpServer

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.active += 1
            server.most_active = max(server.most_active, server.active)
            headers = self.headers
            server.requests.append(
                Request(self.path, headers["Range"], headers["If-Range"], headers["User-Agent"], time.monotonic())
            )
            faults = server.faults[self.path]
            answer = faults.pop(0) if faults else send_file
        try:
            answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.active -= 1

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


Answer = Callable[[Handler], None]


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def send_file(handler: Handler) -> None:
    """The right answer, with ranges and If-Range as in RFC 9110."""
    content = handler.server.files.get(handler.path)
    if content is None:
        handler.send(404)
        return
    wanted, if_range = handler.headers["Range"], handler.headers["If-Range"]
    if wanted is None or if_range not in (None, etag(content)):
        handler.send(200, content, ETag=etag(content))
        return
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(content):
        handler.send(416, Content_Range=f"bytes */{len(content)}")
        return
    handler.send(
        206, content[start:], ETag=etag(content), Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}"
    )


def whole_file(handler: Handler) -> None:
    """The answer of a server that knows no ranges."""
    content = handler.server.files[handler.path]
    handler.send(200, content, ETag=etag(content))


def other_bytes(content: bytes) -> Answer:
    """An answer with these bytes, whatever was asked."""
    return lambda handler: handler.send(200, content, ETag=etag(content))


def status(code: int, **headers: str) -> Answer:
    return lambda handler: handler.send(code, **headers)


def cut(after: int) -> Answer:
    """Send ``after`` bytes of what remains, then close the connection."""

    def answer(handler: Handler) -> None:
        content = handler.server.files[handler.path]
        start = int((handler.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", etag(content))
        handler.send_header("Content-Length", str(len(content) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        handler.wfile.write(content[start : start + after])
        handler.wfile.flush()
        handler.close_connection = True

    return answer


def stalled(after: int) -> Answer:
    """Send ``after`` bytes, then nothing more until the server closes."""

    def answer(handler: Handler) -> None:
        cut(after)(handler)
        handler.server.closing.wait()

    return answer


def trickling(handler: Handler) -> None:
    """Send a byte now and then, for a minute."""
    content = handler.server.files[handler.path]
    handler.send_response(200)
    handler.send_header("ETag", etag(content))
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for number in range(1200):
        handler.wfile.write(content[number : number + 1])
        time.sleep(0.05)


def slowly(seconds: float, then: Answer = send_file) -> Answer:
    """An answer after a while, so that requests at the same time overlap."""

    def answer(handler: Handler) -> None:
        time.sleep(seconds)
        then(handler)

    return answer


class DumpServer(ThreadingHTTPServer):
    """Serves dumps; used as a context manager."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Answer]] = defaultdict(list)
        """Answers to the next requests for a path, before the right ones."""
        self.requests: list[Request] = []
        self.active = self.most_active = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> DumpServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Print nothing if a client has gone."""

    def add_dump(
        self,
        wiki: str,
        date: str,
        content: bytes = b"",
        *,
        parts: list[bytes] | None = None,
        job_status: str = "done",
        sha1: str | None = None,
    ) -> str:
        """Add a dump, in parts too if there are any; return the path of its one file."""
        whole = f"{wiki}-{date}-pages-articles-multistream.xml.bz2"
        index = f"{wiki}-{date}-pages-articles-multistream-index.txt.bz2"
        names = {whole: content, index: b"index"}
        jobs = {"articlesmultistreamdump": self._job(wiki, date, names, job_status, sha1)}
        if parts is not None:
            joined = jobs["articlesmultistreamdump"]
            split = {
                f"{wiki}-{date}-pages-articles-multistream{number}.xml-p{number}1p{number}9.bz2": part
                for number, part in enumerate(parts, start=1)
            }
            split[f"{wiki}-{date}-pages-articles-multistream-index1.txt-p11p19.bz2"] = b"index"
            jobs = {
                "articlesmultistreamdump": self._job(wiki, date, split, job_status, sha1),
                "articlesmultistreamdumprecombine": joined,
            }
        self.files[f"/{wiki}/{date}/dumpstatus.json"] = json.dumps({"version": "0.8", "jobs": jobs}).encode()
        dates = {path.split("/")[2] for path in self.files if path.startswith(f"/{wiki}/2")}
        listing = "".join(f'<a href="{name}/">{name}/</a> 01-Nov-2026 -\n' for name in ["..", *sorted(dates), "latest"])
        self.files[f"/{wiki}/"] = f"<html><pre>{listing}</pre></html>".encode()
        return f"/{wiki}/{date}/{whole}"

    def _job(
        self, wiki: str, date: str, contents: dict[str, bytes], job_status: str, sha1: str | None
    ) -> dict[str, Any]:
        entries = {}
        for name, content in contents.items():
            path = f"/{wiki}/{date}/{name}"
            if job_status == "done":
                self.files[path] = content
                entries[name] = {
                    "size": len(content),
                    "url": path,
                    "md5": hashlib.md5(content).hexdigest(),
                    "sha1": sha1 or hashlib.sha1(content).hexdigest(),
                }
        return {"status": job_status, "updated": "2026-11-03 05:17:22", **({"files": entries} if entries else {})}

    def paths(self) -> list[str]:
        """The paths of all requests for files of dumps."""
        return [request.path for request in self.requests if request.path.endswith(".bz2")]

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each request for a path."""
        return [request.range for request in self.requests if request.path == path]
