"""A build that was interrupted goes on: no unit that is done is done again, and the corpus has the same bytes."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.corpus.fast_tokenizers import train
from tests.corpus.inputs import page_xml, sentences, write_dump, write_jsonl
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig, NearDuplicateConfig, StubConfig, WrongLanguageConfig
from unibert.corpus.executors import local_workers
from unibert.corpus.filters import FilterConfig
from unibert.errors import UserError
from unibert.files import locked

UNITS = {
    "cleaning": 3,
    "finding templates": 2,
    "finding stubs": 2,
    "comparing": 2,
    "comparing languages": 1,
    "training the tokenizer": 1,
    "tokenising": 10,
}
"""Number of units of each stage of the build that `config` describes."""
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def slow(*parameters):
    return pytest.param(*parameters, marks=pytest.mark.slow)


SETTINGS = [
    ({"filters": FilterConfig(min_letters=90)}, "cleaning"),
    slow({"max_page_characters": 350}, "cleaning"),
    slow({"exclude": None}, "cleaning"),
    slow({"decontaminate": ["evaluation"]}, "cleaning"),
    slow({"document_filter": "interruption_filters:same"}, "cleaning"),
    slow({"wrong_language": WrongLanguageConfig(by_language={"de": 0.9}), "skip_empty_languages": True}, "cleaning"),
    slow({"near_duplicates": NearDuplicateConfig(words=1)}, "cleaning"),
    slow({"stubs": StubConfig(max_template_share=0.1, documents=2)}, "finding stubs"),
    slow({"near_duplicates": NearDuplicateConfig(threshold=0.5)}, "comparing"),
    slow({"near_duplicates": NearDuplicateConfig(threshold=None)}, "cleaning"),
    slow({"languages": ["af"]}, "comparing languages"),
    slow({"seed": 1}, "training the tokenizer"),
    ({"vocab_size": 340}, "training the tokenizer"),
    slow({"character_coverage": 0.98}, "training the tokenizer"),
    slow({"tokenizer_bytes": 3000}, "training the tokenizer"),
    ({"tokens_per_block": 200}, "tokenising"),
    slow({"tokens_per_shard": 6000}, "tokenising"),
    slow({"heldout_share": 0.4}, "training the tokenizer"),
    slow({"model_max_length": 64}, None),
]
"""Changes of settings, and the first stage of which units are done again for each."""
MODULE = """
import os
import time
from pathlib import Path

FOLDER = Path(__file__).parent

def same(text, language):
    return text

def once(text, language):
    if language == "de" and not (FOLDER / "tried").exists():
        (FOLDER / "tried").touch()
        raise RuntimeError("out of reach")
    return text

def failing(text, language):
    if (FOLDER / "failing").exists() and text[0] in (FOLDER / "failing").read_text():
        raise RuntimeError("out of reach")
    return text

def deadly(text, language):
    if not (FOLDER / "deadly").exists():
        return text
    if language == "de":
        (FOLDER / "tried").touch()
        os._exit(9)
    if not (FOLDER / "tried").exists():  # at work when the other process is killed
        for _ in range(2000):
            if (FOLDER / "tried").exists():
                break
            time.sleep(0.01)
        time.sleep(10)
    return text
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    texts = sentences(90)
    pages = [page_xml(n, f"Titel {n}", "\n\n".join(texts[3 * n : 3 * n + 3])) for n in range(30)]
    write_dump(folder / "dewiki.xml.bz2", *pages, page_xml(99, "R", "", redirect="Titel 4"))
    others = sentences(60, seed=1)
    write_jsonl(folder / "af.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(others)])
    again = [{"id": "copy", "text": others[3]}, {"id": "nearly", "text": f"{others[4][:-1]} en."}]
    write_jsonl(folder / "af-again.jsonl", [*again, {"id": "german", "text": "\n".join(texts[:3])}])
    (folder / "exclude.tsv").write_text("de\tR\naf\t7\n")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "set.txt").write_text(others[9])
    (folder / "interruption_filters.py").write_text(MODULE)
    return folder


@pytest.fixture(scope="module")
def config(inputs, tmp_path_factory):
    return CorpusConfig(
        inputs=[str(inputs / name) for name in ("af-again.jsonl", "af.jsonl", "dewiki.xml.bz2")],
        output=str(tmp_path_factory.mktemp("whole") / "corpus"),
        vocab_size=350,
        workers=1,
        heldout_share=0.1,
        tokens_per_shard=1500,
        tokens_per_block=500,
        exclude=str(inputs / "exclude.tsv"),
        stubs=StubConfig(max_template_share=0.9, documents=2),
        near_duplicates=NearDuplicateConfig(across_languages=True),
    )


@pytest.fixture(scope="module")
def whole(config):
    """What an uninterrupted build writes."""
    build_corpus(config)
    return contents(config.output)


@pytest.fixture(scope="module")
def changes(config, tmp_path_factory):
    """How often an uninterrupted build changes its folder."""
    output = tmp_path_factory.mktemp("changes") / "corpus"
    assert start(replace(config, output=str(output)), changes_to=output.with_name("changes")) == 0
    return int(output.with_name("changes").read_text())


@pytest.fixture(scope="module")
def nearly_whole(config, tmp_path_factory):
    """The folder of a build that was killed when all units were done, before its manifest was written."""
    output = tmp_path_factory.mktemp("nearly") / "corpus"
    killed(replace(config, output=str(output)), ".manifest.json")
    assert len(list(output.glob(".spool/*/*.npz"))) == sum(UNITS.values())
    assert (output / "report.md").exists()
    assert not (output / "manifest.json").exists()
    return output


@pytest.fixture
def corpus(config, tmp_path):
    return replace(config, output=str(tmp_path / "corpus"))


@pytest.fixture
def filters(inputs, monkeypatch):
    monkeypatch.syspath_prepend(inputs)
    yield inputs
    for name in ("tried", "failing", "deadly"):
        (inputs / name).unlink(missing_ok=True)


def contents(corpus) -> dict[str, bytes | None]:
    """Return the bytes of all files in a folder, hidden ones too, and None for its folders.

    The page is left out, since the command line makes it from the other files.
    """
    paths = [path for path in Path(corpus).rglob("*") if path.name != "report.html"]
    return {str(path.relative_to(corpus)): path.read_bytes() if path.is_file() else None for path in paths}


def start(config: CorpusConfig, kill_at: int | str | None = None, changes_to: Path | None = None) -> int:
    """Build in a process of its own; return its exit status.

    It is killed just before it changes its folder for the ``kill_at``-th time, or a path with ``kill_at`` in it.
    ``changes_to`` gets the number of changes.
    """
    if (child := os.fork()) == 0:
        changes = 0

        def count(event, arguments):
            nonlocal changes
            if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                is_change = str(arguments[0]).startswith(config.output)
            else:  # without a whole path if a folder is removed
                is_change = event in CHANGES and not str(arguments[0]).startswith("/tmp/tmp")
            changes += is_change
            if is_change and (kill_at == changes or (isinstance(kill_at, str) and kill_at in str(arguments[0]))):
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            build_corpus(config)
            if changes_to is not None:
                changes_to.write_text(str(changes))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(config: CorpusConfig, kill_at: int | str) -> None:
    assert start(config, kill_at) == -signal.SIGKILL


def units_there(printed: str) -> dict[str, int]:
    """Return how many units of each stage an earlier start had done, from what a build has printed."""
    lines = re.findall(r"(.+): (\d+) of \d+ units of an earlier start are there", printed)
    return {stage: int(number) for stage, number in lines}


def words(config: CorpusConfig) -> list[str]:
    options = {
        "output": config.output,
        "vocab_size": config.vocab_size,
        "workers": config.workers,
        "heldout_share": config.heldout_share,
        "tokens_per_shard": config.tokens_per_shard,
        "tokens_per_block": config.tokens_per_block,
        "exclude": config.exclude,
        "stubs.max_template_share": config.stubs.max_template_share,
        "stubs.documents": config.stubs.documents,
        "near_duplicates.across_languages": "true",
    }
    arguments = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "unibert", "corpus", "build", *config.inputs, *arguments]


def test_a_build_that_is_killed_again_and_again(corpus, whole, changes):
    """The starts change the folder 20, 40, … times, so that each gets further than the one before."""
    starts = 0
    while start(corpus, kill_at=20 * (starts := starts + 1)) == -signal.SIGKILL:
        assert "manifest.json" not in contents(corpus.output) or 20 * starts > changes / 3
    assert 3 < starts <= 1 + changes // 20
    assert contents(corpus.output) == whole


@pytest.mark.slow
def test_killed_before_a_change_of_the_folder(corpus, whole, changes):
    for kill_at in range(1, changes + 1, 7):
        killed(corpus, kill_at)
        if start(corpus) != 0:  # killed while it removed what it needed no more
            assert kill_at > changes - sum(UNITS.values()) * 3
            assert not (Path(corpus.output) / ".spool").exists()
        assert contents(corpus.output) == whole, kill_at
        shutil.rmtree(corpus.output)


def test_units_that_are_done_are_not_done_again(corpus, nearly_whole, whole, capsys):
    folder = Path(shutil.copytree(nearly_whole, corpus.output))
    for left_over in (".report.md.1.partial", "tokenizer/.tokenizer.json.1.partial", "de/train-000009.tar.partial"):
        (folder / left_over).touch()
    build_corpus(corpus)
    assert units_there(capsys.readouterr().err) == UNITS
    assert contents(corpus.output) == whole


def wait_for(process: subprocess.Popen, pattern: str, folder: str) -> None:
    while not list(Path(folder).glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("stage", "number", "status"),
    [
        ("cleaning", signal.SIGKILL, -signal.SIGKILL),
        ("comparing", signal.SIGINT, 75),
        ("tokenising", signal.SIGTERM, 75),
    ],
)
def test_processes_that_are_stopped_together(corpus, whole, capsys, stage, number, status):
    """As Ctrl-C and job managers do. The build goes on with another number of processes."""
    process = subprocess.Popen(words(replace(corpus, workers=2)), stderr=subprocess.PIPE, text=True, process_group=0)
    wait_for(process, f".spool/{stage}/*.npz", corpus.output)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    if status == 75:
        assert error.endswith("\nunibert: the build has stopped; the same command goes on\n")
        assert "Traceback" not in error
    build_corpus(replace(corpus, workers=3 if stage == "tokenising" else 1))
    assert units_there(capsys.readouterr().err)[stage] >= 1
    assert contents(corpus.output) == whole


@pytest.mark.slow
def test_killed_at_random_moments(corpus, whole):
    generator, longest, spool = random.Random(16), 1.0, Path(corpus.output) / ".spool"
    while True:
        number = generator.randint(1, 3)
        (spool / "lock").unlink(missing_ok=True)
        process = subprocess.Popen(words(replace(corpus, workers=number)), stderr=subprocess.PIPE, process_group=0)
        while process.poll() is None and not (spool / "lock").exists():
            time.sleep(0.01)
        try:
            process.communicate(timeout=generator.uniform(0, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        if not spool.exists():
            break
        assert process.returncode == -signal.SIGKILL, process.returncode
        longest *= 1.6
    # It has ended, or was killed in its last moments, after which there is nothing left to build.
    assert process.returncode in (0, -signal.SIGKILL)
    with pytest.raises(UserError, match="already holds a corpus"):
        build_corpus(corpus)
    assert contents(corpus.output) == whole


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("mpi4py") and shutil.which("mpirun")), reason="needs mpi4py and mpirun")
def test_a_lost_rank(corpus, whole, capsys):
    """mpirun ends the others; ranks or processes go on."""
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment = os.environ | allowed
    command = ["mpirun", "-n", "2", "--oversubscribe", *words(corpus)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, process_group=0) as process:
        wait_for(process, ".spool/comparing/*.npz", corpus.output)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
    assert process.returncode != 0
    again = replace(corpus, output=f"{corpus.output}-again")
    shutil.copytree(corpus.output, again.output)
    build_corpus(corpus)
    assert units_there(capsys.readouterr().err)["cleaning"] == UNITS["cleaning"]
    assert contents(corpus.output) == whole
    command = ["mpirun", "-n", "2", "--oversubscribe", *words(again)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert units_there(result.stderr)["cleaning"] == UNITS["cleaning"]
    assert contents(again.output) == whole


def test_a_changed_input_is_read_again(corpus, nearly_whole, inputs, tmp_path, capsys):
    shutil.copytree(nearly_whole, corpus.output)
    path = inputs / "af.jsonl"
    before = path.read_bytes(), path.stat()
    try:
        write_jsonl(path, [{"id": str(n), "text": text} for n, text in enumerate(sentences(60, seed=2))])
        build_corpus(corpus)
        there = units_there(capsys.readouterr().err)
        assert {stage: there.get(stage, 0) for stage in ("cleaning", "finding stubs", "comparing")} == {
            "cleaning": 2,
            "finding stubs": 1,
            "comparing": 1,
        }
        fresh = replace(corpus, output=str(tmp_path / "fresh"))
        build_corpus(fresh)
    finally:
        path.write_bytes(before[0])
        os.utime(path, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert contents(corpus.output) == contents(fresh.output)


@pytest.mark.parametrize(("change", "first_redone"), SETTINGS, ids=str)
def test_a_changed_setting_redoes_what_depends_on_it(
    corpus, nearly_whole, filters, monkeypatch, tmp_path, capsys, change, first_redone
):
    monkeypatch.chdir(filters)
    shutil.copytree(nearly_whole, corpus.output)
    changed = replace(corpus, **change)
    build_corpus(changed)
    there = units_there(capsys.readouterr().err)
    before = list(UNITS)[: len(UNITS) if first_redone is None else list(UNITS).index(first_redone)]
    assert {stage: there[stage] for stage in before} == {
        stage: 2 if "languages" in change and stage == "cleaning" else 1 if "languages" in change else UNITS[stage]
        for stage in before
    }
    assert first_redone is None or there.get(first_redone, 0) < UNITS[first_redone]
    fresh = replace(changed, output=str(tmp_path / "fresh"))
    build_corpus(fresh)
    assert contents(corpus.output) == contents(fresh.output)


def test_every_setting_is_tried():
    """Units of another value must not be taken for those of a new setting."""
    tried = set().union(*(getattr(entry, "values", entry)[0] for entry in SETTINGS))
    not_of_units = {"inputs", "output", "skip_empty_languages", "tokenizer", "trim_vocabulary", "workers", "overwrite"}
    with_decontaminate = {"decontamination_words", "decontamination_characters"}
    equal_in_two_languages = {"tokenizer_exponent"}
    names = {field.name for field in fields(CorpusConfig)}
    assert names == tried | not_of_units | with_decontaminate | equal_in_two_languages


def test_a_trimmed_tokenizer(corpus, tmp_path, capsys):
    lines = [word for text in sentences(90) for word in text.split()]
    model = train("wordpiece", lines, 300, tmp_path / "model")
    trimmed = replace(corpus, tokenizer=str(model), trim_vocabulary=200)
    killed(trimmed, "/tokenising/")
    build_corpus(trimmed)
    assert units_there(capsys.readouterr().err)["counting pieces"] == 2
    fresh = replace(trimmed, output=str(tmp_path / "fresh"))
    build_corpus(fresh)
    assert contents(corpus.output) == contents(fresh.output)


@pytest.mark.parametrize("damage", ["record", "shard", "spool"])
def test_a_damaged_unit_is_done_again(corpus, nearly_whole, whole, capsys, damage):
    folder = Path(corpus.output)
    shutil.copytree(nearly_whole, folder)
    pattern = {"record": ".spool/cleaning/*.npz", "shard": "de/train-000001.tar", "spool": ".spool/cleaning/*.spool"}
    path = min(folder.glob(pattern[damage]))
    path.write_bytes(path.read_bytes()[:-10])
    build_corpus(corpus)
    stage = "tokenising" if damage == "shard" else "cleaning"
    assert units_there(capsys.readouterr().err)[stage] == UNITS[stage] - 1
    assert contents(corpus.output) == whole


def test_one_build_at_a_time(corpus, nearly_whole, whole):
    shutil.copytree(nearly_whole, corpus.output)
    with (
        locked(Path(corpus.output) / ".spool" / "lock", ""),
        pytest.raises(UserError, match=r"another process builds in .*; wait for it, or name another folder"),
    ):
        build_corpus(corpus)
    build_corpus(corpus)
    assert contents(corpus.output) == whole


def test_a_corpus_that_is_replaced_by_one_with_its_tokenizer(config, whole, tmp_path):
    output = tmp_path / "corpus"
    shutil.copytree(config.output, output)
    again = replace(config, output=str(output), overwrite=True, tokenizer=str(output), languages=["de"])
    fresh = replace(again, output=str(tmp_path / "fresh"))
    build_corpus(fresh)
    for kill_at in range(10, 60, 12):
        if start(again, kill_at) == 0 or not (output / ".spool").exists():
            break
        assert kill_at > 40 or not (output / "manifest.json").exists()
        assert kill_at > 20 or not (output / "report.md").exists()
    else:
        build_corpus(again)
    left_over = ".spool-ended"  # of a build that was killed at its very end
    built = {name: content for name, content in contents(output).items() if not name.startswith(left_over)}
    assert built == contents(fresh.output)


def test_a_unit_that_fails_once(corpus, whole, filters):
    build_corpus(replace(corpus, document_filter="interruption_filters:once"))
    assert (filters / "tried").exists()
    built = contents(corpus.output)
    of_function = {"manifest.json", "README.md", "samples.json"}
    assert {name: built[name] for name in built.keys() - of_function} == {
        name: whole[name] for name in whole.keys() - of_function
    }


def test_units_that_fail_do_not_stop_the_others(corpus, whole, filters):
    filtered = replace(corpus, document_filter="interruption_filters:failing")
    (filters / "failing").write_text("abcdefghijklmnoprstuvz")
    with pytest.raises(
        UserError, match=r"^cleaning: 3 of 3 units failed, which .*: document_filter: .*af.*; doc"
    ) as all:
        build_corpus(filtered)
    assert "\n" not in str(all.value)
    first = sentences(3)[0][0]
    (filters / "failing").write_text(first)
    with pytest.raises(UserError, match=r"failed, which the same command does again: document_filter: interr"):
        build_corpus(filtered)
    (filters / "failing").unlink()
    build_corpus(filtered)
    assert (Path(corpus.output) / "de" / "train-000000.tar").read_bytes() == whole["de/train-000000.tar"]


def test_mistakes_in_several_inputs_are_reported_together(corpus, tmp_path, capsys):
    wrong = [write_jsonl(tmp_path / f"{code}.jsonl", [{"txt": "x"}]) for code in ("fi", "is", "no", "sv")]
    with pytest.raises(UserError) as mistakes:
        build_corpus(replace(corpus, inputs=[*corpus.inputs, *map(str, wrong)]))
    sentence = str(mistakes.value)
    assert sentence.startswith("cleaning: 4 of 7 units failed, which the same command does again: ")
    assert [code for code in ("fi", "is", "no", "sv") if f"{code}.jsonl: line 1 is not a JSON" in sentence] == [
        "fi",
        "is",
        "no",
    ]
    assert sentence.endswith("; and 1 more")
    for path in wrong:
        path.unlink()
    build_corpus(corpus)
    assert units_there(capsys.readouterr().err) == {"cleaning": 3}


def test_a_page_that_kills_its_process_is_named(corpus, whole, filters, capsys):
    (filters / "deadly").touch()
    filtered = replace(corpus, document_filter="interruption_filters:deadly", workers=2)
    with pytest.raises(
        UserError, match=r"1 of 3 units failed, .*dewiki.xml.bz2 \(its process was killed, also when no"
    ):
        build_corpus(filtered)
    (filters / "deadly").unlink()
    build_corpus(filtered)
    assert units_there(capsys.readouterr().err) == {"cleaning": 2}
    assert (Path(corpus.output) / "de" / "train-000000.tar").read_bytes() == whole["de/train-000000.tar"]


def test_processes_that_are_always_killed():
    """As where a script starts a build without ``if __name__ == "__main__"``."""
    with (
        pytest.raises(UserError, match=r"^workers: processes were killed 8 times before any had done its task, "),
        local_workers(2) as workers,
    ):
        assert not list(workers.outcomes(os._exit, dict.fromkeys(range(100), 1)))


def test_a_full_disk(corpus, whole):
    """The limit is on the size of a file, which shards exceed and spools do not."""
    process = subprocess.run(
        words(replace(corpus, workers=2)),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (14_000, 14_000)),
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        f"unibert: error: output: the disk of {corpus.output} is full or takes no larger file; the build needs about "
        "twice the size of the text; make room, and the same command goes on"
    )
    assert "Traceback" not in process.stderr
    build_corpus(corpus)
    assert contents(corpus.output) == whole
