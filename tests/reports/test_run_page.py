import base64
import json
import re

import pytest

from tests.evaluation.tiny_model import save_tiny_model
from unibert.errors import UserError
from unibert.evaluation.evaluate import EvaluateConfig, evaluate
from unibert.reports.run_page import write_report
from unibert.reports.run_records import read_run
from unibert.reports.summary import format_summary, write_summary

LANGUAGES = ("aa", "bb", "cc")
SECTIONS = (
    "Losses",
    "Held-out loss",
    "Loss by language",
    "Language discriminator",
    "Retrieval over the run",
    "Training diagnostics",
    "Retrieval of translations, layer 3",
    "Retrieval at every layer",
    "Language probe at every layer",
    "Similarity of the languages&#39; spaces at every layer",
    "Sentence vectors in two dimensions, layer 3",
    "Configuration",
)


def training_line(step, **more):
    return {
        "step": step,
        "tokens": step * 4096,
        "progress": step / 200,
        "loss": 6 - step / 100,
        "mlm_loss": 5 - step / 100,
        "mlm_accuracy": 0.1,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "masking_rate": 0.3,
        "padding_share": 0.01,
        "mlm_loss_by_language": {"aa": 4.0, "bb": 5.0},
        "tokens_per_second": 3e4,
        "memory_gib": 2.0,
        **more,
    }


def heldout_line(step, loss):
    return {
        "step": step,
        "heldout_mlm_loss": loss,
        "heldout_mlm_accuracy": 0.2,
        "unigram_entropy": 6.0,
        "heldout_mlm_loss_by_language": {"aa": loss, "bb": loss + 1},
        "unigram_entropy_by_language": {"aa": 5.5, "bb": 6.5},
    }


def retrieval_line(step, raw, **more):
    return {
        "step": step,
        "tokens": step * 4096,
        "retrieval_raw": raw,
        "retrieval_centred": raw + 0.125,
        "retrieval_margin": raw + 0.25,
        "probe_linear": 0.875,
        "geometry_variance": 12.5,
        "geometry_mean_cosine": 0.5,
        "geometry_participation_ratio": 3.0,
        "geometry_language_share": 0.25,
        "retrieval_chance": 0.02,
        "probe_chance": 1 / 3,
        **more,
    }


def write_metrics(run, *lines):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def full_metrics():
    adversary = {"adversary_loss": 1.0, "adversary_accuracy": 0.4, "adversary_chance": 0.33, "reversal_lambda": 0.5}
    distillation = {"distillation_logits_loss": 2.0, "distillation_weight": 0.5}
    lines = [training_line(step, **adversary, **distillation) for step in range(1, 201)]
    return [*lines, heldout_line(100, 4.5), heldout_line(200, 3.75)]


def alarms(page):
    return re.findall(r'<li class="alarm">(.*?)</li>', page)


def missing(page):
    return re.findall(r'<p class="missing">(.*?)</p>', page)


@pytest.fixture(scope="module")
def evaluated_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "demo <1>"
    write_metrics(run, *full_metrics())
    (run / "config.yaml").write_text("seed: 7\ntraining:\n  tokens: 819200\n")
    aligned = run.parent / "aligned"
    aligned.mkdir()
    for language in LANGUAGES:
        lines = (f"{language}{line} {language}{line * 3 % 30} {language}\n" for line in range(30))
        (aligned / f"{language}.txt").write_text("".join(lines))
    words = [*LANGUAGES, *(f"{language}{line}" for language in LANGUAGES for line in range(30))]
    model = save_tiny_model(run / "model", words, seed=5)
    evaluate(EvaluateConfig(model=model, retrieval=aligned, untrained=True, probe_restarts=1, device="cpu"))
    points = [{"step": step, "tokens": 4096 * step, "raw": step / 400, "centred": 0.75} for step in (0, 100, 200)]
    (run / "evaluation" / "retrieval_over_run.json").write_text(json.dumps({"format": 1, "points": points}))
    return run


def test_page_of_a_complete_run_has_all_sections_with_figures(evaluated_run):
    page_path = write_report(evaluated_run)
    page = page_path.read_text()
    assert page_path == evaluated_run / "report" / "index.html"
    assert tuple(re.findall(r"<h2>(.*?)</h2>", page)) == ("At a glance", *SECTIONS)
    assert missing(page) == []
    images = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    files = sorted(page_path.parent.glob("*.png"))
    assert len(images) == len(files) == 11
    assert {path.read_bytes() for path in files} == set(images)
    assert all(image.startswith(b"\x89PNG") and len(image) > 5000 for image in images)
    assert [path.name for path in page_path.parent.iterdir() if path.suffix not in (".png", ".html")] == []


def test_page_is_self_contained_and_escapes_names(evaluated_run):
    page = write_report(evaluated_run).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "demo &lt;1&gt;" in page
    assert "demo <1>" not in page


def test_page_shows_the_numbers(evaluated_run):
    page = write_report(evaluated_run).read_text()
    assert "819,200 tokens" in page
    assert "<td>100</td><td>409,600</td><td>25.0</td><td>75.0</td>" in page
    assert "The held-out MLM loss is 2.25 nats below the unigram entropy" in page
    assert re.search(r"<td>bb</td><td>4.750</td><td>6.500</td><td>\+1.750</td>", page)
    assert "<td>distillation_logits_loss</td><td>2</td>" in page
    assert "seed: 7" in page
    scores = json.loads((evaluated_run / "evaluation" / "scores.json").read_text())
    assert f"{100 * scores['model']['retrieval_mean']['3']['centred']:.1f} %" in page
    assert f"<td>3</td><td>{scores['model']['cka_mean']['3']:.3f}</td>" in page


def test_scores_without_cka_are_shown_too(evaluated_run, tmp_path):
    """As an older evaluation wrote them."""
    scores = json.loads((evaluated_run / "evaluation" / "scores.json").read_text())
    for part in ("model", "baseline"):
        del scores[part]["cka"], scores[part]["cka_mean"]
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "scores.json").write_text(json.dumps(scores))
    page = write_report(tmp_path).read_text()
    assert "The scores are older than CKA" in " ".join(missing(page))
    assert "Retrieval by layer" in page


def test_a_discriminator_at_chance_with_a_successful_probe_raises_an_alarm(evaluated_run):
    # Every sentence of the fixture ends in a word that names its language, so that any probe succeeds.
    text = " ".join(alarms(write_report(evaluated_run).read_text()))
    assert "hidden from that discriminator, not gone" in text


def test_missing_parts_are_named(tmp_path):
    write_metrics(tmp_path, *(training_line(step) for step in range(1, 4)))
    page = write_report(tmp_path).read_text()
    text = " ".join(missing(page))
    for part in ("adversary was off", "No held-out loss", "has not been evaluated", "config.yaml is missing"):
        assert part in text
    assert page.count("<img") == 3


def test_page_of_a_run_with_only_a_config(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert "no training steps" in " ".join(missing(write_report(tmp_path).read_text()))


def test_what_training_measured_takes_the_place_of_scored_checkpoints(tmp_path):
    lines = [training_line(step) for step in range(1, 4)]
    write_metrics(tmp_path, *lines, retrieval_line(0, 0.25), retrieval_line(2, 0.5), retrieval_line(3, 0.375))
    page = write_report(tmp_path).read_text()
    sections = re.findall(r"<h2>(.*?)</h2>", page)
    assert "Retrieval and language probe in training" in sections
    assert "Retrieval over the run" not in sections
    assert (tmp_path / "report" / "retrieval_in_training.png").stat().st_size > 5000
    row = "<td>2</td><td>8,192</td><td>50.0</td><td>62.5</td><td>75.0</td><td>87.5</td><td>12.5</td><td>0.500</td>"
    assert row in page
    # Of the last measurement.
    assert "37.5 %" in page
    assert "centred 50.0 %, chance 2.0 %" in page
    # Losses and diagnostics are those of the steps, which the measurements do not interrupt.
    assert [record["step"] for record in read_run(tmp_path).training] == [1, 2, 3]
    assert alarms(page) == []
    points = [{"step": step, "tokens": 4096 * step, "raw": 0.5, "centred": 0.75} for step in (0, 3)]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "retrieval_over_run.json").write_text(json.dumps({"format": 1, "points": points}))
    sections = re.findall(r"<h2>(.*?)</h2>", write_report(tmp_path).read_text())
    assert {"Retrieval and language probe in training", "Retrieval over the run"} <= set(sections)


def test_vectors_that_collapse_in_training_raise_an_alarm(tmp_path):
    write_metrics(tmp_path, training_line(1), retrieval_line(1, 0.5, geometry_mean_cosine=0.995))
    assert "of the last layer have nearly the same direction" in " ".join(alarms(write_report(tmp_path).read_text()))


def test_changes_and_steps_left_out_are_told(tmp_path):
    change = {"step": 1, "changed": {"optimizer.learning_rate": {"from": 2e-3, "to": 1e-3}}, "reason": "<spike>"}
    left_out = [{"step": step, "left_out": "loss", "origins": {"0": ["en/train-000000.tar#7"]}} for step in range(2, 9)]
    scaled = {"step": 9, "left_out": "loss_scale", "origins": {}}
    write_metrics(tmp_path, training_line(1), change, *left_out, scaled, training_line(10))
    page = write_report(tmp_path).read_text()
    assert "Changed from step 2 on: optimizer.learning_rate 0.002 → 0.001 (&lt;spike&gt;)." in page
    (alarm,) = alarms(page)
    assert "7 steps were left out, since their loss or gradient was not finite: 2, 3, 4, 5, 6 and 2 more." in alarm
    assert [record["step"] for record in read_run(tmp_path).training] == [1, 10]


def test_alarms_of_a_failed_run(tmp_path):
    steps = [training_line(step, adversary_accuracy=0.99, adversary_chance=0.3) for step in range(1, 50)]
    write_metrics(tmp_path, *steps, training_line(50, loss=float("nan")), heldout_line(50, 6.5))
    text = " ".join(alarms(write_report(tmp_path).read_text()))
    assert "diverged" in text
    assert "not below the unigram entropy" in text
    assert "99.0 % at the end" in text


def test_the_later_line_of_a_step_counts_and_a_truncated_line_is_reported(tmp_path):
    write_metrics(tmp_path, training_line(1), training_line(2, loss=9.0), training_line(3), training_line(2, loss=1.0))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run = read_run(tmp_path)
    assert [(record["step"], record["loss"]) for record in run.training] == [(1, 5.99), (2, 1.0), (3, 5.97)]
    assert run.damaged_lines == 1
    assert "not shown on this page: 1." in " ".join(alarms(write_report(tmp_path).read_text()))


def test_error_sentences(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
    write_metrics(tmp_path, training_line(1))
    scores = tmp_path / "evaluation" / "scores.json"
    scores.parent.mkdir()
    for content, message in (('{"format": 1, ', "damaged"), ('{"format": 2}', "another format")):
        scores.write_text(content)
        with pytest.raises(UserError, match=message):
            write_report(tmp_path)


def test_page_of_a_run_that_was_scored_at_one_layer(evaluated_run, tmp_path):
    model, aligned = evaluated_run / "model", evaluated_run.parent / "aligned"
    options = {"model": model, "retrieval": aligned, "probe_restarts": 1, "device": "cpu"}
    evaluate(EvaluateConfig(**options, layers=[1], output=tmp_path / "evaluation"))
    page = write_report(tmp_path).read_text()
    assert "Retrieval of translations, layer 1" in page
    assert write_summary(tmp_path)["layer"] == 1


def test_summary_has_the_last_heldout_loss_and_the_scores_of_the_headline_layer(evaluated_run):
    summary = write_summary(evaluated_run)
    assert json.loads((evaluated_run / "report" / "summary.json").read_text()) == summary
    scores = json.loads((evaluated_run / "evaluation" / "scores.json").read_text())
    layer = str(scores["headline_layer"])
    assert summary["retrieval"]["centred"]["trained"] == scores["model"]["retrieval_mean"][layer]["centred"]
    assert summary["probe"]["raw"]["chance"] == scores["chance"]["probe"]
    assert summary["environment"]["versions"]["torch"]
    text = format_summary(summary)
    assert f"{summary['heldout_mlm_loss']:.2f} nats per token" in text
    assert f"{100 * summary['retrieval']['raw']['trained']:.1f} %" in text
