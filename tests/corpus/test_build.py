import bz2
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import webdataset
from transformers import AutoTokenizer

from tests.corpus.inputs import page_xml, sentences, write_dump, write_jsonl
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig, NearDuplicateConfig
from unibert.corpus.executors import coordinates
from unibert.corpus.manifest import verify
from unibert.corpus.shards import decode_block
from unibert.corpus.tokenizer import load_tokenizer, train_tokenizer
from unibert.errors import UserError


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    texts = sentences(240)
    pages = [page_xml(n, f"Titel {n}", "\n\n".join(texts[3 * n : 3 * n + 3])) for n in range(60)]
    write_dump(folder / "dewiki.xml.bz2", *pages, page_xml(99, "R", "", redirect="A"), page_xml(98, "X", "kurz"))
    other = sentences(200, seed=1)
    records = [{"id": str(n), "text": "\n".join(other[2 * n : 2 * n + 2])} for n in range(80)]
    write_jsonl(folder / "af.jsonl", records)
    again = [{"id": "copy", "text": records[3]["text"]}, {"id": "new", "text": other[190]}]
    write_jsonl(folder / "af-again.jsonl", again)
    return folder


@pytest.fixture
def config(inputs, tmp_path):
    return CorpusConfig(
        inputs=[str(inputs)],
        output=str(tmp_path / "corpus"),
        vocab_size=400,
        workers=1,
        heldout_share=0.1,
        tokens_per_shard=2500,
        tokens_per_block=500,
    )


def _documents(corpus, manifest, split):
    """(language, id) → tokens of all documents of a split."""
    found = {}
    for language in manifest.languages:
        for shard in manifest.shards_of(language, split):
            for sample in webdataset.WebDataset(str(Path(corpus) / shard.path), shardshuffle=False):
                block = decode_block(sample)
                for document_id, tokens in zip(block.ids, block.documents(), strict=True):
                    assert (language, document_id) not in found
                    found[language, document_id] = tokens.tolist()
    return found


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            "fa",
            "می\u200cخواهم کتاب\u200cهای تازه را به خانه\u200cی دوستم ببرم و آن\u200cها را می\u200cخواند.",
        ),
        ("kn", "ಸಾಫ್ಟ್\u200cವೇರ್ ಮತ್ತು ಹಾರ್ಡ್\u200cವೇರ್ ಎರಡೂ ಒಂದು ಗಣಕಯಂತ್ರಕ್ಕೆ ಬೇಕಾಗುತ್ತವೆ ಎಂದು ಅವರು ಹೇಳಿದರು."),
    ],
)
def test_zero_width_non_joiners_stay_in_the_shards(code, text, tmp_path):
    write_jsonl(tmp_path / f"{code}.jsonl", [{"id": str(n), "text": f"{text} {n}"} for n in range(8)])
    corpus = tmp_path / "corpus"
    model = tmp_path / "own.model"
    model.write_bytes(train_tokenizer(sentences(400), vocab_size=500))
    inputs = [str(tmp_path / f"{code}.jsonl")]
    config = CorpusConfig(
        inputs=inputs,
        output=str(corpus),
        tokenizer=str(model),
        near_duplicates=NearDuplicateConfig(threshold=None),
        workers=1,
    )
    manifest = build_corpus(config)
    found = _documents(corpus, manifest, "train") | _documents(corpus, manifest, "heldout")
    processor, fast = load_tokenizer(corpus), AutoTokenizer.from_pretrained(corpus / "tokenizer")
    assert {processor.Decode(ids) for ids in found.values()} == {f"{text} {n}" for n in range(8)}
    assert all(fast.decode(ids) == processor.Decode(ids) for ids in found.values())
    report = json.loads((corpus / "report.json").read_text())["languages"][code]
    assert report["words"] == 8 * (len(text.split()) + 1)


def test_a_corpus_from_end_to_end(config, inputs, capsys):
    manifest = build_corpus(config)
    corpus = Path(config.output)
    assert verify(corpus) == manifest
    assert sorted(path.name for path in corpus.iterdir()) == [
        "README.md",
        "af",
        "de",
        "manifest.json",
        "report.json",
        "report.md",
        "samples.json",
        "tokenizer",
    ]
    assert manifest.languages == ["af", "de"]
    assert manifest.vocab_size == 400
    assert len(manifest.shards_of("de")) > 2

    train, heldout = (_documents(corpus, manifest, split) for split in ("train", "heldout"))
    assert not train.keys() & heldout.keys()
    german, afrikaans = ({i for code, i in train | heldout if code == language} for language in ("de", "af"))
    assert german == {str(n) for n in range(60)}
    # af-again.jsonl comes before af.jsonl, so its copy of document 3 is the first
    assert afrikaans == {str(n) for n in range(80)} - {"3"} | {"copy", "new"}
    # pages of one id are on one side in both languages
    german, afrikaans = ({i for code, i in heldout if code == language} for language in ("de", "af"))
    assert german
    assert german - {"3"} == {i for i in afrikaans if i.isdigit() and int(i) < 60}

    processor = load_tokenizer(corpus)
    text = json.loads((inputs / "af.jsonl").read_text().split("\n")[0])["text"]
    assert processor.Decode((train | heldout)["af", "0"]) == text.replace("\n", " ")
    fast = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    assert fast(text, add_special_tokens=False).input_ids == (train | heldout)["af", "0"]

    order = [int(i) for code, i in train if code == "de"]
    assert order != sorted(order)

    report = json.loads((corpus / "report.json").read_text())["languages"]
    assert report["de"]["read"] == 62
    assert report["de"]["dropped"] == {"redirect": 1, "too_short": 1}
    assert report["af"]["dropped"] == {"duplicate": 1}
    for code, entry in report.items():
        assert entry["read"] == entry["kept"] + sum(entry["dropped"].values())
        assert entry["kept"] == entry["train_documents"] + entry["heldout_documents"]
        assert entry["train_tokens"] == manifest.tokens(code)
        assert entry["text_bytes"] == sum(s.text_bytes for s in manifest.shards if s.language == code)
        tokens = [token for (language, _), ids in (train | heldout).items() if language == code for token in ids]
        assert entry["byte_tokens"] == sum(map(processor.IsByte, tokens))
        assert entry["unknown_tokens"] == tokens.count(1) == 0
    assert "| de German | 62 | 60 |" in (corpus / "report.md").read_text()
    assert "cleaning: 3/3" in capsys.readouterr().err

    counts = np.bincount(np.concatenate([np.array(t) for (code, _), t in train.items() if code == "de"]), minlength=400)
    losses = -np.log((counts + 1) / (counts.sum() + 400))
    expected = np.mean([losses[t] for (code, _), tokens in heldout.items() if code == "de" for t in tokens])
    assert manifest.unigram_entropy["de"] == pytest.approx(expected, rel=1e-9)
    assert set(manifest.unigram_entropy) == {"all", "af", "de"}


def test_equal_for_any_number_of_workers_and_different_for_another_seed(config, tmp_path):
    one = build_corpus(config)
    two = build_corpus(replace(config, workers=2, output=str(tmp_path / "two")))
    other = build_corpus(replace(config, seed=1, output=str(tmp_path / "other")))
    assert one == two
    assert {s.sha256 for s in one.shards} != {s.sha256 for s in other.shards}
    for name in ("manifest.json", "report.json", "report.md", "samples.json", "README.md", "tokenizer/tokenizer.json"):
        assert (Path(config.output) / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_existing_tokenizer_is_shared(config, tmp_path):
    first = build_corpus(config)
    for given in (config.output, f"{config.output}/tokenizer", f"{config.output}/tokenizer/sentencepiece.model"):
        second = build_corpus(
            replace(config, output=str(tmp_path / "second"), tokenizer=given, languages=["af"], overwrite=True)
        )
        assert second.tokenizer_sha256 == first.tokenizer_sha256
        assert [s.sha256 for s in second.shards_of("af")] == [s.sha256 for s in first.shards_of("af")]
        assert second.languages == ["af"]
    again = build_corpus(replace(config, tokenizer=config.output, overwrite=True))  # its own, while it is replaced
    assert again == first


def test_a_folder_in_use_is_refused_and_overwrite_replaces_it(config, tmp_path):
    build_corpus(config)
    with pytest.raises(UserError, match=r"already holds a corpus.*--overwrite"):
        build_corpus(config)
    manifest = build_corpus(replace(config, languages=["de"], overwrite=True))
    assert not (tmp_path / "corpus" / "af").exists()
    assert verify(config.output) == manifest

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no corpus"):
            build_corpus(replace(config, output=str(tmp_path / "mine"), overwrite=overwrite))
    with pytest.raises(UserError, match="is a file"):
        build_corpus(replace(config, output=str(tmp_path / "mine" / "thesis.txt")))


def test_a_failed_build_leaves_no_corpus(config, inputs):
    with pytest.raises(UserError, match=r"^vocab_size: 100000 pieces"):
        build_corpus(replace(config, vocab_size=100_000))
    assert [path.name for path in Path(config.output).iterdir()] == [".spool"]
    build_corpus(config)


def test_a_language_with_nothing_left(config, tmp_path):
    path = write_jsonl(tmp_path / "sv.jsonl", [{"text": "kort"}, {"text": "kort igen"}])
    both = replace(config, inputs=[*config.inputs, str(path)])
    with pytest.raises(UserError, match=r"sv: 2 read, dropped too_short 2.*skip_empty_languages"):
        build_corpus(both)
    manifest = build_corpus(replace(both, skip_empty_languages=True))
    assert manifest.languages == ["af", "de"]
    assert "nothing was left of them: sv" in (Path(config.output) / "report.md").read_text()
    with pytest.raises(UserError, match="nothing is left"):
        build_corpus(replace(both, languages=["sv"], skip_empty_languages=True, overwrite=True))
    with pytest.raises(UserError, match="the inputs hold no document in is"):
        build_corpus(replace(both, languages=["is"], overwrite=True))


def test_a_cut_off_dump_is_used_and_reported(config, inputs, tmp_path):
    content = bz2.decompress((inputs / "dewiki.xml.bz2").read_bytes())
    (tmp_path / "dewiki.xml").write_bytes(content[:-20_000])
    build_corpus(replace(config, inputs=[str(tmp_path / "dewiki.xml")]))
    report = json.loads((Path(config.output) / "report.json").read_text())["languages"]["de"]
    assert report["cut_off_files"] == 1
    assert 10 < report["kept"] < 60
    assert "ended too early: de" in (Path(config.output) / "report.md").read_text()


def test_excluded_titles_and_ids(config, tmp_path):
    path = tmp_path / "exclude.tsv"
    path.write_text("de\tTitel 5\nde\t6\naf\t5\n\n")
    manifest = build_corpus(replace(config, exclude=str(path)))
    found = _documents(config.output, manifest, "train") | _documents(config.output, manifest, "heldout")
    assert not {("de", "5"), ("de", "6"), ("af", "5")} & found.keys()
    assert ("af", "6") in found
    report = json.loads((Path(config.output) / "report.json").read_text())["languages"]
    assert report["de"]["dropped"]["excluded"] == 2
    path.write_text("Titel 5\n")
    with pytest.raises(UserError, match=r"exclude: .*line 1"):
        build_corpus(replace(config, exclude=str(path), overwrite=True))


def test_exclusions_over_files_and_parts(config, inputs, tmp_path, capsys):
    write_dump(tmp_path / "dewiki.xml.bz2", page_xml(500, "Umweg", "", redirect="Titel 7"))
    path = tmp_path / "exclude.tsv"
    path.write_text("de\tumweg\nde\tTitel_8\nde\tTitle 9\nfr\tParis\n")
    inputs = [*config.inputs, str(tmp_path / "dewiki.xml.bz2")]
    manifest = build_corpus(replace(config, inputs=inputs, exclude=str(path)))
    found = _documents(config.output, manifest, "train") | _documents(config.output, manifest, "heldout")
    assert {int(i) for code, i in found if code == "de"} == set(range(60)) - {7, 8}
    report = json.loads((Path(config.output) / "report.json").read_text())
    assert report["languages"]["de"]["dropped"] == {"excluded": 2, "redirect": 2, "too_short": 1}
    notes = [
        "exclude: 1 of 3 titles or ids of de matched no document (Title 9)",
        "exclude: 1 titles or ids are of fr, which is not in this corpus",
    ]
    assert report["notes"] == notes
    assert all(note in (Path(config.output) / "report.md").read_text() for note in notes)
    assert "\n".join(notes) in capsys.readouterr().err


def test_any_language_and_what_is_left_out(config, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    texts = sentences(40)
    for code in ("fo", "lo", "or", "xh", "as", "ug", "gd", "gn"):
        write_jsonl(folder / f"{code}.jsonl", [{"text": text} for text in texts])
    write_jsonl(folder / "notes.jsonl", [{"text": text} for text in texts])
    inputs = [str(folder), f"xq={folder / 'notes.jsonl'}"]
    manifest = build_corpus(replace(config, inputs=inputs, skip_empty_languages=True))
    assert manifest.languages == ["fo", "gd", "gn", "ug", "xh", "xq"]
    report = json.loads((Path(config.output) / "report.json").read_text())
    assert report["languages"]["lo"]["dropped"] == {"foreign_script": 40}
    assert report["languages"]["xq"]["kept"] == 40
    left_out, unknown = report["notes"]
    assert left_out.startswith(f"{folder}: left out 1 file without a language code")
    assert unknown == "the scripts of xq are not known; their documents were not checked for foreign scripts"
    assert "| fo Faroese |" in (Path(config.output) / "report.md").read_text()
    assert f"{left_out}\n" in capsys.readouterr().err
    build_corpus(replace(config, overwrite=True))
    assert not (Path(config.output) / "xq").exists()


def test_one_id_for_all_documents_is_said(config, tmp_path):
    path = write_jsonl(tmp_path / "sv.jsonl", [{"id": 0, "text": text} for text in sentences(40)])
    build_corpus(replace(config, inputs=[str(path)]))
    report = json.loads((Path(config.output) / "report.json").read_text())
    assert report["notes"] == ["no document is held out of sv; all documents there have the same id"]
    write_jsonl(path, [{"id": None, "text": text} for text in sentences(40)])
    assert build_corpus(replace(config, inputs=[str(path)], overwrite=True)).shards_of("sv", "heldout")


def test_a_mistyped_language_is_named(config):
    with pytest.raises(UserError, match=r"hold no document in ed; they hold af, de; did you mean 'de'"):
        build_corpus(replace(config, languages=["af", "ed"]))
    assert build_corpus(replace(config, languages=["af", "is"], skip_empty_languages=True)).languages == ["af"]


def test_an_error_in_a_worker_reaches_the_user(config, tmp_path):
    path = write_jsonl(tmp_path / "sv.jsonl", [{"txt": "x"}])
    with pytest.raises(UserError, match="line 1 is not a JSON object"):
        build_corpus(replace(config, inputs=[*config.inputs, str(path)], workers=2))
    assert not (Path(config.output) / "manifest.json").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inputs", []),
        ("workers", 0),
        ("vocab_size", 100),
        ("heldout_share", 1.0),
        ("tokens_per_shard", 0),
        ("character_coverage", 2.0),
        ("tokenizer_exponent", -1.0),
    ],
)
def test_impossible_values_name_the_key(config, key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        replace(config, **{key: value})


_SCRIPT = """
import sys
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.errors import UserError
try:
    print(build_corpus(CorpusConfig(inputs=[sys.argv[1]], output=sys.argv[2], vocab_size=400, workers=1)).fingerprint)
except UserError as error:
    sys.exit(str(error))
"""


def test_workers_end_with_a_killed_build(tmp_path):
    script = tmp_path / "lead.py"
    script.write_text(
        "import os, signal\n"
        "from unibert.corpus.executors import local_workers\n"
        "if __name__ == '__main__':\n"
        "    with local_workers(2) as workers:\n"
        "        groups = {group for _, group in workers.outcomes(os.getpgid, dict.fromkeys(range(8), 0))}\n"
        "        print(*groups, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # the workers hold the pipe open too, so it ends only when the last of them has
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, start_new_session=True)
    output, _ = process.communicate(timeout=60)
    assert output.split() == [str(process.pid).encode()]
    assert process.returncode == -signal.SIGKILL


def test_languages_share_the_tokenizer_s_text_by_bytes_not_lines(tmp_path):
    """Each language has 90 kB, in short lines or in long ones, and its own alphabet."""
    short, long = sentences(750, alphabet="abcdefghijklm"), sentences(750, alphabet="nopqrstuvwxyz")
    write_jsonl(tmp_path / "en.jsonl", [{"text": line} for line in short])
    write_jsonl(tmp_path / "de.jsonl", [{"text": " ".join(long[n : n + 25])} for n in range(0, 750, 25)])
    config = CorpusConfig(
        inputs=[str(tmp_path)], output=str(tmp_path / "corpus"), vocab_size=450, tokenizer_bytes=40_000, workers=1
    )
    build_corpus(config)
    processor = load_tokenizer(tmp_path / "corpus")
    pieces = [processor.IdToPiece(number) for number in range(261, 450)]
    share = sum(set(piece) <= set("▁abcdefghijklm") for piece in pieces) / len(pieces)
    assert 0.4 < share < 0.6  # by lines, German would have 25 times as much text


@pytest.mark.skipif(not (find_spec("mpi4py") and shutil.which("mpirun")), reason="needs mpi4py and mpirun")
def test_mpi_ranks_give_the_same_corpus(inputs, tmp_path):
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "-n", "2", sys.executable, "-c", _SCRIPT, str(inputs), str(tmp_path / "mpi")]
    result = subprocess.run(command, env=os.environ | allowed, capture_output=True, text=True, check=True)
    alone = build_corpus(CorpusConfig(inputs=[str(inputs)], output=str(tmp_path / "alone"), vocab_size=400, workers=1))
    assert result.stdout.split() == [alone.fingerprint] * 2


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"SLURM_PROCID": "3"}, True),  # one process of a job step that is no part of an MPI start
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, False),
    ],
)
def test_one_process_of_a_start_writes_what_only_one_may(environment, expected, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert coordinates() is expected


def test_several_tasks_without_mpi_do_not_build_the_same_folder_at_once(inputs, tmp_path):
    command = [sys.executable, "-c", _SCRIPT, str(inputs), str(tmp_path / "corpus")]
    environment = os.environ | {"SLURM_STEP_NUM_TASKS": "2"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "started as several tasks" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "corpus").exists()


def test_importing_the_formats_is_light():
    code = (
        "import sys, unibert.corpus.shards, unibert.corpus.config, unibert.languages;"
        "assert not {'torch', 'transformers', 'mwxml', 'sentencepiece'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
