"""Values of a run file and of the command line reach the configuration unchanged."""

from pathlib import Path

import pytest

from unibert.configuration import parse, read_yaml
from unibert.training.config import RunConfig

RUN = """
run_dir: 2026-11-22
corpus: corpus
training: {tokens: 2_000_000}
stream:
  languages: [no, sv, on]
  language_starts: {no: 0.5}
  whole_words: true
optimizer: {learning_rate: 1e-3, eps: .5, weight_decay: 1E2}
"""


@pytest.mark.parametrize("given", ["in the file", "on the command line"])
def test_strings_and_numbers_keep_their_types(tmp_path: Path, given: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN if given == "in the file" else "run_dir: a\ncorpus: corpus\ntraining: {tokens: 1}\n")
    overrides = [
        "--run_dir=2026-11-22",
        "--training.tokens=2_000_000",
        "--stream.languages=[no, sv, on]",
        "--stream.language_starts={no: 0.5}",
        "--stream.whole_words=true",
        "--optimizer.learning_rate=1e-3",
        "--optimizer.eps=.5",
        "--optimizer.weight_decay=1E2",
    ]
    words = ["--config", str(path), *(overrides if given != "in the file" else [])]
    config = parse(RunConfig, words)
    assert config.run_dir == "2026-11-22"
    assert config.training.tokens == 2_000_000
    assert config.stream.languages == ["no", "sv", "on"]
    assert config.stream.language_starts == {"no": 0.5}
    assert config.stream.whole_words is True
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.eps, optimizer.weight_decay) == (1e-3, 0.5, 100.0)


def test_files_are_parsed_like_options(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    content = read_yaml(path)
    assert content["run_dir"] == "2026-11-22"
    assert content["stream"]["languages"] == ["no", "sv", "on"]
    assert content["optimizer"] == {"learning_rate": 1e-3, "eps": 0.5, "weight_decay": 100.0}
