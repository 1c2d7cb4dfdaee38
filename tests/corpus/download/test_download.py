"""`unibert corpus download` from a server on this machine with the layout of Wikimedia's dumps."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.corpus.download.server import (
    DumpServer,
    cut,
    etag,
    other_bytes,
    slowly,
    stalled,
    status,
    trickling,
    whole_file,
)
from tests.corpus.inputs import page_xml, sentences, write_dump
from tests.refusals import refused
from unibert.cli import main
from unibert.command_options import DownloadOptions
from unibert.corpus.download.client import Patience
from unibert.corpus.download.run import download_dumps
from unibert.errors import UserError

DATE = "20261101"
PATIENCE = Patience(connect=5, read=0.5, attempts=4, first_pause=0.001, longest_pause=5)
CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DumpServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with DumpServer() as running:
        yield running


def download(server: DumpServer, output: Path, *languages: str, patience: Patience = PATIENCE, **options) -> None:
    download_dumps(
        DownloadOptions(languages=list(languages), output=output, mirror=server.url, **{"date": DATE, **options}),
        patience,
    )


def refusal(server: DumpServer, output: Path, *languages: str, **options) -> str:
    with pytest.raises(UserError) as raised:
        download(server, output, *languages, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder without the record."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "downloads.json"}


def record(folder: Path) -> dict:
    return json.loads((folder / "downloads.json").read_text())


def name_of(path: str) -> str:
    return path.rpartition("/")[2]


# ---- what is fetched ---------------------------------------------------------------------------------------------


def test_a_corpus_is_built_from_downloaded_dumps(server, tmp_path, capsys):
    for wiki, letters in (("viwiki", "abcdefghi"), ("ukwiki", "абвгдеєжз")):
        pages = [page_xml(n, f"P{n}", "\n\n".join(sentences(6, n, letters))) for n in range(1, 40)]
        whole, *parts = (write_dump(tmp_path / "x", *some).read_bytes() for some in (pages, pages[:20], pages[20:]))
        server.add_dump(wiki, DATE, whole, parts=parts if wiki == "ukwiki" else None)
    dumps, corpus = tmp_path / "dumps", tmp_path / "corpus"
    main(["corpus", "download", "--languages", "vi,uk", "--date", DATE, "--output", str(dumps), "--mirror", server.url])
    assert f"vi {DATE}, uk {DATE}" in capsys.readouterr().out
    main(["corpus", "build", str(dumps), "--output", str(corpus), "--vocab_size=400", "--workers=1"])
    report = json.loads((corpus / "report.json").read_text())
    assert {code: report["languages"][code]["read"] for code in ("vi", "uk")} == {"vi": 39, "uk": 39}


def test_the_file_is_the_server_s_and_the_record_says_where_it_is_from(server, tmp_path):
    path = server.add_dump("zh_yuewiki", DATE, CONTENT)
    download(server, tmp_path, "zh-yue")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    written = record(tmp_path)
    entry = written["files"][name_of(path)]
    assert entry.pop("modified_ns") == (tmp_path / name_of(path)).stat().st_mtime_ns
    assert entry == {
        "language": "zh-yue",
        "date": DATE,
        "url": server.url + path,
        "size": len(CONTENT),
        "sha1": hashlib.sha1(CONTENT).hexdigest(),
    }
    assert "CC BY-SA" in written["license"]


def test_requests_name_the_program_and_a_contact(server, tmp_path):
    server.add_dump("viwiki", DATE, CONTENT)
    download(server, tmp_path, "vi", contact="me@example.org")
    assert {request.user_agent.split("httpx")[0] for request in server.requests} == {"UniBERT/0.1.0 (me@example.org) "}


def test_a_wiki_is_fetched_once_by_any_of_its_names(server, tmp_path):
    paths = {server.add_dump(f"{wiki}wiki", DATE, CONTENT) for wiki in ("zh_yue", "be_x_old", "map_bms", "no")}
    download(server, tmp_path, "yue", "zh-yue", "be-tarask", "be-x-old", "map-bms", "map_bms", "nb", "no")
    assert len(server.paths()) == 4
    assert set(server.paths()) == paths


def test_latest_is_the_newest_finished_dump(server, tmp_path):
    server.add_dump("viwiki", "20261001", b"old")
    path = server.add_dump("viwiki", "20261020", CONTENT)
    server.add_dump("viwiki", DATE, job_status="in-progress")
    server.files["/viwiki/20261115/only-a-folder"] = b""
    server.add_dump("viwiki", "20260901", b"older")
    download(server, tmp_path, "vi", date="latest")
    assert contents(tmp_path) == {name_of(path): CONTENT}


@pytest.mark.parametrize("parts", [True, False])
def test_a_large_dump_comes_in_parts_or_as_one_file_but_not_both(server, tmp_path, parts):
    path = server.add_dump("enwiki", DATE, CONTENT, parts=[CONTENT[:1000], CONTENT[1000:]])
    download(server, tmp_path, "en", parts=parts)
    fetched = contents(tmp_path)
    if parts:
        assert b"".join(fetched[name] for name in sorted(fetched)) == CONTENT
        assert len(fetched) == 2
    else:
        assert fetched == {name_of(path): CONTENT}


def test_nothing_is_fetched_twice(server, tmp_path):
    paths = [server.add_dump(wiki, DATE, CONTENT) for wiki in ("viwiki", "ukwiki")]
    download(server, tmp_path, "vi")
    download(server, tmp_path, "vi", "uk", "vi")
    assert sorted(server.paths()) == sorted(paths)
    (tmp_path / "downloads.json").unlink()
    download(server, tmp_path, "vi", "uk")
    assert len(server.paths()) == 2
    assert len(record(tmp_path)["files"]) == 2


def test_a_file_that_was_changed_here_is_fetched_again(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    download(server, tmp_path, "vi")
    (tmp_path / name_of(path)).write_bytes(CONTENT[:-1] + b"?")
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}


# ---- cut connections and broken servers --------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_was(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    # More cuts than attempts: each brings something new.
    server.faults[path] = [cut(10_000)] * 6
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert server.ranges(path) == [None, *(f"bytes={n}0000-" for n in range(1, 7))]


def test_a_stalled_connection_counts_as_cut(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.faults[path] = [stalled(10_000)]
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert server.ranges(path) == [None, "bytes=10000-"]


def test_a_connection_that_brings_a_byte_now_and_then_counts_as_cut(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.faults[path] = [trickling]
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert int(server.ranges(path)[1].strip("bytes=-")) < 1000


def test_a_server_without_ranges_sends_the_whole_again(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.faults[path] = [cut(10_000), whole_file]
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}


def test_a_server_that_always_cuts_at_the_same_place_without_ranges_is_given_up(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.faults[path] = [lambda handler: (handler.headers.__delitem__("Range"), cut(10_000)(handler))] * 100
    assert "the connection was cut, 4 times in a row" in refusal(server, tmp_path, "vi")
    assert len(server.paths()) == 4


@pytest.mark.parametrize("wrong_range", ["bytes 0-9/300000", "bytes 10000-299999/400000", ""])
def test_a_wrong_range_is_not_appended(server, tmp_path, wrong_range):
    path = server.add_dump("viwiki", DATE, CONTENT)
    wrong = lambda handler: handler.send(206, bytes(290_000), Content_Range=wrong_range)  # noqa: E731
    # If wrong bytes were appended, the checksum would be wrong twice.
    server.faults[path] = [cut(10_000), wrong] * 2
    download(server, tmp_path, "vi", patience=replace(PATIENCE, attempts=9))
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert server.ranges(path) == [None, "bytes=10000-", None, "bytes=10000-", None]


def test_a_file_that_changed_meanwhile_starts_anew(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.files[path] = bytes(len(CONTENT))
    server.faults[path] = [cut(10_000), *[status(500)] * 3]
    refusal(server, tmp_path, "vi")
    assert contents(tmp_path)[f"{name_of(path)}.part"] == bytes(10_000)
    server.files[path] = CONTENT
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    # One more request suffices: it asks for the rest of the old file, or else for the whole.
    assert server.ranges(path) == [None, *["bytes=10000-"] * 4]


@pytest.mark.parametrize("origin", [None, "{", {"sha1": "0" * 40, "validator": etag(CONTENT)}])
def test_a_part_of_unknown_origin_or_of_another_dump_is_not_continued(server, tmp_path, origin):
    path = server.add_dump("viwiki", DATE, CONTENT)
    (tmp_path / f"{name_of(path)}.part").write_bytes(bytes(10_000))
    if origin is not None:
        (tmp_path / f"{name_of(path)}.part.json").write_text(origin if origin == "{" else json.dumps(origin))
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert server.ranges(path) == [None]


def test_a_complete_part_needs_no_request(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.faults[path] = [cut(10_000), *[status(500)] * 3]
    refusal(server, tmp_path, "vi")
    (tmp_path / f"{name_of(path)}.part").write_bytes(CONTENT)
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert len(server.paths()) == 4


def test_a_wrong_checksum_is_fetched_once_more(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.faults[path] = [other_bytes(bytes(len(CONTENT)))]
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}


def test_a_checksum_that_stays_wrong_is_an_error_that_names_the_file(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT, sha1="0" * 40)
    error = refusal(server, tmp_path, "vi")
    assert f"{server.url}{path}: the checksum is wrong, 2 times" in error
    assert server.paths() == [path, path]
    assert not contents(tmp_path)


def test_a_page_of_a_proxy_does_not_replace_what_there_is(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.faults[path] = [cut(10_000), other_bytes(b"<html>log in</html>")]
    assert "sends 19 bytes, but the dump's status says 300000" in refusal(server, tmp_path, "vi")
    assert contents(tmp_path)[f"{name_of(path)}.part"] == CONTENT[:10_000]


def test_errors_of_the_server_are_retried_a_limited_number_of_times(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.faults[path] = [status(500), status(502), status(503)]
    server.faults[f"/viwiki/{DATE}/dumpstatus.json"] = [status(500), stalled(0)]
    download(server, tmp_path / "a", "vi")
    assert contents(tmp_path / "a") == {name_of(path): CONTENT}
    server.faults[path] = [status(500)] * 9
    error = refusal(server, tmp_path / "b", "vi")
    assert "1 of 1 languages could not be fetched" in error
    assert f"{path}: the server answers 500 Internal Server Error, 4 times in a row" in error
    assert len(server.faults[path]) == 5


def test_the_pause_that_a_server_asks_for_holds_for_all_requests(server, tmp_path):
    paths = [server.add_dump(wiki, DATE, CONTENT) for wiki in ("viwiki", "ukwiki")]
    server.faults[paths[0]] = [status(429, Retry_After="1")]
    server.faults[paths[1]] = [slowly(0.3, cut(10_000))]
    download(server, tmp_path, "vi", "uk", patience=replace(PATIENCE, read=60))
    assert len(contents(tmp_path)) == 2
    busy, cut_off, *later = (request for request in server.requests if request.path in paths)
    assert {busy.path, cut_off.path} == set(paths)
    asked = next(request.time for request in (busy, cut_off) if request.path == paths[0])
    assert len(later) == 2
    assert all(request.time >= asked + 1 for request in later)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_pause_that_is_too_long_ends_the_command(server, tmp_path, form):
    path = server.add_dump("viwiki", DATE, CONTENT)
    server.add_dump("ukwiki", DATE, CONTENT)
    retry_after = "3600" if form == "seconds" else formatdate(time.time() + 3600, usegmt=True)
    server.faults[path] = [status(503, Retry_After=retry_after)]
    error = refusal(server, tmp_path, "vi", "uk")
    assert re.search(r"and asks to wait 3[56]\d\d s; start the same command again then", error)


def test_a_server_that_does_not_listen(server, tmp_path):
    silent = DumpServer()
    silent.server_close()
    error = refusal(silent, tmp_path, "vi", "uk", "de")
    assert error.startswith(f"{silent.url}/")
    assert "no connection" in error
    assert "3 times in a row; check the network, HTTPS_PROXY and --mirror" in error


def test_at_most_two_requests_at_a_time(server, tmp_path):
    wikis = [f"{code}wiki" for code in ("vi", "uk", "de", "fr", "nl")]
    for wiki in wikis:
        server.faults[server.add_dump(wiki, DATE, CONTENT)] = [slowly(0.05)]
        server.faults[f"/{wiki}/{DATE}/dumpstatus.json"] = [slowly(0.05)]
    download(server, tmp_path, *(wiki.removesuffix("wiki") for wiki in wikis))
    assert len(contents(tmp_path)) == 5
    assert server.most_active == 2


# ---- what cannot be fetched --------------------------------------------------------------------------------------


def test_languages_that_fail_do_not_stop_the_others(server, tmp_path, capsys):
    path = server.add_dump("viwiki", DATE, CONTENT)
    damaged = server.add_dump("frwiki", DATE, CONTENT, sha1="0" * 40)
    server.add_dump("ukwiki", "20261001", CONTENT)
    server.add_dump("ukwiki", "20260901", CONTENT)
    server.add_dump("dewiki", DATE, job_status="in-progress")
    output, error = refused(
        capsys,
        *("corpus", "download", "--languages", "xx,uk,de,fr,vi", "--date", DATE, "--output", tmp_path),
        *("--mirror", server.url),
    )
    assert "4 of 5 languages could not be fetched: " in error
    assert f"xx: {server.url}/xxwiki/ does not exist; languages are named as in" in error
    assert f"uk: {server.url}/ukwiki/ has no dump of {DATE}; the dates there are 20261001, 20260901" in error
    assert f"de: the dump of {DATE} is not finished (in-progress); name an earlier --date" in error
    assert f"{damaged}: the checksum is wrong" in error
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert f"1 file, 300 kB (vi {DATE})" in output


def test_no_dump_is_finished(server, tmp_path):
    server.add_dump("dewiki", DATE, job_status="waiting")
    error = refusal(server, tmp_path, "de", date="latest")
    assert f"de: {server.url}/dewiki/ has no finished dump (dates: {DATE})" in error


@pytest.mark.parametrize("text", ["<html>", "[]", '{"jobs": {"articlesmultistreamdump": {"status": "done"}}}'])
def test_a_status_that_cannot_be_read(server, tmp_path, text):
    server.add_dump("viwiki", DATE, CONTENT)
    server.files[f"/viwiki/{DATE}/dumpstatus.json"] = text.encode()
    assert f"/viwiki/{DATE}/dumpstatus.json is not the status of a dump" in refusal(server, tmp_path, "vi")


def test_names_in_the_status_cannot_leave_the_folder(server, tmp_path):
    server.add_dump("viwiki", DATE, CONTENT)
    path = f"/viwiki/{DATE}/dumpstatus.json"
    prefix = f"viwiki-{DATE}-pages-articles-multistream"
    server.files[path] = server.files[path].replace(prefix.encode(), f"../{prefix}".encode())
    assert "is not finished (without sizes and checksums of its articles)" in refusal(server, tmp_path, "vi")


def test_a_server_that_refuses_is_asked_for_once(server, tmp_path):
    server.faults[f"/viwiki/{DATE}/dumpstatus.json"] = [status(403)] * 9
    assert "give an e-mail address with --contact" in refusal(server, tmp_path, "vi")
    assert len(server.requests) == 1


def test_a_folder_with_the_articles_of_another_dump(server, tmp_path):
    old = server.add_dump("viwiki", "20261001", b"old")
    server.add_dump("viwiki", DATE, CONTENT)
    other = server.add_dump("ukwiki", DATE, CONTENT)
    download(server, tmp_path, "vi", date="20261001")
    error = refusal(server, tmp_path, "vi", "uk")
    assert f"vi: {tmp_path} also holds {name_of(old)}" in error
    assert set(contents(tmp_path)) == {name_of(old), name_of(other)}


def test_a_disk_without_room_is_said_before_the_download(server, tmp_path):
    server.add_dump("viwiki", DATE, CONTENT)
    path = f"/viwiki/{DATE}/dumpstatus.json"
    server.files[path] = server.files[path].replace(b'"size": 300000', b'"size": 9000000000000000')
    assert "output: the dumps need another 9,000 TB, but the disk of" in refusal(server, tmp_path, "vi")
    assert not server.paths()


def test_two_downloads_into_one_folder(server, tmp_path):
    server.add_dump("viwiki", DATE, CONTENT)
    first = start(server, tmp_path, stall_at=1000)
    assert "another process downloads into" in refusal(server, tmp_path, "vi")
    first.kill()
    first.wait()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--languages="], "languages: name at least one"),
        (["--languages", "../en"], "languages: '../en' is not a code of Wikipedia"),
        (["--languages=vi", "--date", "2026-11-01"], "date: must be latest or a date as in 20261101"),
        (["--languages=vi", "--mirror", "dumps.wikimedia.org"], "mirror: must be an address that begins with https://"),
        (["--languages=vi", "--contact", "é"], "contact: must be plain ASCII text"),
        ([], "--languages is missing"),
    ],
)
def test_mistakes_in_options(words, sentence, capsys):
    assert sentence in refused(capsys, "corpus", "download", *words)[1]


# ---- stops -------------------------------------------------------------------------------------------------------


def download_words(server: DumpServer, output: Path) -> list[str]:
    mirror = f"--mirror={server.url}"
    return ["corpus", "download", "--languages=vi", f"--date={DATE}", f"--output={output}", mirror]


def start(server: DumpServer, output: Path, *, stall_at: int | None = None, **popen) -> subprocess.Popen[str]:
    """Start the command for the dump ``vi``; return when the first ``stall_at`` bytes, if any, are in the folder."""
    path = f"/viwiki/{DATE}/viwiki-{DATE}-pages-articles-multistream.xml.bz2"
    if stall_at is not None:
        server.faults[path] = [stalled(stall_at)]
    process = subprocess.Popen(
        [sys.executable, "-m", "unibert", *download_words(server, output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        **popen,
    )
    part = output / f"{name_of(path)}.part"
    while stall_at is not None and not (part.exists() and part.stat().st_size == stall_at):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_download_goes_on_with_the_same_command(server, tmp_path, number):
    path = server.add_dump("viwiki", DATE, CONTENT)
    process = start(server, tmp_path, stall_at=100_000)
    process.send_signal(number)
    _, error = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, error) == (75, "unibert: the download has stopped; the same command goes on\n")
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert server.ranges(path) == [None, "bytes=100000-"]


def test_a_file_system_that_takes_no_larger_file(server, tmp_path):
    path = server.add_dump("viwiki", DATE, CONTENT)
    process = start(server, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)))
    _, error = process.communicate()
    assert (process.returncode, error.count("\n")) == (1, 1)
    assert f"output: the disk of {tmp_path} is full or takes no larger file" in error
    assert contents(tmp_path)[f"{name_of(path)}.part"] == CONTENT[:200_000]
    download(server, tmp_path, "vi")
    assert contents(tmp_path) == {name_of(path): CONTENT}
    assert server.ranges(path) == [None, "bytes=200000-"]


def has_disks_of_its_own() -> bool:
    words = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


wants_disks = pytest.mark.skipif(
    not has_disks_of_its_own(), reason="wants `unshare --mount`, which this system refuses"
)


def download_to_a_small_disk(server: DumpServer, folder: Path, before: str) -> subprocess.CompletedProcess[str]:
    """Run the command with ``folder`` on a disk of 1 MiB after the statements ``before``, which may use ``folder``;
    then print the names and sizes of the files."""
    program = (
        "import sys; from pathlib import Path; import unibert.corpus.download.run as run\n"
        "from unibert.cli import main\n"
        f"folder = Path({str(folder)!r})\n"
        f"{before}\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print(*(f'{path.name} {path.stat().st_size}' for path in folder.iterdir()))\n"
    )
    script = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    words = [sys.executable, "-c", program, *download_words(server, folder)]
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder), *words],
        capture_output=True,
        text=True,
    )


@wants_disks
def test_a_disk_that_fills_up(server, tmp_path):
    """A neighbour's file takes the room after the check of the disk's size."""
    server.add_dump("viwiki", DATE, CONTENT)
    before = (
        "fetch = run.fetch_file\n"
        "def fetch_beside_a_neighbour(*words):\n"
        "    (folder / 'neighbour').write_bytes(bytes(850_000))\n"
        "    return fetch(*words)\n"
        "run.fetch_file = fetch_beside_a_neighbour\n"
    )
    done = download_to_a_small_disk(server, tmp_path, before)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "is full or takes no larger file" in done.stderr
    size = int(done.stdout.split(".part ")[1].split()[0])
    assert 0 < size < len(CONTENT)


@wants_disks
def test_what_there_is_needs_no_more_room(server, tmp_path):
    content = bytes(700_000) + CONTENT[:200_000]
    path = server.add_dump("viwiki", DATE, content)
    origin = {"sha1": hashlib.sha1(content).hexdigest(), "validator": etag(content)}
    before = (
        f"(folder / '{name_of(path)}.part').write_bytes(bytes(700_000))\n"
        f"(folder / '{name_of(path)}.part.json').write_text({json.dumps(origin)!r})\n"
    )
    done = download_to_a_small_disk(server, tmp_path, before)
    assert done.returncode == 0, done.stderr
    assert server.ranges(path) == ["bytes=700000-"]
