"""Parquet files in the layouts of the Hugging Face hub."""

import sys
from pathlib import Path

import pytest

from unibert.corpus.inputs import find_inputs
from unibert.corpus.parquet import parquet_language, read_parquet
from unibert.corpus.readers import Document, DocumentReader
from unibert.errors import UserError

COUNT = 700
TEXTS = [f"Bài viết {n}\n\nđoạn {n}" for n in range(COUNT)]
TITLES = [f"Tên {n}" for n in range(COUNT)]


def write(path: Path, **columns: list) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path, row_group_size=300)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    return [row for batch in read_parquet(path) for row in batch]


def expected(ids: list) -> list[dict[str, str]]:
    return [{"id": str(i), "title": t, "text": x} for i, t, x in zip(ids, TITLES, TEXTS, strict=True)]


def test_the_layout_of_wikimedia(tmp_path):
    ids = [str(3 * n) for n in range(COUNT)]
    urls = ["https://vi.wikipedia.org/"] * COUNT
    path = write(tmp_path / "20231101.vi" / "train-00000-of-00001.parquet", id=ids, url=urls, title=TITLES, text=TEXTS)
    assert rows(path) == expected(ids)
    assert len(list(read_parquet(path))) > 1
    assert parquet_language(path) == "vi"


def test_the_layout_of_finewiki(tmp_path):
    numbers = list(range(COUNT))
    path = write(
        tmp_path / "data" / "zh_yuewiki" / "000_00000.parquet",
        text=TEXTS,
        id=[f"zh_yuewiki/{n}" for n in numbers],
        page_id=numbers,
        title=TITLES,
        infoboxes=[{"a": n} for n in numbers],
    )
    assert rows(path) == expected(numbers)
    assert parquet_language(path) == "zh-yue"


def test_text_alone_and_missing_values(tmp_path):
    assert rows(write(tmp_path / "a.parquet", text=["a", None])) == [
        {"title": "", "text": "a"},
        {"title": "", "text": ""},
    ]
    assert parquet_language(Path("a.parquet")) == parquet_language(Path("en/a.parquet")) == ""


def test_files_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "a.parquet", text=TEXTS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet .*fetch it again"):
        rows(path)
    damaged = write(tmp_path / "b.parquet", text=TEXTS)
    content = bytearray(damaged.read_bytes())
    content[4:2000] = bytes(1996)
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read as Parquet"):
        rows(damaged)
    for columns in ({"content": TEXTS}, {"text": list(range(COUNT))}):
        with pytest.raises(UserError, match=r'c\.parquet: no column "text" with strings; the columns are'):
            rows(write(tmp_path / "c.parquet", **columns))


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"a\.parquet: reading Parquet needs pyarrow; install unibert\[parquet\]"):
        rows(tmp_path / "a.parquet")


def test_a_build_reads_them(tmp_path):
    name = "train-00000-of-00001.parquet"
    folder = write(tmp_path / "20231101.vi" / name, id=["7", None, ""], title=TITLES[:3], text=TEXTS[:3]).parent
    (file,) = find_inputs([str(folder)])
    assert (file.language, file.kind) == ("vi", "parquet")
    (given,) = find_inputs([f"km={folder / name}"])
    assert given.language == "km"
    ids = ["7", f"{name}:2", f"{name}:3"]
    assert list(DocumentReader(file)) == [
        Document(number, "vi", title, text, name) for number, title, text in zip(ids, TITLES, TEXTS, strict=False)
    ]
