import pytest

from tests.corpus.inputs import page_xml, write_dump, write_jsonl
from unibert.corpus.exclusions import Exclusions, read_exclusions, title_key
from unibert.corpus.inputs import find_inputs
from unibert.corpus.readers import DocumentReader
from unibert.errors import UserError


def kept(path, *entries):
    """Return the ids that are kept, and the entries that matched nothing."""
    (file,) = find_inputs([str(path)])
    exclusions = Exclusions(frozenset(entries))
    reader = DocumentReader(file, exclusions=exclusions)
    ids = [document.id for document in reader]
    assert reader.counts["excluded"] == reader.counts["read"] - len(ids) - reader.counts["redirect"]
    return ids, exclusions.unmatched(reader.matches.entries), reader.matches.targets


@pytest.mark.parametrize(
    "entry",
    [
        "New_Mill_Café",
        "New Mill Cafe\u0301",
        "new Mill Café",
        " New  Mill Café_",
        "New%20Mill_Caf%C3%A9",
        "\u200eNew Mill Café",
    ],
)
def test_spellings_of_a_title(tmp_path, entry):
    dump = write_dump(tmp_path / "enwiki.xml.bz2", page_xml(1, "New Mill Café", "a"), page_xml(2, "New mill Café", "b"))
    assert kept(dump, entry) == (["2"], [], set())
    lines = write_jsonl(
        tmp_path / "en.jsonl", [{"id": "a", "title": "new_Mill Café", "text": "a"}, {"id": "b", "text": "b"}]
    )
    assert kept(lines, entry) == (["b"], [], set())


def test_ids_are_compared_as_they_are(tmp_path):
    records = [{"id": i, "text": "a"} for i in ("a_1", "A_1", "a 1", 7)]
    assert kept(write_jsonl(tmp_path / "en.jsonl", records), "a_1", "7", "8") == (["A_1", "a 1"], ["8"], set())


def test_what_matches_nothing_is_named(tmp_path):
    dump = write_dump(tmp_path / "enwiki.xml.bz2", page_xml(1, "New Mill", "a"), page_xml(2, "B", "b" * (1 << 21)))
    assert kept(dump, "New_Mill", "New Mill", "B", "Thrid page", "C")[1] == ["C", "Thrid page"]


def test_a_redirect_excludes_where_it_leads(tmp_path):
    dump = write_dump(
        tmp_path / "enwiki.xml.bz2",
        page_xml(1, "A", "#REDIRECT [[new target#Section]]", redirect="New target"),
        page_xml(2, "B", "#REDIRECT [[other_target#Section|x]]"),
        page_xml(3, "C", "#REDIRECT [[Third]]", redirect="Third"),
        page_xml(4, "D", "no known word").replace("<revision>", "<redirect /><revision>"),
    )
    assert kept(dump, "a", "B", "D") == ([], [], {"New target", "Other target"})


def test_the_file(tmp_path):
    path = tmp_path / "exclude.tsv"
    path.write_bytes("\ufeffen\tNew_Town\r\nzh_yue\t香港\r\n\nxq\tX\n".encode())
    found = {code: set(exclusions.entries) for code, exclusions in read_exclusions(str(path)).items()}
    assert found == {"en": {"New_Town"}, "yue": {"香港"}, "xq": {"X"}}
    for content, line in (("A\n", 1), ("en\tA\nen\t \n", 2), ("en\tA\nenglish\tB\n", 2)):
        path.write_text(content)
        with pytest.raises(UserError, match=rf"exclude: .*, line {line}: "):
            read_exclusions(str(path))


def test_titles_stay_apart():
    assert len({title_key(title) for title in ("A", "a b", "Ab", "A B", "C", "C#", "#1", "#2", "50%", "ß", "ss")}) == 11
