"""What all providers of ``bench train`` train on: a corpus of random documents, and one architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unibert.corpus.manifest import Manifest
from unibert.corpus.shards import ShardWriter
from unibert.corpus.special_ids import OWN_SPECIAL_IDS as SPECIAL
from unibert.model.config import ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.schedules import Timeline
from unibert.stream import Stream
from unibert.stream.config import StreamConfig
from unibert.stream.stream import StepBatch

LANGUAGES = tuple(f"l{number:02d}" for number in range(16))
SPECIAL_WORDS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
LEARNING_RATE, MAX_NORM = 1e-4, 1.0


@dataclass(frozen=True, kw_only=True)
class TrainWork:
    """Sizes of the model and of the batches, see `unibert.bench.training.config.TrainBenchConfig`."""

    corpus: str
    run_dir: str
    """Folder in which the whole trainer works."""
    vocab_size: int
    hidden_size: int
    layers: int
    intermediate_size: int
    sequence_length: int
    batch_size: int
    micro_batches: int
    """Micro-batches of ``batch_size`` sequences that a rank makes in a step."""
    masking_rate: float
    document_length: int
    ranks: int
    ds_config: str
    warmup: int
    steps: int
    threads: int
    """CPU threads of each rank."""
    seed: int

    @property
    def num_steps(self) -> int:
        """Steps of a run."""
        return self.warmup + self.steps

    @property
    def run_tokens(self) -> int:
        """Tokens of a run, of all ranks."""
        return self.num_steps * self.ranks * self.micro_batches * self.batch_size * self.sequence_length

    @property
    def model_settings(self) -> dict[str, Any]:
        """``model.config`` of a run file."""
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden_size // 64,
            "intermediate_size": self.intermediate_size,
            "local_attention": 128,
            "global_attn_every_n_layers": 3,
        }

    def model(self) -> PreTrainedModel:
        """Build the model, the same for all providers."""
        torch.manual_seed(self.seed)
        return build_masked_lm(ModelConfig(config=self.model_settings), self.vocab_size, self.sequence_length)

    def stream_config(self) -> StreamConfig:
        """One lane for each rank."""
        return StreamConfig(lanes=self.ranks, masking_rate=self.masking_rate)

    def step_batches(self, rank: int) -> Iterator[StepBatch]:
        """Yield UniBERT's batches, of packed documents."""
        timeline = Timeline(self.run_tokens, self.ranks * self.micro_batches * self.batch_size, self.sequence_length)
        stream = Stream(
            self.corpus, self.stream_config(), seed=self.seed, timeline=timeline, rank=rank, world_size=self.ranks
        )
        return stream.steps()

    def rows(self, rank: int) -> list[list[int]]:
        """Return the same sequences before they are masked, without padding, as a data set of a rank has them."""
        rows = []
        for step in self.step_batches(rank):
            sequences = step.sequences
            originals = np.where(sequences.labels >= 0, sequences.labels, sequences.input_ids)
            rows += [row[row != SPECIAL.pad].tolist() for row in originals]
        return rows

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the corpus's tokenizer."""
        tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(self.corpus) / "tokenizer")
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        return tokenizer


def write_corpus(work: TrainWork) -> None:
    """Write twice as many tokens as a run reads, of documents with log-normal lengths and Zipf's frequencies."""
    root = Path(work.corpus)
    random = np.random.default_rng(work.seed)
    content = work.vocab_size - len(SPECIAL_WORDS)
    shares = 1 / (np.arange(content) + 2.7)
    shares /= shares.sum()
    tokens_per_language = 2 * work.run_tokens // len(LANGUAGES) + 4 * work.document_length
    shards = []
    for language in LANGUAGES:
        with ShardWriter(root, language, "train", vocab_size=work.vocab_size) as writer:
            written = 0
            while written < tokens_per_language:
                length = max(4, round(float(random.lognormal(np.log(work.document_length), 0.8))))
                ids = len(SPECIAL_WORDS) + random.choice(content, length, p=shares)
                writer.write(f"document{written}", ids, 3 * length)
                written += length
        assert writer.shard is not None
        shards.append(writer.shard)
    words = [*SPECIAL_WORDS, *(f"w{number}" for number in range(content))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    names = ("pad_token", "unk_token", "bos_token", "eos_token", "mask_token")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL_WORDS, strict=True))).save_pretrained(
        root / "tokenizer"
    )
    Manifest(
        shards=tuple(shards),
        vocab_size=work.vocab_size,
        token_dtype="uint16" if work.vocab_size <= 1 << 16 else "uint32",
        tokenizer_sha256="0" * 64,
        unigram_entropy={"all": 0.0, **dict.fromkeys(LANGUAGES, 0.0)},
    ).save(root)
