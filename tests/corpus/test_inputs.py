import pytest

from unibert.corpus.inputs import find_inputs, unread_files
from unibert.errors import UserError


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("enwiki-20230501-pages-articles.xml.bz2", "en"),
        ("enwiki-20230501-pages-articles1.xml-p1p41242.bz2", "en"),
        ("afwiki.xml.bz2", "af"),
        ("simplewiki.xml", "simple"),
        ("en.jsonl.xz", "en"),
        ("sv-news.txt.gz", "sv"),
        ("nds-nl.txt", "nds-nl"),
        ("zh-yue-news.jsonl", "yue"),
        ("zh_yue.jsonl", "yue"),
        ("be_x_oldwiki-20240101-pages-articles.xml.bz2", "be-tarask"),
        ("be-x-oldwiki.xml", "be-tarask"),
        ("zh_min_nanwiki.xml", "nan"),
        ("zh_classicalwiki.xml", "lzh"),
        ("roa_rupwiki.xml", "rup"),
        ("roa_tarawiki.xml", "roa-tara"),
        ("bat_smgwiki.xml", "sgs"),
        ("fiu_vrowiki.xml", "vro"),
        ("cbk_zamwiki.xml", "cbk-zam"),
        ("map_bmswiki.xml", "map-bms"),
        ("nbwiki.xml", "no"),
        ("gsw.jsonl", "als"),
        ("xxwiki-20300101-pages-articles.xml", "xx"),
    ],
)
def test_languages_from_names(tmp_path, name, language):
    (tmp_path / name).touch()
    (file,) = find_inputs([str(tmp_path / name)])
    assert file.language == language


def test_explicit_language_folder_and_repeats(tmp_path):
    for name in ("en.jsonl", "afwiki.xml.bz2", "README.md", "notes.txt", "languages.tsv"):
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path), str(tmp_path / "en.jsonl"), f"is={tmp_path / 'notes.txt'}"])
    assert [(file.path.name, file.language) for file in found] == [
        ("afwiki.xml.bz2", "af"),
        ("en.jsonl", "en"),
        ("notes.txt", "is"),
    ]


def test_any_code_may_be_given(tmp_path):
    (tmp_path / "notes.txt").touch()
    for given, language in (("xq", "xq"), ("FO", "fo"), ("sr-Latn", "sr-latn"), ("zh_yue", "yue")):
        (file,) = find_inputs([f"{given}={tmp_path / 'notes.txt'}"])
        assert file.language == language


INDEX = "enwiki-20240101-pages-articles-multistream-index.txt.bz2"


def test_what_a_folder_leaves_out_is_said(tmp_path):
    for name in ("en.jsonl", "notes.txt", "data.csv", "a.7z", INDEX, "de.xml.part", "b.csv", "c.csv"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "sv.jsonl").symlink_to(tmp_path / "nowhere")
    part = "enwiki-20240101-pages-articles-multistream-index1.txt-p1p41242.bz2"
    (tmp_path / part).touch()
    (sentence,) = unread_files([str(tmp_path), str(tmp_path / "en.jsonl")])
    assert [file.path.name for file in find_inputs([str(tmp_path)])] == ["en.jsonl"]
    assert sentence == (
        f"{tmp_path}: left out 5 files of other kinds than .xml, .jsonl, .txt and .parquet (a.7z, b.csv, c.csv and 2 "
        f"more); 2 files with an index of a multistream dump ({INDEX}, {part}); 1 subfolder (more); 1 file without a "
        "language code at the beginning of the name (notes.txt; give each as <code>=PATH); 1 broken link (sv.jsonl)"
    )
    (tmp_path / "en.jsonl").unlink()
    with pytest.raises(UserError, match=r"no file of documents.*it has 5 files.*notes.txt"):
        find_inputs([str(tmp_path)])


def test_pages_are_read_once(tmp_path):
    first, second = "1.xml-p1p41242.bz2", "2.xml-p41243p151573.bz2"
    plain, multistream = "enwiki-20240101-pages-articles", "enwiki-20240101-pages-articles-multistream"

    def kept(*names):
        for path in tmp_path.iterdir():
            path.unlink()
        for name in names:
            (tmp_path / name).touch()
        found = [file.path.name for file in find_inputs([str(tmp_path)])]
        assert found == [file.path.name for file in find_inputs([str(tmp_path / name) for name in names])]
        left_out = "".join(unread_files([str(tmp_path)]))
        assert all(name in left_out for name in set(names) - set(found))
        return found

    assert kept(f"{plain}.xml.bz2", f"{multistream}.xml.bz2") == [f"{plain}.xml.bz2"]
    assert kept(f"{multistream}.xml.bz2") == [f"{multistream}.xml.bz2"]
    assert kept(f"{multistream}.xml.bz2", plain + first) == [f"{multistream}.xml.bz2"]
    assert kept(plain + first, multistream + first, multistream + second) == [multistream + second, plain + first]
    other = "enwiki-20240201-pages-articles-multistream.xml.bz2"
    assert kept(f"{plain}.xml.bz2", other) == [f"{plain}.xml.bz2", other]


def test_all_dumps_of_the_real_data_are_found(shared_data):
    folder = shared_data / "wikidump" / "minidumps"
    assert len(find_inputs([str(folder)])) == len(list(folder.iterdir()))
    assert unread_files([str(folder)]) == []


def test_an_equals_sign_in_a_path(tmp_path):
    (tmp_path / "af=b").mkdir()
    (tmp_path / "af=b" / "sv.txt").touch()
    (file,) = find_inputs([str(tmp_path / "af=b" / "sv.txt")])
    assert file.language == "sv"


def test_invalid_inputs_are_named(tmp_path):
    for name in ("notes.txt", "data.csv", "commonswiki.xml", INDEX):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    for given, message in (
        (tmp_path / "none.xml", "no such file"),
        (tmp_path / "data.csv", "unknown kind of file"),
        (tmp_path / "notes.txt", "does not begin with a language code; give it as <code>="),
        (tmp_path / "empty", "no file of documents"),
        (f"englsh={tmp_path / 'notes.txt'}", "'englsh' is no language code.*did you mean 'en'"),
        (f"all={tmp_path / 'notes.txt'}", "'all' is no language code"),
        (tmp_path / "commonswiki.xml", "does not begin with a language code"),
        (tmp_path / INDEX, "index of a multistream dump"),
    ):
        with pytest.raises(UserError, match=message):
            find_inputs([str(given)])


def test_the_record_of_downloads_is_not_one_of_the_files_left_out(tmp_path):
    for name in ("viwiki.xml", "downloads.json", "other.json"):
        (tmp_path / name).touch()
    (sentence,) = unread_files([str(tmp_path)])
    assert "other.json" in sentence
    assert "downloads.json" not in sentence
