"""Shards from a server give the same batches as files; a server that fails is retried, then named in an error."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig, source, split_batches

TIMELINE = Timeline(30_000, 8, 64)


class Handler(SimpleHTTPRequestHandler):
    """Serves files, unless ``fault`` handles the request itself and returns True."""

    fault: Callable[["Handler"], bool] = staticmethod(lambda handler: False)

    def do_GET(self) -> None:
        if not type(self).fault(self):
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def server(folder: Path, fault: Callable[[Handler], bool] | None = None, port: int = 0) -> Iterator[int]:
    kind = type("FaultyHandler", (Handler,), {"fault": staticmethod(fault or Handler.fault)})
    # A server that returns needs its port to be free at once.
    with ThreadingHTTPServer(("127.0.0.1", port), partial(kind, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running.server_port
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def remote(make_corpus: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A folder with only the manifest, and the folder with the shards."""
    shards = make_corpus({"da": 120, "fi": 60}, heldout_documents=10)
    local = tmp_path / "manifest-only"
    local.mkdir()
    (local / "manifest.json").write_bytes((shards / "manifest.json").read_bytes())
    return local, shards


def config(**changes: Any) -> StreamConfig:
    return StreamConfig(**{"lanes": 2, "window_shards": 2, "retry_seconds": 20.0} | changes)


def consume(corpus: Path, pause: Callable[[int], None] = lambda index: None, **changes: Any) -> tuple[list[str], Any]:
    digests, skipped = [], {}
    for step in Stream(corpus, config(**changes), seed=0, timeline=TIMELINE).steps():
        digests += [batch.digest() for batch in step.micro_batches(8)]
        skipped |= step.skipped
        pause(step.step.index)
    return digests, skipped


@pytest.mark.parametrize("num_workers", [0, 2])
def test_http_gives_the_same_batches_as_files(remote: tuple[Path, Path], num_workers: int) -> None:
    local, shards = remote
    with server(shards) as port:
        url = f"http://127.0.0.1:{port}"
        assert consume(local, shards_url=url, num_workers=num_workers) == consume(shards)
        heldout = [
            [
                batch.digest()
                for batch in split_batches(folder, of, split="heldout", seed=0, sequence_length=64, micro_batch_size=4)
            ]
            for folder, of in ((local, config(shards_url=url)), (shards, config()))
        ]
    assert heldout[0] == heldout[1] != []


def test_another_folder_holds_the_shards(remote: tuple[Path, Path]) -> None:
    local, shards = remote
    assert consume(local, shards_url=str(shards)) == consume(local, shards_url=shards.as_uri()) == consume(shards)


def test_a_server_that_dies_and_returns(remote: tuple[Path, Path]) -> None:
    local, shards = remote
    running = server(shards)
    port = running.__enter__()
    returned: list[Any] = []

    def start_again() -> None:
        again = server(shards, port=port)
        again.__enter__()
        returned.append(again)

    def kill(index: int) -> None:
        if index == 10:
            running.__exit__(None, None, None)
            threading.Timer(1.5, start_again).start()

    assert consume(local, kill, shards_url=f"http://127.0.0.1:{port}") == consume(shards)
    assert returned, "the run ended before the server was needed again"
    returned[0].__exit__(None, None, None)


@pytest.mark.parametrize("announced", [True, False], ids=["of known length", "that seems to end normally"])
def test_a_broken_transfer_does_not_count_as_damage(remote: tuple[Path, Path], announced: bool) -> None:
    local, shards = remote
    asked: set[str] = set()

    def break_the_first(handler: Handler) -> bool:
        if handler.path in asked:
            return False
        asked.add(handler.path)
        content = (shards / handler.path.lstrip("/")).read_bytes()
        handler.send_response(200)
        if announced:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        return True

    with server(shards, break_the_first) as port:
        digests, skipped = consume(local, shards_url=f"http://127.0.0.1:{port}")
    assert (digests, skipped) == consume(shards)
    assert skipped == {}


def test_a_shard_truncated_on_the_server_is_skipped_as_a_file_would_be(remote: tuple[Path, Path]) -> None:
    local, shards = remote
    path = shards / "da" / "train-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b".tokens.npy") + 700])
    with server(shards) as port:
        digests, skipped = consume(local, shards_url=f"http://127.0.0.1:{port}")
    assert list(skipped) == ["da/train-000001.tar"]
    assert (digests, skipped) == consume(shards)


def test_a_vanished_server_is_named_in_time(remote: tuple[Path, Path]) -> None:
    local, shards = remote
    with server(shards) as port:
        url = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    sentence = (
        rf"^{url}/\w\w/train-\d+\.tar: the server did not deliver the shard within 2 s "
        r"\(the transfer failed: exit status 7\)"
    )
    with pytest.raises(UserError, match=sentence):
        consume(local, shards_url=url, retry_seconds=2.0)
    assert time.monotonic() - start < 60


def test_a_shard_that_the_server_lacks_is_named_before_the_time_is_up(remote: tuple[Path, Path]) -> None:
    local, shards = remote
    start = time.monotonic()
    with server(shards / "da") as port, pytest.raises(UserError, match="the server has no such shard"):
        consume(local, shards_url=f"http://127.0.0.1:{port}", retry_seconds=600.0)
    assert time.monotonic() - start < 300


def test_a_stalled_transfer_is_aborted(remote: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    local, shards = remote
    monkeypatch.setattr(source, "STALL_SECONDS", 0.5)
    over = threading.Event()

    def stall(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        return over.wait(60)

    with server(shards, stall) as port:
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no byte for 0\.5 s"):
            consume(local, shards_url=f"http://127.0.0.1:{port}", retry_seconds=1.0)
        assert time.monotonic() - start < 55
        over.set()


def test_pipe_runs_where_the_config_allows_it(remote: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    local, shards = remote
    command = f"pipe:cat {shards}/{{path}} | cat"
    with pytest.raises(ValueError, match=r"stream\.shards_url: runs a shell command; set stream\.allow_pipe"):
        config(shards_url=command)
    assert consume(local, shards_url=command, allow_pipe=True) == consume(shards)
    # All processes of a stalled pipeline must be killed.
    monkeypatch.setattr(source, "STALL_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"no byte for 0\.5 s"):
        consume(local, shards_url="pipe:sleep 600 | cat # {path}", allow_pipe=True, retry_seconds=0.1)


def test_a_path_in_the_manifest_runs_nothing(remote: tuple[Path, Path]) -> None:
    local, _ = remote
    manifest = local / "manifest.json"
    manifest.write_text(manifest.read_text().replace('.tar"', '.tar;touch pwned;$(touch pwned)"'))
    assert Manifest.load(local)
    with pytest.raises(UserError, match="did not deliver the shard"):
        consume(local, shards_url=f"pipe:cd {local}; cat {{path}}", allow_pipe=True, retry_seconds=0.1)
    assert not (local / "pwned").exists()


def test_s3_goes_through_the_aws_command(
    remote: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself needs an account; its substitute takes the same arguments."""
    local, shards = remote
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="aws is needed to fetch it; install it"):
        consume(local, shards_url="s3://bucket/corpus")
    command = tmp_path / "bin" / "aws"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\n[ "$1 $2 $5" = "s3 cp -" ] && exec /bin/cat "{shards}/${{4#s3://bucket/corpus/}}"\n'
    )
    command.chmod(0o755)
    assert consume(local, shards_url="s3://bucket/corpus/") == consume(shards)


def test_an_unsupported_scheme(remote: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"stream\.shards_url: scheme gopher is not supported; use one of ais, .*https"):
        consume(remote[0], shards_url="gopher://host/corpus")


def test_the_cache_serves_when_the_server_is_gone(remote: tuple[Path, Path], tmp_path: Path) -> None:
    local, shards = remote
    cache = tmp_path / "cache"
    with server(shards) as port:
        url = f"http://127.0.0.1:{port}"
        expected = consume(local, shards_url=url, cache_dir=str(cache), num_workers=2)
    assert expected == consume(local, shards_url=url, cache_dir=str(cache), retry_seconds=0.0) == consume(shards)
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".tar"}
    # A truncated file is not used.
    files[0].write_bytes(files[0].read_bytes()[:1000])
    with pytest.raises(UserError, match="did not deliver the shard"):
        consume(local, shards_url=url, cache_dir=str(cache), retry_seconds=0.0)


def test_the_cache_keeps_its_size_limit(remote: tuple[Path, Path], tmp_path: Path) -> None:
    local, shards = remote
    cache = tmp_path / "cache"
    sizes = [shard.size_bytes for shard in Manifest.load(local).shards if shard.split == "train"]
    limit = 2.5 * max(sizes)
    assert sum(sizes) > 2 * limit
    with server(shards) as port:
        url = f"http://127.0.0.1:{port}"
        assert consume(local, shards_url=url, cache_dir=str(cache), cache_gib=limit / 2**30) == consume(shards)
    assert 0 < sum(path.stat().st_size for path in cache.rglob("*.tar")) <= limit


def test_a_cache_that_cannot_be_written(remote: tuple[Path, Path], tmp_path: Path) -> None:
    local, shards = remote
    (tmp_path / "file").touch()
    with server(shards) as port, pytest.raises(UserError, match=rf"stream\.cache_dir: {tmp_path / 'file'} cannot be"):
        consume(local, shards_url=f"http://127.0.0.1:{port}", cache_dir=str(tmp_path / "file"))


def test_nothing_is_left_running(remote: tuple[Path, Path]) -> None:
    local, shards = remote
    before = psutil.Process().children(recursive=True)
    consume(local, shards_url=f"pipe:cat {shards}/{{path}}", allow_pipe=True)
    # A window that is opened ahead when the run ends is read to its end.
    deadline = time.monotonic() + 30
    while set(psutil.Process().children(recursive=True)) - set(before) or any(
        isinstance(thread, threading.Timer) for thread in threading.enumerate()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
