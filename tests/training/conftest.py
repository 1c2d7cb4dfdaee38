"""A corpus of three made-up languages, and runs on it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.training.processes import fork_ranks, statuses
from unibert.corpus.manifest import Manifest
from unibert.corpus.shards import ShardWriter
from unibert.launcher import launcher_command

VOCAB_SIZE = 300
LANGUAGES = ("de", "en", "ru")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each language walks through 90 tokens of its own, so that both words and languages can be learnt."""
    root = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    shards = []
    for index, language in enumerate(LANGUAGES):
        for split, documents in (("train", 60), ("heldout", 6)):
            with ShardWriter(root, language, split, vocab_size=VOCAB_SIZE) as writer:
                for document in range(documents):
                    steps = random.integers(0, 3, int(random.integers(10, 120)))
                    writer.write(f"{split}{document}", 5 + 90 * index + np.cumsum(steps) % 90, 3 * len(steps))
            shards.append(writer.shard)
    words = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", *(f"w{i}" for i in range(VOCAB_SIZE - 5))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    ).save_pretrained(root / "tokenizer")
    entropy = {"all": 5.6, **dict.fromkeys(LANGUAGES, 4.5)}
    Manifest(
        shards=tuple(shards),
        vocab_size=VOCAB_SIZE,
        token_dtype="uint16",
        tokenizer_sha256="0" * 64,
        unigram_entropy=entropy,
    ).save(root)
    return root


@pytest.fixture(scope="session")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty sentences, 4 to 13 words long, in each language; word i of the first means i + 90 in the second.

    One word of each is the same in all languages.
    """
    folder = tmp_path_factory.mktemp("aligned")
    random = np.random.default_rng(0)
    sentences = [random.integers(0, 90, length) for length in random.integers(3, 13, 30)]
    for index, language in enumerate(LANGUAGES):
        lines = [
            " ".join(f"w{word}" for word in (*(90 * index + sentence), 270 + line % 25))
            for line, sentence in enumerate(sentences)
        ]
        (folder / f"{language}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def own_corpus(corpus: Path, tmp_path: Path) -> Path:
    """A copy that may be altered."""
    return Path(shutil.copytree(corpus, tmp_path / "corpus"))


@pytest.fixture
def run_file(corpus: Path, tmp_path: Path) -> Path:
    return write_run_file(corpus, tmp_path)


@pytest.fixture(scope="module")
def module_run_file(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_file(corpus, tmp_path_factory.mktemp("run-file"))


def write_run_file(corpus: Path, folder: Path) -> Path:
    """All but distillation on; 50 steps of 8 sequences."""
    run = {
        "run_dir": str(folder / "run"),
        "corpus": str(corpus),
        "training": {
            "tokens": 50 * 8 * 64,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "sequence_length": 64,
            "log_every": 1,
            "checkpoint_every": 20,
            "evaluate_every": 20,
            "ds_config": "zero0",
        },
        "stream": {"lanes": 4, "window_shards": 2},
        "model": {
            "config": {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 96,
                "local_attention": 16,
            }
        },
        "adversary": {"max_lambda": 0.5},
        "optimizer": {"learning_rate": 2e-3},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def start(words: list[str], ranks: int = 1, **options: object) -> subprocess.Popen[str]:
    """``unibert WORDS``, plainly or through the deepspeed launcher, on one thread a rank."""
    command = [sys.executable, "-m", "unibert", *words]
    if ranks > 1:
        command = launcher_command("unibert", words, ranks=ranks)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def run_to_end(*words: str, ranks: int = 1) -> tuple[int, str]:
    """A command's exit status, the first one other than 0 of its ranks, and all that it printed."""
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed.txt"
        ended = statuses(fork_ranks(list(words), ranks, printed), timeout=500)
        return next(filter(None, ended), 0), printed.read_text()


@pytest.fixture
def unibert() -> Callable[..., tuple[int, str]]:
    return run_to_end
