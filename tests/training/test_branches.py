"""Runs that begin at a checkpoint of another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import largest_relative_difference, lines_without_timing
from tests.training.conftest import run_to_end, write_run_file
from unibert.configuration import parse
from unibert.corpus.manifest import Manifest
from unibert.doctor.run_files import check_run
from unibert.errors import UserError
from unibert.training.branch import branch_of_run, raise_if_other_architecture
from unibert.training.config import RunConfig
from unibert.training.metrics_file import read_metrics
from unibert.training.models import build_model

STEP_TOKENS = 8 * 64
ROTATION = "--model.config.global_rope_theta=40000"
CONSTANT = {"optimizer": {"warmup": 0.0, "decay": 0.0}, "adversary": {"ramp": "constant", "warmup": 0.0}}
"""Settings with which no step depends on the length of the run."""

Start = Callable[..., Path]


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory) -> Start:
    """Train a run with these options, and return its folder."""
    root = tmp_path_factory.mktemp("branches")
    run_file = write_run_file(corpus, root)
    run = yaml.safe_load(run_file.read_text())
    for section, settings in CONSTANT.items():
        run[section] |= settings
    run["training"] |= {"checkpoint_every": 4, "keep_checkpoints": 9, "evaluate_every": 0, "tokens": 12 * STEP_TOKENS}
    run_file.write_text(yaml.safe_dump(run))

    def train(name: str, *options: str, ranks: int = 1, says: str = "") -> Path:
        status, output = run_to_end("pretrain", str(run_file), f"--run_dir={root / name}", *options, ranks=ranks)
        assert status == 0, output
        assert says in output
        return root / name

    return train


@pytest.fixture(scope="module")
def parent(start) -> Path:
    return start("parent")


def after(run_dir: Path, step: int) -> list[dict]:
    return [line for line in lines_without_timing(run_dir) if line["step"] > step]


def test_a_branch_of_an_unchanged_run_is_its_continuation(start, parent, tmp_path):
    source = Path(shutil.copytree(parent, tmp_path / "source"))
    options = ["unchanged", f"--resume_from={source}@4"]
    branch = start(*options, says=f"is a branch of {source} at step 4, after 2,048 tokens; its stream goes on where")
    assert after(branch, 4) == after(parent, 4)
    (first,) = (line for line in lines_without_timing(branch) if line["step"] == 4)
    assert (first["stream"], first["changed"], first["scheduled"]) == ("continues", {}, {})
    # It is interrupted before its first own checkpoint, when there is no parent any more.
    shutil.rmtree(source)
    damage_later_checkpoints(branch)
    whole = lines_without_timing(branch)
    start(*options)
    assert lines_without_timing(branch) == whole


def test_a_run_extended_by_tokens_is_the_run_that_had_them_from_the_start(start, parent):
    more = f"--training.tokens={20 * STEP_TOKENS}"
    whole, extended = start("whole", more), start("extended", more, f"--resume_from={parent}")
    assert after(extended, 12) == after(whole, 12)
    assert len(read_metrics(extended / "metrics.jsonl").training) == 8


def test_longer_sequences_with_another_rotation(start, parent):
    longer = [
        "--training.sequence_length=128",
        "--training.global_batch_size=4",
        ROTATION,
        "--stream.masking_rate=0.15",
    ]
    branch = start("longer", f"--resume_from={parent}@8", *longer, says="stream goes on where the parent's stood")
    first, *lines = lines_without_timing(branch)
    assert first["changed"]["training.sequence_length"] == {"from": 64, "to": 128}
    assert first["scheduled"] == {"masking_rate": {"from": 0.3, "to": 0.15}}
    trained = [line for line in lines if "loss" in line]
    assert [(line["step"], line["tokens"]) for line in trained] == [(9 + n, (9 + n) * STEP_TOKENS) for n in range(4)]
    model = json.loads((branch / "model" / "config.json").read_text())
    assert model["rope_parameters"]["full_attention"]["rope_theta"] == 40_000
    assert model["max_position_embeddings"] == 128
    # With fresh weights, the loss would be that of the parent's first step, of a uniform guess.
    losses = [line["mlm_loss"] for line in read_metrics(parent / "metrics.jsonl").training]
    assert abs(trained[0]["mlm_loss"] - losses[8]) < abs(trained[0]["mlm_loss"] - losses[0])


def test_another_corpus_is_read_from_its_beginning(start, parent, own_corpus):
    manifest = json.loads((own_corpus / "manifest.json").read_text())
    shard = manifest["shards"][0]
    (own_corpus / shard["path"]).rename(own_corpus / "de" / "other.tar")
    shard["path"] = "de/other.tar"
    (own_corpus / "manifest.json").write_text(json.dumps(manifest))
    options = [f"--corpus={own_corpus}", "--stream.lanes=8"]
    branch = start("other-corpus", f"--resume_from={parent}@8", *options, says="its stream starts anew (corpus)")
    assert [line["step"] for line in read_metrics(branch / "metrics.jsonl").training] == [9, 10, 11, 12]
    state = json.loads((branch / "checkpoints" / "step-00000012" / "checkpoint.json").read_text())["state"]
    assert len(state["stream"]) == 9
    # Lanes of 8 that began at step 9 have taken 4 sequences each.
    assert {taken for key, lane in state["stream"].items() if key != "fingerprint" for _, taken in lane["packs"]} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_another_number_of_ranks_continues_a_branch(stage, start):
    ds_config = f"--training.ds_config=zero{stage}"
    parent = start(f"zero{stage}", ds_config, ranks=2)
    branch = start(f"zero{stage}-one-rank", f"--resume_from={parent}@4", ds_config)
    whole = Path(shutil.copytree(parent, parent.with_name(f"zero{stage}-after-4")))
    for run in (branch, whole):
        lines = [json.dumps(line) + "\n" for line in after(run, 4)]
        (run / "metrics.jsonl").write_text("".join(lines))
    # As in checkpoint/test_world_size.py: fp32 sums in another order, amplified by eight steps of AdamW.
    assert largest_relative_difference(branch, whole) < 1e-5


@pytest.mark.parametrize(
    ("resume_from", "options", "sentence"),
    [
        ("{parent}@5", [], "{parent} has no checkpoint of step 5; choose one of 4, 8, 12"),
        ("{corpus}", [], "{corpus} is not a run folder"),
        ("{parent}", [], "6144 tokens end before the branch begins, since they count those of {parent}, 6144 up to"),
        ("{parent}@8", ["--run_dir={parent}/../parent"], "has checkpoints of a run that is no branch"),
        (
            "{parent}@8",
            ["--stream.languages=de,en"],
            "tells de, en, ru apart, and this run has de, en; train on the sa",
        ),
        ("{parent}@8", ["--corpus={other_vocabulary}"], "has another vocabulary than {corpus}, of which {parent} has"),
        ("{parent}@8", ["--model.config.hidden_size=32"], "architecture, but hidden_size was 64 and is now 32;"),
        (
            "{parent}@8",
            ["--optimizer.layers_learning_rate=1e-4"],
            "optimizer.layers_learning_rate: was None in {parent} and is 0.0001; the optimizer's state has",
        ),
        ("{parent}@8", ["--adversary=null"], "but discriminator.b1 is now absent, discriminator.b2 is"),
    ],
)
def test_what_does_not_fit_is_refused(parent, corpus, own_corpus, tmp_path, resume_from, options, sentence):
    manifest = json.loads((own_corpus / "manifest.json").read_text())
    (own_corpus / "manifest.json").write_text(json.dumps(manifest | {"tokenizer_sha256": "1" * 64}))
    folders = {"parent": parent, "corpus": corpus, "other_vocabulary": own_corpus}
    words = [f"--config={parent / 'config.yaml'}", f"--run_dir={tmp_path / 'run'}", f"--resume_from={resume_from}"]
    config = parse(RunConfig, [word.format(**folders) for word in [*words, *options]])

    def check() -> None:
        branch = branch_of_run(config)
        raise_if_other_architecture(branch, build_model(config, Manifest.load(config.corpus), torch.device("cpu")))

    with pytest.raises(UserError) as refusal:
        check()
    assert sentence.format(**folders) in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_the_plan_counts_what_the_branch_adds(parent, unibert, tmp_path):
    words = [str(parent / "config.yaml"), f"--run_dir={tmp_path / 'run'}", f"--resume_from={parent}@8"]
    options = [f"--training.tokens={20 * STEP_TOKENS}", "--gpus=1", "--gpu=h100", f"--output={tmp_path / 'plan.json'}"]
    status, output = unibert("plan", *words, *options)
    assert status == 0, output
    assert f"6,144 tokens in 12 steps of 8 × 64 tokens, after 4,096 tokens of {parent}@8" in " ".join(output.split())
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["tokens"], plan["steps"], plan["tokens_of_parent"]) == (6144, 12, 4096)
    assert plan["seconds"] == pytest.approx(6144 / plan["tokens_per_second"])


@pytest.mark.parametrize(
    ("resume_from", "mark", "message"),
    [
        ("{parent}@8", "ok", "{parent} at step 8, after 4,096 tokens; its stream goes on"),
        ("{parent}@7", "FAIL", "{parent} has no checkpoint of step 7"),
    ],
)
def test_the_doctor_examines_the_parent(parent, tmp_path, resume_from, mark, message):
    words = [f"--config={parent / 'config.yaml'}", f"--run_dir={tmp_path / 'run'}"]
    config = parse(RunConfig, [*words, f"--resume_from={resume_from.format(parent=parent)}"])
    [finding] = [one for one in check_run(config) if one.subject == "resume_from"]
    assert finding.mark == mark
    assert message.format(parent=parent) in finding.message


def test_the_report_draws_branches_of_one_parent(start, parent, unibert):
    branches = [start(name, f"--resume_from={parent}@8", "--seed=1") for name in ("first", "second")]
    status, output = unibert("report", *map(str, branches))
    assert status == 0, output
    for branch in branches:
        page = (branch / "report" / "index.html").read_text()
        assert "The run branched off parent after step 8 (4,096 tokens)" in page
        assert "its stream starts anew (seed)." in page
        assert "Changed from step 9 on: seed 0 → 1." in page
        assert "Compared with other runs" in page
        card = (branch / "model" / "README.md").read_text()
        assert "The first 4,096 tokens are those of the run `parent`, from which this one branched off." in card
