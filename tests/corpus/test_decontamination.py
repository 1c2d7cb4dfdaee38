import bz2
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.corpus.inputs import sentences, write_jsonl
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.decontamination import EvaluationText
from unibert.errors import UserError

WORDS = " ".join(sentences(40)).split()
HAN = "".join(random.Random(0).choices("".join(map(chr, range(0x4E00, 0x4F00))), k=400))


def sources(
    texts: list[str], paths: list[Path], folder: Path, words: int = 13, characters: int = 26
) -> list[list[str]]:
    """Return the names of the evaluation sets with which each text shares an n-gram."""
    ngrams = EvaluationText(map(str, paths), words, characters).save(folder / "ngrams")
    return [[Path(name).name for name in ngrams.sources(text)] for text in texts]


def words(first: int, count: int) -> str:
    return " ".join(WORDS[first : first + count])


def around(passage: str) -> str:
    return f"{' '.join(WORDS[300:330])} {passage} {' '.join(WORDS[340:370])}"


@pytest.mark.parametrize(
    ("passage", "expected"),
    [
        (words(5, 13), True),
        (words(5, 13).upper().replace(" ", ",\n"), True),  # case, punctuation and lines do not matter
        (f"{words(5, 12)} {words(100, 12)}", False),
        (words(50, 8), True),  # a whole string of 8 words
        (f"x{words(50, 8)}", False),
        (words(70, 7), False),  # too short to be looked for
        (HAN[7 : 7 + 26], True),
        (HAN[7 : 7 + 25], False),
        (HAN[60 : 60 + 16], True),  # a whole string of 16 characters
        (HAN[100 : 100 + 15], False),
    ],
)
def test_shared_runs(tmp_path, passage, expected):
    strings = [words(0, 30), words(50, 8), words(70, 7), HAN[:50], HAN[60:76], HAN[100:115]]
    path = tmp_path / "set.txt"
    path.write_text("\n".join(strings) + "\n", encoding="utf-8")
    assert sources([around(passage)], [path], tmp_path) == [["set.txt"] * expected]


def write_sets(folder: Path) -> dict[str, str]:
    """Write one passage into a file of each layout; return the passages by the files' names."""
    passages = {}
    contents = {
        "squad.json": lambda text: json.dumps({"data": [{"paragraphs": [{"context": text, "id": 3}]}]}),
        "pairs.jsonl": lambda text: f'{{"label": 1}}\n\n{json.dumps({"premise": text})}\n',
        "scores.csv": lambda text: f'"{text[:40]}","a, ""{text}""",4.5\n',
        "pairs.tsv": lambda text: f"1\t{text}\tno\n",
        "tagged.iob2": lambda text: "".join(f"{n}\t{word}\tO\t-\n" for n, word in enumerate(text.split())),
        "conll.txt": lambda text: "x O\n\n" + "".join(f"{word} NN B-PER\n" for word in text.split()) + "\nx O\n",
        "tatoeba.deu-eng.deu": lambda text: f"{text}\n",
        "packed.txt.bz2": lambda text: f"{text}\n",
    }
    for number, (name, content) in enumerate(contents.items()):
        passages[name] = words(20 * number, 20)
        encoded = content(passages[name]).encode()
        (folder / name).write_bytes(bz2.compress(encoded) if name.endswith("bz2") else encoded)
    return passages


def test_every_layout_is_read(tmp_path):
    folder = tmp_path / "sets" / "deep"
    folder.mkdir(parents=True)
    passages = write_sets(folder)
    (folder / ".hidden").write_text(words(200, 20))
    texts = [around(passage) for passage in [*passages.values(), words(200, 20)]]
    assert sources(texts, [tmp_path / "sets"], tmp_path) == [*([name] for name in passages), []]


def test_numbers_and_tags_are_no_text(tmp_path):
    path = tmp_path / "tagged.tsv"
    path.write_text("".join(f"{n}\tword{n}\tO\n" for n in range(1, 40)))
    texts = [" ".join(map(str, range(1, 40))), " ".join("O" * 40), " ".join(f"word{n}" for n in range(1, 40))]
    assert sources(texts, [path], tmp_path) == [[], [], ["tagged.tsv"]]


def test_a_text_in_several_sets_counts_for_each(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(words(0 if name < "c" else 30, 20))
    assert sources([around(words(0, 20))], [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")], tmp_path) == [
        ["a.txt", "b.txt"]
    ]


def test_composed_and_decomposed_text_match(tmp_path):
    path = tmp_path / "set.txt"
    path.write_text(" ".join(f"cafe\u0301{n}" for n in range(20)), encoding="utf-8")
    assert sources([" ".join(f"café{n}" for n in range(20))], [path], tmp_path) == [["set.txt"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.json", b'{"a": ', r"set\.json cannot be read as text of kind \.json"),
        ("set.jsonl", b"{}\nno\n", r"set\.jsonl cannot be read as text of kind \.jsonl"),
        ("set.parquet", b"PAR1\xff\xfe", r"set\.parquet cannot be read as text"),
        ("set.txt.bz2", b"BZh9", r"set\.txt\.bz2 cannot be read"),
    ],
)
def test_unreadable_sets_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"decontaminate: .*{message}"):
        EvaluationText([str(tmp_path / name)], 13, 26)


def test_missing_sets_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "no such file"), ("empty", "no file in this folder")):
        with pytest.raises(UserError, match=message):
            EvaluationText([str(tmp_path / name)], 13, 26)


def test_a_build_counts_them_by_language_and_file(tmp_path, capsys):
    texts = sentences(200, seed=1)
    for code, count in (("af", 2), ("nl", 1)):
        clean = [{"id": f"{n}", "text": "\n".join(texts[2 * n : 2 * n + 2])} for n in range(50)]
        dirty = [{"id": f"dirty{n}", "text": around(words(20 * n, 20))} for n in range(count)]
        write_jsonl(tmp_path / f"{code}.jsonl", clean + dirty)
    sets = tmp_path / "sets"
    sets.mkdir()
    (sets / "one.txt").write_text(f"{words(0, 20)}\n{words(20, 20)}\n")
    (sets / "two.txt").write_text(f"{words(3, 15)}\n")
    (sets / "words.txt").write_text("een\ntwee\n")
    config = CorpusConfig(
        inputs=[str(tmp_path / "af.jsonl"), str(tmp_path / "nl.jsonl")],
        output=str(tmp_path / "corpus"),
        vocab_size=400,
        workers=1,
        decontaminate=[str(sets)],
    )
    one = build_corpus(config)
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    af, nl = report["languages"]["af"], report["languages"]["nl"]
    assert (af["dropped"], nl["dropped"]) == ({"contaminated": 2}, {"contaminated": 1})
    assert af["contaminated"] == {str(sets / "one.txt"): 2, str(sets / "two.txt"): 1}
    assert nl["contaminated"] == {str(sets / "one.txt"): 1, str(sets / "two.txt"): 1}
    note = f"decontaminate: 1 of 3 files have no string long enough to be looked for ({sets / 'words.txt'})"
    assert report["notes"] == [note]
    assert note in capsys.readouterr().err
    assert f"| {sets / 'one.txt'} | 3 |" in (tmp_path / "corpus" / "report.md").read_text()
    assert build_corpus(replace(config, workers=2, output=str(tmp_path / "two"))) == one
    # other sets under the same path are read anew
    (sets / "one.txt").write_text(f"{words(20, 20)}\n")
    (sets / "two.txt").unlink()
    build_corpus(replace(config, overwrite=True))
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    assert [report["languages"][code]["dropped"] for code in ("af", "nl")] == [{"contaminated": 1}, {}]
