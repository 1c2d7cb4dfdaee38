"""The model that comes out is a plain Hugging Face model that predicts what the trainer measured."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from tests.refusals import refused
from unibert.cli import main
from unibert.corpus.manifest import Manifest
from unibert.evaluation.retrieval import accuracy, find_translations
from unibert.stream import StreamConfig, split_batches
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource
from unibert.training.metrics_file import read_metrics


@pytest.fixture(scope="module")
def run_dir(module_run_file) -> Path:
    from tests.training.conftest import run_to_end

    folder = module_run_file.parent / "run"
    status, output = run_to_end("pretrain", str(module_run_file), f"--run_dir={folder}")
    assert status == 0, output
    return folder


@torch.no_grad()
def test_documents_alone_in_the_export_have_the_trainers_heldout_loss(run_dir, corpus):
    model = AutoModelForMaskedLM.from_pretrained(run_dir / "model").eval()
    batches = split_batches(
        corpus,
        StreamConfig(lanes=4, window_shards=2),
        split="heldout",
        seed=0,
        sequence_length=64,
        micro_batch_size=4,
        max_sequences_per_language=64,
    )
    losses: dict[int, list[float]] = {}
    for batch in batches:
        for document, language in enumerate(batch.document_languages.tolist()):
            here = batch.document_ids == document
            ids, labels = batch.input_ids[here][None], batch.labels[here]
            logits = model(input_ids=ids).logits[0]
            losses.setdefault(language, []).extend(
                torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none").tolist()
            )
    last = read_metrics(run_dir / "metrics.jsonl").heldout[-1]
    own = [sum(losses[language]) / len(losses[language]) for language in sorted(losses)]
    # Means of fp32 losses: 6e-8 a term, in another order and through another attention shape.
    assert own == pytest.approx(list(last["heldout_mlm_loss_by_language"].values()), rel=1e-5)
    assert min(own) <= last["heldout_mlm_loss"] <= max(own)


def test_it_loads_without_this_package_and_fills_masks(run_dir):
    program = (
        "import sys; sys.modules['unibert'] = sys.modules['unibert_kernels'] = None\n"
        "from transformers import pipeline\n"
        f"answers = pipeline('fill-mask', model={str(run_dir / 'model')!r}, device='cpu')('w1 w2 <mask> w4')\n"
        "print(len(answers))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.stdout.strip() == "5", finished.stderr
    assert sorted(path.suffix for path in (run_dir / "model").glob("*model*")) == [".safetensors"]


def test_any_checkpoint_can_be_exported(run_dir, tmp_path, unibert):
    steps = [int(path.name.removeprefix("step-")) for path in sorted((run_dir / "checkpoints").glob("step-*"))]
    assert steps == [40, 50]
    status, output = unibert("export", str(run_dir), "--step=40", f"--output={tmp_path / 'early'}")
    assert status == 0, output
    early, late = (AutoModelForMaskedLM.from_pretrained(path) for path in (tmp_path / "early", run_dir / "model"))
    assert not torch.equal(early.decoder.weight, late.decoder.weight)
    assert early.decoder.weight.data_ptr() == early.get_input_embeddings().weight.data_ptr()
    assert AutoTokenizer.from_pretrained(tmp_path / "early").mask_token == "<mask>"


def test_the_mean_of_checkpoints(run_dir, tmp_path, capsys):
    main(["average", str(run_dir), "--last=2"])
    assert capsys.readouterr().out.startswith(f"The model is in {run_dir / 'average'}. Next: unibert evaluate")
    main(["average", str(run_dir), "--steps=50,40", f"--output={tmp_path / 'average'}"])
    for step in (40, 50):
        main(["export", str(run_dir), f"--step={step}", f"--output={tmp_path / str(step)}"])
    early, late, mean, by_steps = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "40", tmp_path / "50", run_dir / "average", tmp_path / "average")
    )
    assert mean.keys() == late.keys()
    for name, tensor in mean.items():
        # Both means are sums in float64, rounded once.
        assert torch.equal(tensor, ((early[name].double() + late[name].double()) / 2).float())
        assert torch.equal(tensor, by_steps[name])
    card = (run_dir / "average" / "README.md").read_text()
    assert "in 50 steps" in card
    assert "The weights are the mean of those after the steps 40 and 50." in card
    assert "the MLM loss on held-out documents" not in card
    AutoModelForMaskedLM.from_pretrained(run_dir / "average")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--last=5"], "has no 5 checkpoints to average; it has kept 40, 50; training.keep_checkpoints and training"),
        (["--steps=40,45"], "has no checkpoint of step 45 to average; it has kept 40, 50; training.keep_checkpoints"),
        (["--last=1"], "last: must be at least 2, got 1"),
        (["--steps=40"], "steps: name at least two, got [40]"),
        ([], "last: give either --last N or --steps N,N,…"),
    ],
)
def test_a_mean_of_checkpoints_that_are_not_there(run_dir, words, sentence, capsys):
    assert sentence in refused(capsys, "average", run_dir, *words)[1]


def test_the_card_describes_the_run(run_dir, corpus):
    card, manifest = ModelCard.load(run_dir / "model" / "README.md"), Manifest.load(corpus)
    assert card.data.language == manifest.languages
    assert card.data.license is None
    assert "# run\n" in card.text
    assert "read 25,600 tokens, padding included, in 50 steps" in card.text
    assert "rises to 0.5" in card.text
    last = read_metrics(run_dir / "metrics.jsonl").heldout[-1]
    logged = read_metrics(run_dir / "metrics.jsonl").training[-1]
    right = f"the language discriminator was right in {100 * logged['adversary_accuracy']:.1f} % (chance: "
    assert f"step 50, the MLM loss was {logged['mlm_loss']:.3f} nats per masked token and {right}" in card.text
    assert f"After step 50, the MLM loss on held-out documents was {last['heldout_mlm_loss']:.3f} nats" in card.text
    assert "frequencies of tokens would have 5.600" in card.text
    assert f"| de | German | 60 | {manifest.tokens('de'):,} |" in card.text
    assert f"180 documents with {sum(map(manifest.tokens, manifest.languages)):,} tokens" in card.text
    assert "## Scores" not in card.text


@pytest.fixture
def own_run(run_dir, tmp_path) -> Path:
    """A copy that may be altered."""
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


@pytest.fixture
def aligned(tmp_path) -> Path:
    folder = tmp_path / "aligned"
    folder.mkdir()
    for index, language in enumerate(("de", "en", "ru")):
        words = [[f"w{90 * index + (7 * line + 3 * word) % 90}" for word in range(5)] for line in range(20)]
        (folder / f"{language}.txt").write_text("".join(f"{' '.join(line)}\n" for line in words))
    return folder


def evaluate(model: Path, aligned: Path, *words: str) -> None:
    main(["evaluate", str(model), f"--retrieval={aligned}", "--probe_restarts=1", "--device=cpu", *words])


def test_an_evaluation_writes_its_scores_into_the_card(own_run, aligned):
    card = own_run / "model" / "README.md"
    edited = card.read_text().replace("library_name", "license: mit\nlibrary_name")
    card.write_text(edited)
    evaluate(own_run / "model", aligned, "--untrained")
    scores = json.loads((own_run / "evaluation" / "scores.json").read_text())
    last_layer = f"{100 * scores['model']['retrieval_mean']['2']['raw']:.1f}"
    assert "Scores of the last layer (2 of 0-2" in card.read_text()
    row = next(line for line in card.read_text().splitlines() if "retrieval raw" in line)
    assert row.split("|")[2].strip() == last_layer
    scored = card.read_text()
    assert scored[: scored.index("## Scores")] + scored[scored.index("## Use") :] == edited


@torch.no_grad()
def test_means_of_languages_over_training_text(own_run, corpus, aligned, capsys):
    """All train documents, cut into pieces of 30 tokens and read alone, since the corpus is small."""
    main(["export", str(own_run), "--center"])
    model = own_run / "model"
    means = load_file(model / "language_means.safetensors")
    assert sorted(means) == ["de", "en", "ru"]
    encoder, manifest = AutoModel.from_pretrained(model).eval(), Manifest.load(corpus)
    source = ShardSource(corpus, StreamConfig())
    for code, mean in means.items():
        [shard] = manifest.shards_of(code)
        documents = [d for block in read_blocks(source, shard, manifest.vocab_size) for d in block.documents()]
        pieces = [document[start : start + 30] for document in documents for start in range(0, len(document), 30)]
        framed = (torch.tensor([[2, *piece.tolist(), 3]]) for piece in pieces)
        vectors = torch.stack([encoder(ids).last_hidden_state[0].mean(dim=0) for ids in framed])
        # Sums of some dozen fp32 terms of order 1.
        torch.testing.assert_close(mean, vectors.mean(dim=0), atol=1e-5, rtol=0)
    assert 'means["de"]' in (model / "README.md").read_text()

    evaluate(model, aligned)
    scores = json.loads((own_run / "evaluation" / "scores.json").read_text())["model"]
    shifted = {
        code: embed(encoder, AutoTokenizer.from_pretrained(model), (aligned / f"{code}.txt").read_text())[None] - mean
        for code, mean in means.items()
    }
    expected = {found.direction: accuracy(found.rows["raw"]) for found in find_translations(shifted)}
    assert scores["training_means"]["retrieval"] == pytest.approx(expected)
    assert "less means of training text" in capsys.readouterr().out
    evaluate(model, aligned, "--prompt=w1")
    assert json.loads((own_run / "evaluation" / "scores.json").read_text())["model"]["training_means"] is None


def embed(encoder, tokenizer, text: str) -> torch.Tensor:
    lines = (tokenizer(line, return_tensors="pt").input_ids for line in text.splitlines())
    return torch.stack([encoder(ids).last_hidden_state[0].mean(dim=0) for ids in lines])


def test_an_export_keeps_the_scores_of_its_weights_only(own_run, aligned):
    card = own_run / "model" / "README.md"
    evaluate(own_run / "model", aligned)
    scored = card.read_text()
    main(["export", str(own_run)])
    assert card.read_text() == scored
    main(["export", str(own_run), "--step=40"])
    assert "in 40 steps" in card.read_text()
    assert "After step 40, the MLM loss" in card.read_text()
    assert "## Scores" not in card.read_text()


def test_the_counts_of_another_corpus_are_left_out(own_run, own_corpus):
    config = own_run / "config.yaml"
    for change, is_listed in (({}, True), ({"tokenizer_sha256": "1" * 64}, False)):
        replace(Manifest.load(own_corpus), **change).save(own_corpus)
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"corpus": str(own_corpus)}))
        main(["export", str(own_run)])
        card = ModelCard.load(own_run / "model" / "README.md")
        assert (card.data.language is not None, "| de | German |" in card.text) == (is_listed, is_listed)
        assert ("The corpus has changed since the training" in card.text) != is_listed


def test_an_evaluation_leaves_the_cards_of_other_folders_alone(run_dir, aligned, tmp_path):
    model = Path(shutil.copytree(run_dir / "model", tmp_path / "downloaded"))
    before = (model / "README.md").read_text()
    evaluate(model, aligned, f"--output={tmp_path / 'scores'}")
    assert (model / "README.md").read_text() == before


def test_the_commands_print_their_own_lines_and_name_the_model_last(module_run_file, tmp_path):
    model = tmp_path / "run" / "model"
    words = [
        sys.executable,
        "-m",
        "unibert",
        "pretrain",
        str(module_run_file),
        f"--run_dir={model.parent}",
        "--training.tokens=1024",
        "--training.ds_config=zero2",
    ]
    first, again = (subprocess.run(words, capture_output=True, text=True) for _ in range(2))
    last_line = (
        f"The model is in {model}. Next: unibert report {model.parent}, unibert evaluate {model} --retrieval DIR\n"
    )
    assert (first.returncode, first.stdout) == (0, last_line)
    assert all(line.startswith(("unibert: ", "step ")) for line in first.stderr.splitlines()), first.stderr
    before = (model.parent / "metrics.jsonl").read_text()
    assert again.returncode == 0
    assert again.stdout.startswith(f"unibert: {model.parent} is finished: it has all 2 steps; to train it further")
    assert f"--run_dir NEW --resume_from {model.parent} and more --training.tokens; to start anew, " in again.stdout
    assert again.stdout.endswith(last_line)
    assert all(line.startswith("unibert: ") for line in again.stderr.splitlines()), again.stderr
    assert (model.parent / "metrics.jsonl").read_text() == before
    words = [sys.executable, "-m", "unibert", "export", str(model.parent), f"--output={tmp_path / 'other'}"]
    done = subprocess.run(words, capture_output=True, text=True)
    next_command = f"unibert evaluate {tmp_path / 'other'} --retrieval DIR"
    assert (done.stdout, done.stderr) == (f"The model is in {tmp_path / 'other'}. Next: {next_command}\n", "")


def test_what_a_push_would_upload(own_run, aligned, tmp_path, capsys, monkeypatch):
    evaluate(own_run / "model", aligned)
    words = ["push", str(own_run), "--to=org/name"]
    assert "names no licence; decide it by the licences of the training text" in refused(capsys, *words)[1]
    main([*words, "--license=apache-2.0", f"--dry_run={tmp_path / 'there'}"])
    assert "files for https://huggingface.co/org/name; nothing was uploaded" in capsys.readouterr().out
    names = {str(path.relative_to(own_run / "model")) for path in (own_run / "model").rglob("*")}
    assert {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*")} == names
    card = ModelCard.load(tmp_path / "there" / "README.md")
    assert (card.data.license, card.data.language) == ("apache-2.0", ["de", "en", "ru"])
    assert "The weights are published under this licence: apache-2.0." in card.text
    assert "not decided yet" not in card.text
    assert 'AutoModel.from_pretrained("org/name")' in card.text
    assert "FOLDER" not in card.text
    for part in ("## Scores", "| de | German | 60 |", "the MLM loss on held-out documents was", "Its objectives:"):
        assert part in card.text
    # Only the copy has another card.
    assert "not decided yet" in (own_run / "model" / "README.md").read_text()
    AutoModelForMaskedLM.from_pretrained(tmp_path / "there")

    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    error = refused(capsys, "push", tmp_path / "there", "--to=org/name")[1]
    assert "there is no token for the hub; log in with `hf auth login`, or set HF_TOKEN" in error
    assert "exists; choose a new folder" in refused(capsys, *words, "--license=mit", f"--dry_run={tmp_path}")[1]
    assert "has no model; write it with `unibert export" in refused(capsys, "push", tmp_path, "--to=a/b")[1]
    assert "to: must be ORG/NAME, got 'name'" in refused(capsys, "push", tmp_path, "--to=name")[1]


def test_a_checkpoint_that_is_not_there(run_dir, tmp_path, unibert):
    status, output = unibert("export", str(run_dir), "--step=41")
    assert (status, "has no checkpoint of step 41; it has 40, 50" in output) == (1, True)
    status, output = unibert("export", str(tmp_path))
    assert (status, "is not a run folder" in output) == (1, True)
