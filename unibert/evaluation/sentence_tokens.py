"""Sentences as token ids, and which of them share a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from unibert.corpus.text_tokenizer import plain_tokenizer


class SentenceTokenizer:
    """Tokenizes sentences for an encoder. A special token that a sentence spells out, such as ``<mask>``, is ordinary
    text.

    Args:
        tokenizer: of transformers, fast or slow.
        max_length: tokens, with the frame, at which a sentence is cut; the tokenizer may cut earlier.
        prompt: text before every sentence.
    """

    def __init__(self, tokenizer: Any, *, max_length: int, prompt: str = "") -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._max_length = min(max_length, tokenizer.model_max_length)
        self._framing: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._framing is not None:
            self._plain = plain_tokenizer(self._framing.to_str())
            self._framing.no_padding()
            self._framing.enable_truncation(self._max_length)

    def token_ids(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return the ids of each sentence, the prompt before it, framed and cut."""
        texts = [self._prompt + sentence for sentence in sentences]
        if self._framing is None:
            return self._tokenizer(texts, truncation=True, max_length=self._max_length)["input_ids"]
        encoded = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        return [self._framing.post_process(one).ids for one in encoded]


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices in order of length; a padded batch has at most ``batch_tokens`` tokens, or one sentence."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
