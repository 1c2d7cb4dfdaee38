"""Files replace older ones atomically."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from unibert.errors import UserError
from unibert.files import file_sha256, locked, replacing, write_atomically, write_json


def test_content_is_written_as_given(tmp_path):
    write_atomically(tmp_path / "bytes", b"\r\n\x00")
    write_atomically(tmp_path / "text", "één\n")
    write_json(tmp_path / "json", {"een": [1, None]})
    assert (tmp_path / "bytes").read_bytes() == b"\r\n\x00"
    assert (tmp_path / "text").read_bytes() == "één\n".encode()
    assert json.loads((tmp_path / "json").read_text()) == {"een": [1, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "json", "text"]


def test_an_interrupted_write_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    write_atomically(path, "old")

    def write_half() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_raises_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "file", "text")


def test_the_file_is_complete_while_processes_write_it_at_once(tmp_path):
    """Each process repeatedly writes a file of many blocks that repeats the process's letter."""
    path = tmp_path / "file"
    script = "import sys\nfrom pathlib import Path\nfrom unibert.files import write_atomically\n"
    script += "for _ in range(200): write_atomically(Path(sys.argv[1]), sys.argv[2] * 100_000)\n"
    write_atomically(path, "c" * 100_000)
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        text = path.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_digest_is_that_of_the_content(tmp_path):
    path: Path = tmp_path / "file"
    for content in (b"", b"abc", bytes(range(256)) * 100_000):
        path.write_bytes(content)
        assert file_sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["file", "."])
def test_a_lock_ends_with_its_process(tmp_path, name):
    code = (
        "import sys, time; from pathlib import Path; from unibert.files import locked\n"
        "with locked(Path(sys.argv[1]), ''):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    path = tmp_path / name
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="wait for it"), locked(path, "wait for it"):
            pass
        process.kill()
    with locked(path, ""):
        pass
