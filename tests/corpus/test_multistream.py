import bz2

import pytest

from tests.corpus.inputs import dump_xml, page_xml, sentences
from unibert.corpus import cleaning
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.inputs import find_inputs
from unibert.corpus.multistream import is_multistream
from unibert.corpus.readers import DocumentReader
from unibert.errors import UserError

PAGES = [page_xml(n, f"T{n}", f"Seite {n} [[Datei:B.png]]") for n in range(57)]
HEADER, ENDING = dump_xml().removesuffix("</mediawiki>\n"), "</mediawiki>\n"


def write_streams(path, *texts):
    path.write_bytes(b"".join(bz2.compress(text.encode()) for text in texts))
    return path


def multistream(path, pages_per_stream=5):
    groups = ["".join(PAGES[first : first + pages_per_stream]) for first in range(0, len(PAGES), pages_per_stream)]
    return write_streams(path, HEADER, *groups, ENDING)


def read_part(path, part, parts):
    (file,) = find_inputs([str(path)])
    reader = DocumentReader(file, part, parts)
    return [(d.id, d.text) for d in reader], reader.counts


@pytest.mark.parametrize("pages_per_stream", [1, 5, 60])
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_parts_read_the_same_documents_in_the_same_order(tmp_path, parts, pages_per_stream):
    path = multistream(tmp_path / "dewiki.xml.bz2", pages_per_stream)
    found = [read_part(path, part, parts) for part in range(parts)]
    expected = [(str(n), f"Seite {n}") for n in range(57)]
    assert [(document_id, text.strip()) for documents, _ in found for document_id, text in documents] == expected
    assert sum(counts["read"] for _, counts in found) == 57
    assert not any(counts["cut_off_files"] for _, counts in found)
    if parts == 3 and pages_per_stream < 60:
        assert all(len(documents) > 10 for documents, _ in found)


def test_a_part_reads_its_share_only(tmp_path):
    path = multistream(tmp_path / "dewiki.xml.bz2")
    content = bytearray(path.read_bytes())
    content[-400:-300] = bytes(100)
    path.write_bytes(content)
    assert len(read_part(path, 0, 2)[0]) > 20
    with pytest.raises(UserError, match="cannot be read"):
        read_part(path, 1, 2)


def test_a_cut_off_dump_is_counted_once(tmp_path):
    pages = [page_xml(n, f"T{n}", text * 8) for n, text in enumerate(sentences(57))]
    path = write_streams(tmp_path / "dewiki.xml.bz2", HEADER, *pages, ENDING)
    path.write_bytes(path.read_bytes()[:-600])
    for parts in (1, 2, 9):
        found = [read_part(path, part, parts) for part in range(parts)]
        ids = [document_id for documents, _ in found for document_id, _ in documents]
        assert 30 < len(ids) < 57  # what was read ahead of the cut, 16 kB, is lost
        assert ids == [str(n) for n in range(len(ids))]
        assert sum(counts["cut_off_files"] for _, counts in found) == 1


def test_a_dump_without_its_last_stream_is_cut_off(tmp_path):
    path = write_streams(tmp_path / "dewiki.xml.bz2", HEADER, *PAGES)
    found = [read_part(path, part, 3) for part in range(3)]
    assert [len(documents) for documents, _ in found] == [counts["read"] for _, counts in found]
    assert [counts["cut_off_files"] for _, counts in found] == [0, 0, 1]


def test_ranges_begin_only_where_a_page_does(tmp_path):
    text = "".join(PAGES) + ENDING
    pieces = (text[first : first + 100] for first in range(0, len(text), 100))
    path = write_streams(tmp_path / "dewiki.xml.bz2", HEADER, *pieces)
    assert is_multistream(path)
    ids = [document_id for part in range(5) for document_id, _ in read_part(path, part, 5)[0]]
    assert ids == [str(n) for n in range(57)]


@pytest.mark.parametrize("cut", [300, 700, 1500])
def test_streams_that_do_not_begin_with_pages_are_no_ranges(tmp_path, cut):
    text = dump_xml(*PAGES)
    path = write_streams(tmp_path / "dewiki.xml.bz2", *(text[i : i + cut] for i in range(0, len(text), cut)))
    assert not is_multistream(path)
    ids = [[int(document_id) for document_id, _ in read_part(path, part, 3)[0]] for part in range(3)]
    assert ids == [list(range(part, 57, 3)) for part in range(3)]


def test_pages_without_ids_have_different_ones(tmp_path):
    pages = [page.replace(f"<id>{n}</id>", "", 1) for n, page in enumerate(PAGES)]
    path = write_streams(tmp_path / "dewiki.xml.bz2", HEADER, *pages, ENDING)
    ids = [document_id for part in range(4) for document_id, _ in read_part(path, part, 4)[0]]
    assert len(set(ids)) == 57


def test_a_build_in_ranges_equals_one_without(tmp_path, monkeypatch):
    pages = [page_xml(n, f"T{n}", text) for n, text in enumerate(sentences(57))]
    (tmp_path / "in").mkdir()
    write_streams(tmp_path / "in" / "dewiki.xml.bz2", HEADER, *pages, pages[3], ENDING)
    manifests = []
    for number, limit in enumerate((1 << 30, 2000)):
        monkeypatch.setattr(cleaning, "_BYTES_PER_RANGE", limit)
        config = CorpusConfig(
            inputs=[str(tmp_path / "in")], output=str(tmp_path / f"{number}"), vocab_size=300, workers=1
        )
        manifests.append(build_corpus(config))
        assert (cleaning.num_parts(find_inputs(config.inputs)[0]) > 3) == (number == 1)
    assert manifests[0] == manifests[1]
