"""Files of the public sets, and what is wrong with files."""

import json
import lzma

import pytest

from unibert.errors import UserError
from unibert.evaluation.tasks.files import find_files
from unibert.evaluation.tasks.ner import NamedEntities
from unibert.evaluation.tasks.nli import InferencePairs
from unibert.evaluation.tasks.qa import QuestionAnswering
from unibert.evaluation.tasks.task import Examples

TASKS = {task.name: task for task in (NamedEntities(), InferencePairs(), QuestionAnswering())}


def found(task, folder):
    return find_files(folder, task.name, task.patterns)


@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [
        ("ner", "panx/de/dev.tsv.xz", ("panx", "de", "dev")),
        ("ner", "panx/test-de.tsv", ("panx", "de", "test")),
        ("ner", "wikiann/ckb/train", ("wikiann", "ckb", "train")),
        ("ner", "masakha/hau/test.txt", ("masakha", "ha", "test")),
        ("ner", "uner/pt_bosque-ud-train.iob2.xz", ("uner-bosque", "pt", "train")),
        ("ner", "conll/eng.testa", ("conll", "en", "dev")),
        ("ner", "conll/ned.testb", ("conll", "nl", "test")),
        ("nli", "xnli/test-zh.tsv.xz", ("xnli", "zh", "test")),
        ("nli", "kornli/xnli.dev.ko.tsv", ("kornli", "ko", "dev")),
        ("nli", "kornli/multinli.train.ko.tsv", ("kornli", "ko", "train")),
        ("nli", "farstail/Val-word.csv", ("farstail", "fa", "dev")),
        ("nli", "mnli-en/train.jsonl.xz", ("mnli", "en", "train")),
        ("nli", "multinli/multinli_1.0_train.jsonl", ("multinli", "en", "train")),
        ("qa", "xquad/xquad.hi.json", ("xquad", "hi", "test")),
        ("qa", "mlqa/test-context-de-question-de.json", ("mlqa", "de", "test")),
        ("qa", "mlqa/dev-context-de-question-en.json", ("mlqa-questions-en", "de", "dev")),
        ("qa", "tydi/tydiqa.goldp.ko.train.json", ("tydiqa", "ko", "train")),
        ("qa", "squad/dev-v1.1.json.gz", ("squad", "en", "dev")),
    ],
)
def test_layouts_are_recognised(tmp_path, task, name, expected):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    (tmp_path / "README.md").touch()
    [file] = found(TASKS[task], tmp_path)
    assert (file.collection, file.language, file.split) == expected


def read(task, path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    [file] = [file for file in found(TASKS[task], path.parents[1]) if file.path == path]
    return TASKS[task].read(file)


def test_universal_ner_has_numbers_comments_and_other_names(tmp_path):
    content = "# text = Ana\n1\tAna\tB-PER\t-\tx\n2\tdoo\tB-OTH\t-\tx\n3\tel\tI-OTH\t-\tx\n\n\n1\t.\tO\t-\tx"
    examples = read("ner", tmp_path / "uner" / "hr_set-ud-test.iob2", content).examples
    assert [(one.words, one.tags) for one in examples] == [(["Ana", "doo", "el"], ["B-PER", "O", "O"]), (["."], ["O"])]


def test_conll_has_columns_and_document_lines(tmp_path):
    content = "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\n\u2028 x y O\n"
    examples = read("ner", tmp_path / "conll" / "eng.testb", content).examples
    assert [(one.words, one.tags) for one in examples] == [(["EU", "\u2028"], ["I-ORG", "O"])]


def test_the_language_before_every_token_is_removed(tmp_path):
    examples = read("ner", tmp_path / "panx" / "fr" / "test.tsv", "fr:Le\tO\nfr::\tO\n").examples
    assert examples[0].words == ["Le", ":"]


def test_pairs_with_and_without_header_and_labels(tmp_path):
    rows = 'a "b\tc\tcontradictory\nd\te\t-\nf\tg\tn\n'
    plain = read("nli", tmp_path / "xnli" / "test-de.tsv", rows)
    headed = read("nli", tmp_path / "korean" / "xnli.test.ko.tsv", f"sentence1\tsentence2\tgold_label\n{rows}")
    assert plain.examples == headed.examples
    assert [(one.premise, one.label) for one in plain.examples] == [('a "b', "contradiction"), ("f", "neutral")]
    assert plain.left_out == headed.left_out == 1


def test_quoted_cells_of_farstail_hold_tabs_and_line_ends(tmp_path):
    content = 'premise\thypothesis\tlabel\n"x\ty\nz"\tb\te\n'
    [example] = read("nli", tmp_path / "farstail" / "Test-word.csv", content).examples
    assert example.premise == "x\ty\nz"


def squad(text, start, context="the old house"):
    answers = [{"text": text, "answer_start": start}]
    return json.dumps(
        {"data": [{"paragraphs": [{"context": context, "qas": [{"id": 1, "question": " q ", "answers": answers}]}]}]}
    )


def test_answers_that_are_not_at_their_place_are_left_out(tmp_path):
    path = tmp_path / "xquad" / "xquad.de.json"
    assert read("qa", path, squad("old", 4)).examples[0].answers == ["old"]
    with pytest.raises(UserError, match="no question with an answer"):
        read("qa", path, squad("old", 5))


def test_spread_takes_the_same_examples_of_sets_with_as_many(tmp_path):
    examples = Examples(None, list(range(10)), 0)
    assert examples.spread(4).examples == [0, 2, 5, 7]
    assert examples.spread(10) is examples
    assert examples.spread(None) is examples


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("ner", "panx/de/test.tsv", "a\tO\nb\tPER\n", "line 2: the tag 'PER' is none of O, B-TYPE and I-TYPE"),
        ("ner", "panx/de/test.tsv", "a\n", "line 1: has no word and tag|line 1: the tag"),
        ("ner", "panx/de/test.tsv", "\n\n", "has no sentence"),
        ("nli", "xnli/test-de.tsv", "a\tb\tmaybe\n", "line 1: the label 'maybe' is none of contradiction"),
        ("nli", "xnli/test-de.tsv", "a\tb\n", "its first row names no premise, hypothesis and label"),
        ("nli", "xnli/test-de.tsv", "", "has no row with premise"),
        ("nli", "mnli-en/train.jsonl", '{"premise": "a"}\n', "line 1: is no JSON object with premise"),
        ("nli", "mnli-en/train.jsonl", "x\n", "line 1: is no JSON object"),
        ("qa", "xquad/xquad.de.json", '{"data": [{"text": 1}]}', "is not SQuAD's JSON"),
        ("qa", "xquad/xquad.de.json", "[", "is not SQuAD's JSON"),
    ],
)
def test_malformed_files_are_named(tmp_path, task, name, content, message):
    with pytest.raises(UserError, match=message) as refusal:
        read(task, tmp_path / name, content)
    assert name.rpartition("/")[2] in str(refusal.value)


def test_packed_files_that_are_no_archives_are_named(tmp_path):
    path = tmp_path / "xnli" / "test-de.tsv.xz"
    path.parent.mkdir()
    path.write_bytes(lzma.compress(b"a\tb\tneutral\n")[:-9])
    [file] = found(TASKS["nli"], tmp_path)
    with pytest.raises(UserError, match=r"test-de.tsv.xz: cannot be read"):
        TASKS["nli"].read(file)


def test_a_list_describes_other_files(tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "pairs.tsv").write_text("yes\tx\ty\nno\tz\tw\n")
    (tmp_path / "nli.yaml").write_text(
        "- {file: odd/pairs.tsv, language: no, split: test, columns: [1, 2, 0],\n"
        "   labels: {'yes': entailment, 'no': contradiction}}\n"
    )
    [file] = found(TASKS["nli"], tmp_path)
    assert (file.collection, file.language) == ("odd", "no")
    assert [(one.premise, one.label) for one in TASKS["nli"].read(file).examples] == [
        ("x", "entailment"),
        ("z", "contradiction"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- {file: missing.tsv, language: de, split: test}", "there is no file missing.tsv"),
        ("- {file: a.tsv, language: de, split: trial}", "the split trial is none of"),
        ("- {file: a.tsv, language: de, split: test, colums: [0]}", "unknown key colums"),
        ("file: [", "is no list of sets"),
    ],
)
def test_a_malformed_list_is_refused(tmp_path, content, message):
    (tmp_path / "a.tsv").touch()
    (tmp_path / "nli.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        found(TASKS["nli"], tmp_path)


def test_two_files_of_one_set_are_refused(tmp_path):
    for name in ("xnli/test-de.tsv", "more/xnli/test-de.tsv.xz"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="are both test sets of xnli de"):
        found(TASKS["nli"], tmp_path)


def test_a_folder_without_known_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file of a known layout for qa; describe its files in .*qa\.yaml"):
        found(TASKS["qa"], tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        found(TASKS["qa"], tmp_path / "missing")


def test_real_sets_are_read_completely(shared_data):
    """Numbers of the sets' own descriptions."""
    expected = {
        "ner": {"panx en test": 1950, "uner-ewt en test": 2077, "panx qu test": 46},
        "nli": {"xnli zh test": 5010, "kornli ko test": 5010, "farstail fa test": 1564, "mnli en train": 9000},
        "qa": {"xquad ar test": 1190, "mlqa de dev": 512, "tydiqa ko train": 1625},
    }
    for name, sizes in expected.items():
        task = TASKS[name]
        files = {f"{file.unit} {file.split}": file for file in found(task, shared_data / "eval" / name)}
        read_sizes = {key: task.read(files[key]) for key in sizes}
        assert {key: len(examples.examples) for key, examples in read_sizes.items()} == sizes
        assert not any(examples.left_out for examples in read_sizes.values())
