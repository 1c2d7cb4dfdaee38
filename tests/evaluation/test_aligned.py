import numpy as np
import pytest

from unibert.errors import UserError
from unibert.evaluation.aligned import AlignedSet, line_groups, read_aligned


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".").replace("_", "-")).write_text(text, encoding="utf-8", newline="")
    return folder


def test_tatoeba_pairs_get_wikipedia_codes_and_unknown_languages_keep_theirs(tmp_path):
    for language in ("deu", "arz"):
        (tmp_path / f"tatoeba.{language}-eng.{language}").write_text("eins\nzwei\n")
        (tmp_path / f"tatoeba.{language}-eng.eng").write_text("one\ntwo\n")
    arabic, german = read_aligned(tmp_path)
    assert (arabic.name, german.name) == ("arz-en", "de-en")
    assert german.sentences == {"de": ["eins", "zwei"], "en": ["one", "two"]}


def test_n_way_files_make_one_set_and_other_files_are_ignored(tmp_path):
    write(tmp_path, de__txt="a\nb\n", en__txt="c\nd\n", fr__txt="e\nf", README__txt="not a language\n")
    (aligned,) = read_aligned(tmp_path)
    assert aligned.sentences == {"de": ["a", "b"], "en": ["c", "d"], "fr": ["e", "f"]}


def test_only_newlines_end_a_line(tmp_path):
    write(tmp_path, de__txt="a\u2028b\u0085c\nd\n", en__txt="e\nf\n")
    (aligned,) = read_aligned(tmp_path)
    assert aligned.sentences["de"] == ["a\u2028b\u0085c", "d"]


def test_empty_and_repeated_sentences_are_left_out_and_counted(tmp_path):
    write(tmp_path, de__txt="a\nb\n\nc\nd\n", en__txt="v\nw\nx\nv\nz\n")
    (aligned,) = read_aligned(tmp_path)
    assert aligned.sentences == {"de": ["a", "b", "d"], "en": ["v", "w", "z"]}
    assert aligned.left_out == 2


def test_the_cap_takes_the_first_lines(tmp_path):
    write(tmp_path, de__txt="a\nb\nc\n", en__txt="x\ny\nz\n")
    (aligned,) = read_aligned(tmp_path, max_sentences=2)
    assert aligned.sentences == {"de": ["a", "b"], "en": ["x", "y"]}


def test_mistakes_raise_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_aligned(tmp_path / "absent")
    with pytest.raises(UserError, match="no aligned sentences"):
        read_aligned(write(tmp_path / "empty"))
    with pytest.raises(UserError, match="no aligned sentences"):
        read_aligned(write(tmp_path / "alone", de__txt="a\nb\n"))
    with pytest.raises(UserError, match=r"de\.txt has 2 lines and en\.txt has 3"):
        read_aligned(write(tmp_path / "unequal", de__txt="a\nb\n", en__txt="a\nb\nc\n"))
    with pytest.raises(UserError, match="fewer than two lines"):
        read_aligned(write(tmp_path / "void", de__txt="", en__txt=""))
    mixed = write(tmp_path / "mixed", de__txt="a\nb\n", en__txt="a\nb\n")
    (mixed / "tatoeba.fra-eng.fra").write_text("a\nb\n")
    with pytest.raises(UserError, match="mixes"):
        read_aligned(mixed)
    half = write(tmp_path / "half")
    (half / "tatoeba.fra-eng.fra").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"fra-eng\.eng is missing"):
        read_aligned(half)
    latin = write(tmp_path / "latin", en__txt="a\nb\n")
    (latin / "fr.txt").write_bytes("a\nété\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"fr\.txt, line 2: not UTF-8"):
        read_aligned(latin)


def test_lines_that_share_a_sentence_across_sets_share_their_group():
    german = AlignedSet("de-en", {"de": ["ja", "nein", "Hut"], "en": ["yes", "no", "hat"]}, 0)
    french = AlignedSet("fr-en", {"fr": ["non", "chat"], "en": ["no", "cat"]}, 0)
    first, second = line_groups([german, french])
    assert first[1] == second[0]
    assert len(np.unique(np.concatenate([first, second]))) == 4


def test_real_tatoeba_is_read(shared_data):
    sets = read_aligned(shared_data / "eval" / "retrieval" / "tatoeba")
    assert len(sets) == 84
    assert sum(len(aligned) + aligned.left_out for aligned in sets) == 70126
    assert {"de-en", "zh-en", "no-en", "arz-en"} <= {aligned.name for aligned in sets}
