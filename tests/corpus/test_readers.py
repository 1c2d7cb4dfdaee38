import bz2
import gzip
import json
import lzma
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
import zstandard

from tests.corpus.inputs import dump_xml, page_xml, read, write_dump, write_jsonl
from unibert.corpus.inputs import find_inputs
from unibert.corpus.readers import DocumentReader
from unibert.errors import TransientError, UserError

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("ending", COMPRESS)
def test_every_kind_in_every_compression(tmp_path, ending):
    compress = COMPRESS[ending]
    wiki, jsonl, text = (tmp_path / f"{name}{ending}" for name in ("dewiki-1-pages.xml", "af.jsonl", "sv.txt"))
    wiki.write_bytes(compress(dump_xml(page_xml(7, "Käse", "Käse ist '''gut'''.")).encode()))
    jsonl.write_bytes(compress(b'{"id": 3, "text": "een", "src": "s", "title": "t"}\n\n{"text": "twee\\ndrie"}\n'))
    text.write_bytes(compress("ett\nen rad\n\n\ntvå\n".encode()))

    (page,), counts = read(wiki)
    assert (page.id, page.language, page.title, page.text) == ("7", "de", "Käse", "Käse ist gut.")
    assert counts == {"read": 1}

    documents, _ = read(jsonl)
    assert [(d.id, d.language, d.title, d.text, d.source) for d in documents] == [
        ("3", "af", "t", "een", "s"),
        (f"af.jsonl{ending}:3", "af", "", "twee\ndrie", f"af.jsonl{ending}"),
    ]
    documents, _ = read(text)
    assert [d.text for d in documents] == ["ett\nen rad\n", "två\n"]


def test_redirects_and_other_namespaces_are_counted_not_read(tmp_path):
    path = write_dump(
        tmp_path / "dewiki.xml.bz2",
        page_xml(1, "A", "Text von A"),
        page_xml(2, "B", "#WEITERLEITUNG [[A]]", redirect="A"),
        page_xml(3, "C", "#REDIRECT [[A]]"),
        page_xml(4, "Diskussion:A", "Text", ns=1),
        page_xml(5, "Vorlage:A", "Text", ns=10),
        page_xml(6, "D", "return {}", model="Scribunto"),
    )
    documents, counts = read(path)
    assert [d.id for d in documents] == ["1"]
    assert counts == {"read": 6, "redirect": 2, "not_an_article": 2, "not_wikitext": 1}


def test_namespace_names_come_from_the_dump(tmp_path):
    text = "Berlin [[Datei:B.webm|mini|Bild]] ist [[Kategorie:Stadt]]gut."
    (page,), _ = read(write_dump(tmp_path / "dewiki.xml.bz2", page_xml(1, "A", text)))
    assert page.text == "Berlin ist gut."


def test_a_dump_without_siteinfo_and_with_several_revisions(tmp_path):
    page = page_xml(1, "A", "alt")
    newer = page.replace(">alt<", ">neu<")
    both = page.replace("</page>", newer[newer.index("<revision>") :])
    path = tmp_path / "dewiki.xml"
    path.write_text(dump_xml(both, siteinfo=""))
    assert [d.text for d in read(path)[0]] == ["neu"]


def test_malformed_and_too_long_pages_are_counted(tmp_path):
    path = write_dump(
        tmp_path / "dewiki.xml.bz2",
        page_xml(1, "A", "gut").replace("<id>1</id>", "<id>eins</id>"),
        page_xml(2, "B", "gut").replace("<sha1>", "<unknown/><sha1>"),
        page_xml(3, "C", "{{{a|" * 30_000),
        page_xml(4, "D", "x" * 2_000_000),
        page_xml(5, "E", "gut"),
    )
    documents, counts = read(path)
    assert [d.id for d in documents] == ["3", "5"]
    assert counts == {"read": 5, "malformed_page": 2, "too_long_page": 1}


def test_parts_share_a_file(tmp_path):
    path = write_dump(tmp_path / "dewiki.xml.bz2", *(page_xml(n, "A", f"Seite {n}", ns=n % 2) for n in range(20)))
    (file,) = find_inputs([str(path)])
    readers = [DocumentReader(file, part, parts=3) for part in range(3)]
    ids = [[d.id for d in reader] for reader in readers]
    assert sorted((i for part in ids for i in part), key=int) == [str(n) for n in range(0, 20, 2)]
    assert all(len(part) in (3, 4) for part in ids)
    assert sum(reader.counts["read"] for reader in readers) == 20
    assert sum(reader.counts["not_an_article"] for reader in readers) == 10


def test_memory_stays_small_over_a_large_file(tmp_path):
    talk = page_xml(1, "A", "Ein Satz. " * 10_000, ns=1)
    dump = write_dump(tmp_path / "dewiki.xml.bz2", *[talk] * 100)
    lines = write_jsonl(tmp_path / "af.jsonl", [{"text": "x" * 100_000}] * 100)
    tracemalloc.start()
    for path in (dump, lines):
        (file,) = find_inputs([str(path)])
        reader = DocumentReader(file)
        for _ in reader:
            pass
        assert reader.counts["read"] == 100
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # the files hold 10 MB of text each


def test_memory_does_not_grow_with_the_number_of_pages(tmp_path):
    path = tmp_path / "dewiki.xml"
    path.write_text(dump_xml("<page><title>A</title><ns>1</ns><id>1</id></page>" * 30_000))
    (file,) = find_inputs([str(path)])
    tracemalloc.start()
    assert list(DocumentReader(file)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # an element left behind for each page would take more than twice as much


def test_only_one_revision_of_a_page_is_in_memory(tmp_path):
    page = page_xml(1, "A", "Ein Satz. " * 10_000)
    revision = page[page.index("<revision>") : page.index("</page>")]
    last = page_xml(1, "A", "Der letzte.")
    path = tmp_path / "dewiki.xml"
    path.write_text(dump_xml(last.replace("<revision>", revision * 100 + "<revision>")))
    tracemalloc.start()
    documents, _ = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d.text for d in documents] == ["Der letzte."]
    assert peak < 3_000_000  # a revision has 100 kB, all have 10 MB


def test_memory_does_not_grow_with_the_number_of_revisions(tmp_path):
    path = tmp_path / "dewiki.xml"
    revisions = "<revision><text>alt</text></revision>" * 20_000 + "<revision><text>neu</text></revision>"
    path.write_text(dump_xml(f"<page><title>A</title><ns>0</ns><id>1</id>{revisions}</page>"))
    tracemalloc.start()
    documents, _ = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d.text for d in documents] == ["neu"]
    assert peak < 1_000_000  # an element left behind for each revision would take more than twice as much


def test_a_huge_page_is_dropped_without_being_in_memory(tmp_path):
    huge = page_xml(1, "A", "x").replace(">x<", f">{'Tom &amp; Jerry &#228; ' * 300_000}<")
    path = tmp_path / "dewiki.xml.bz2"
    path.write_bytes(bz2.compress(dump_xml(huge, page_xml(2, "B", "Text &"), siteinfo="").encode(), 1))
    (file,) = find_inputs([str(path)])
    reader = DocumentReader(file, max_page_characters=10_000)
    tracemalloc.start()
    documents = list(reader)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d.text for d in documents] == ["Text &"]
    assert reader.counts == {"read": 2, "too_long_page": 1}
    assert peak < 3_000_000  # the page has 7 MB


@pytest.mark.parametrize("size", [9_999, 10_000, 10_001])
def test_the_longest_page_that_is_read(tmp_path, size):
    path = write_dump(tmp_path / "dewiki.xml.bz2", page_xml(1, "A", "&" * (size - 1) + "x"))
    (file,) = find_inputs([str(path)])
    reader = DocumentReader(file, max_page_characters=10_000)
    documents = list(reader)
    assert [len(d.text) for d in documents] == [size] * (size <= 10_000)


def test_null_and_empty_ids_are_as_none(tmp_path):
    records = [{"id": i, "text": "een", "title": None, "src": None} for i in (None, "", " ", 0, "b")]
    path = write_jsonl(tmp_path / "af.jsonl", records)
    documents, _ = read(path)
    assert [d.id for d in documents] == ["af.jsonl:1", "af.jsonl:2", "af.jsonl:3", "0", "b"]
    assert {(d.title, d.source) for d in documents} == {("", "af.jsonl")}


def test_pages_without_an_id(tmp_path):
    page = page_xml(1, "A", "gut").replace("<id>1</id><revision>", "<revision>")
    path = write_dump(tmp_path / "dewiki.xml.bz2", page, page_xml(7, "B", "gut"), page)
    assert [d.id for d in read(path)[0]] == ["dewiki.xml.bz2:1", "7", "dewiki.xml.bz2:3"]


@pytest.mark.parametrize(
    ("text", "element", "is_redirect"),
    [
        ("#Stone [[bridge]] of the old harbour\n#Iron [[bridge]] of the island", "", False),
        ("#पुनर्प्रेषित [[क]]", "<redirect />", True),
        ("#पुनर्प्रेषित [[क]]", "", True),
        ("#เปลี่ยนทาง [[ก]]", "", True),
        ("#வழிமாற்று [[அ]]", "", True),
        ("#পুনর্নির্দেশ [[ক]]", "", True),
        ("#अनुप्रेषित\n[[क]]", "", True),
        ("#YÖNLENDİRME [[A]]", "", True),
        (unicodedata.normalize("NFD", "#REDIRECCIÓN [[A]]"), "", True),
        ("#تغییر مسیر [[A]]", "", True),
        ("#Weiterleitung: [[A]]", "", True),
        ("Kein bekanntes Wort", "<redirect />", True),
        ("Kein bekanntes Wort", '<redirect title="A" />', True),
        ("#redirection is the first item [[A]]", "", False),
    ],
)
def test_redirects_by_element_and_by_word(tmp_path, text, element, is_redirect):
    page = page_xml(1, "B", text).replace("<revision>", f"{element}<revision>")
    _, counts = read(write_dump(tmp_path / "hiwiki.xml.bz2", page))
    assert counts == ({"read": 1, "redirect": 1} if is_redirect else {"read": 1})


def test_lines_end_at_newlines_only(tmp_path):
    path = write_jsonl(tmp_path / "af.jsonl", [{"text": "a\u2028b\u0085c"}, {"text": "d"}])
    assert [d.text for d in read(path)[0]] == ["a\u2028b\u0085c", "d"]
    path.write_bytes(b'{"text":\r"e"}\n')
    assert [d.text for d in read(path)[0]] == ["e"]


def test_a_text_file_without_blank_lines_is_not_one_document(tmp_path):
    path = tmp_path / "af.txt"
    path.write_text("een reël teks wat nie eindig nie\n" * 100_000)
    documents, _ = read(path)
    assert len(documents) > 2
    assert sum(d.text.count("\n") for d in documents) == 100_000


def test_byte_order_mark_and_lone_surrogates(tmp_path):
    path = tmp_path / "af.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "\\ud800", "text": "een"}\n')
    (document,), _ = read(path)
    assert document.text == "een"
    document.id.encode()


# damage


def _dump_of(count):
    return dump_xml(*(page_xml(n, f"T{n}", f"Seite {n} " + "von vielen " * 50) for n in range(count))).encode()


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_dump_cut_off_keeps_what_was_read(tmp_path, ending):
    # zlib and bz2 give out whole blocks only, so there must be several of them before the cut
    blocks = [COMPRESS[ending](part) for part in (_dump_of(400)[:40_000], _dump_of(400)[40_000:])]
    path = tmp_path / f"dewiki.xml{ending}"
    path.write_bytes(blocks[0] + blocks[1][: len(blocks[1]) // 2])
    documents, counts = read(path)
    assert 30 < len(documents) < 400
    assert counts["cut_off_files"] == 1
    assert documents[-1].text.startswith(f"Seite {len(documents) - 1} ")


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.999])
def test_a_cut_at_any_byte(tmp_path, cut):
    content = _dump_of(200).replace(b"von", "vön".encode())
    for offset in range(4):
        path = tmp_path / "dewiki.xml"
        path.write_bytes(content[: int(cut * len(content)) + offset])
        documents, counts = read(path)
        assert counts["cut_off_files"] == 1
        # a page has 1 kB; a cut within a character loses what was read ahead, 16 kB
        assert 200 * cut - 20 < len(documents) < 200 * cut + 2


def test_cut_off_lines_are_counted(tmp_path):
    path = tmp_path / "af.jsonl"
    path.write_text('{"text": "een"}\n{"text": "twe')
    assert ([d.text for d in read(path)[0]], read(path)[1]["cut_off_files"]) == (["een"], 1)
    path = tmp_path / "af.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "een"}\n' * 1000)[:-10])
    documents, counts = read(path)
    assert counts["cut_off_files"] == 1
    assert documents


@pytest.mark.parametrize(
    "start", ['{"text": "', '{"text": "een", "id": tru', '{"text": "\\u00', '{"text"', "{", '{"id": -']
)
def test_a_last_line_that_is_the_beginning_of_an_object_is_cut_off(tmp_path, start):
    path = tmp_path / "af.jsonl"
    path.write_text('{"text": "een"}\n' + start)
    documents, counts = read(path)
    assert ([d.text for d in documents], counts["cut_off_files"]) == (["een"], 1)


RECORDS = [b"".join(b'{"text": "%d"}\n' % n for n in range(first, first + 30)) for first in (0, 30)]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize(("between", "after"), [(b"", b""), (b"", b"\0" * 700), (b"", b"\0" * 5000)])
def test_streams_may_follow_one_another_and_end_in_zeros(tmp_path, ending, between, after):
    path = tmp_path / f"af.jsonl{ending}"
    path.write_bytes(between.join(COMPRESS[ending](part) for part in RECORDS) + after)
    documents, counts = read(path)
    assert [d.text for d in documents] == [str(n) for n in range(60)]
    assert "cut_off_files" not in counts


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize(
    ("between", "after"), [(b"garbage", b""), (b"", b"garbage"), (b"\0" * 5000, b""), (b"", b"\0\0\0\0garbage")]
)
def test_bytes_that_are_no_stream_are_an_error(tmp_path, ending, between, after):
    path = tmp_path / f"af.jsonl{ending}"
    path.write_bytes(between.join(COMPRESS[ending](part) for part in RECORDS) + after)
    with pytest.raises(UserError, match=f"cannot be read after document {30 if between else 60} "):
        read(path)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_that_ends_within_a_stream_is_cut_off(tmp_path, ending):
    content = COMPRESS[ending](RECORDS[0])
    last = COMPRESS[ending](RECORDS[1])
    path = tmp_path / f"af.jsonl{ending}"
    for size in (1, len(last) // 2, len(last) - 1):
        path.write_bytes(content + last[:size])
        documents, counts = read(path)
        assert len(documents) >= 30
        assert counts["cut_off_files"] == 1
    path.write_bytes(b"")
    assert read(path) == ([], {"cut_off_files": 1})


BOMB = '<!DOCTYPE m [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dewiki.xml", BOMB.encode() + dump_xml(page_xml(1, "A", "x")).encode(), "document type declaration"),
        ("dewiki.xml", b'<!DOCTYPE m SYSTEM "file:///etc/passwd"><mediawiki></mediawiki>', "document type declaration"),
        (
            "dewiki.xml",
            dump_xml(page_xml(1, "A", "x").replace(">x<", ">&b;<")).encode(),
            "broken XML.*undefined",
        ),
        ("dewiki.xml", dump_xml(page_xml(1, "A", "x"), "</page>").encode(), "broken XML.*line 6"),
        ("dewiki.xml", 2 * dump_xml(page_xml(1, "A", "x")).encode(), "broken XML.*junk after document"),
        ("dewiki.xml", dump_xml(page_xml(1, "A", "x" * 100_000)).encode() + bytes(9), "broken XML"),
        ("dewiki.xml.bz2", 2 * bz2.compress(dump_xml(page_xml(1, "A", "x" * 100_000)).encode()), "broken XML.*junk"),
        ("dewiki.xml.bz2", bz2.compress(dump_xml(page_xml(1, "A", "x")).encode()) + b"garbage", "cannot be read after"),
        ("dewiki.xml", b"<html><body/></html>", "root is <html>"),
        ("dewiki.xml", b"no markup at all", "not the XML of a MediaWiki export"),
        ("dewiki.xml", b"", "not the XML of a MediaWiki export"),
        ("dewiki.xml", dump_xml(page_xml(1, "A", "Käse")).encode("utf-16"), "not UTF-8"),
        ("dewiki.xml", dump_xml(page_xml(1, "A", "x"), page_xml(2, "B", "Käse")).encode("latin-1"), "not UTF-8"),
        ("dewiki.xml.bz2", b"<mediawiki>", "cannot be read"),
        ("dewiki.xml.gz", b"<mediawiki>", "cannot be read"),
        ("dewiki.xml.xz", b"<mediawiki>", "cannot be read"),
        ("dewiki.xml.zst", b"<mediawiki>", "cannot be read"),
        ("af.jsonl", "één".encode("latin-1"), "not UTF-8"),
        ("af.jsonl", b'{"text": "x"}\nno json\n{"text": "x"}\n', "line 2 is not a JSON object"),
        ("af.jsonl", b'{"txt": "x"}\n', "line 1 is not a JSON object"),
        ("af.jsonl", b'{"text": 3}\n', "line 1 is not a JSON object"),
        ("af.jsonl", b"[1]\n", "line 1 is a JSON array; one object a line is expected"),
        ("af.jsonl", b"[" * 100_000 + b"\n", "line 1 is a JSON array"),
        ("af.jsonl", b'[{"text": "een"}, {"text": "twee"}]', "line 1 is a JSON array"),
        ("af.jsonl", b'[{"text": "een"}, {"text": "tw', "line 1 is a JSON array"),
        ("af.jsonl", b'{"text": "een"}\n{"text": "twee"}\n{"title": "drie"}', "line 3 is not a JSON object"),
        ("af.jsonl", b'{"text": "een"}\n"twee"', "line 2 is not a JSON object"),
        ("af.jsonl", b'{"text": "een"}\nnul', "line 2 is not a JSON object"),
        ("af.jsonl", b'{"text": "een"}\n{"text": "twee"} x', "line 2 is not a JSON object"),
        ("af.jsonl", b'{"text": "een"}\n\0\0\0', "line 2 is not a JSON object"),
        ("af.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_damaged_files_raise_one_clear_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_entity_in_the_text_is_not_expanded(tmp_path):
    text = "&lt;!ENTITY&gt; und &amp;amp; bleiben"
    (page,), _ = read(write_dump(tmp_path / "dewiki.xml.bz2", page_xml(1, "A", text)))
    assert page.text == "<!ENTITY> und &amp; bleiben"


def test_long_integers_and_nan_in_json(tmp_path):
    path = tmp_path / "af.jsonl"
    path.write_text(json.dumps({"text": "een", "score": float("nan")}) + "\n")
    assert len(read(path)[0]) == 1


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux, where reading this file fails")
def test_a_disk_that_fails_may_be_read_later(tmp_path):
    (tmp_path / "en.txt").symlink_to("/proc/self/mem")
    with pytest.raises(TransientError, match=r"en\.txt: cannot be read after document 0 \(\[Errno 5\]"):
        read(tmp_path / "en.txt")
    (tmp_path / "en.txt.bz2").write_bytes(b"BZh9 but no more")
    with pytest.raises(UserError, match=r"en\.txt\.bz2: cannot be read") as damaged:
        read(tmp_path / "en.txt.bz2")
    assert not isinstance(damaged.value, TransientError)
