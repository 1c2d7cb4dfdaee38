"""Sentence vectors of every layer of a Hugging Face encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from unibert.errors import UserError
from unibert.evaluation.config import MAX_LENGTH
from unibert.evaluation.sentence_tokens import SentenceTokenizer, length_batches

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")


class SentenceEncoder:
    """A frozen encoder with its tokenizer, in float32, that turns sentences into vectors.

    Attributes:
        num_layers: number of vectors per sentence: the embeddings' output (layer 0) and every block's output, the last
            one as the model returns it, after its final norm if it has one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int,
        batch_tokens: int,
        device: torch.device | str,
        prompt: str = "",
    ) -> None:
        self._model = model.float().eval().requires_grad_(False).to(device)
        self._tokenizer = tokenizer
        self._sentences = SentenceTokenizer(tokenizer, max_length=max_length, prompt=prompt)
        self._batch_tokens = batch_tokens
        self.num_layers: int = model.config.num_hidden_layers + 1

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        untrained_seed: int | None = None,
        max_length: int = MAX_LENGTH,
        batch_tokens: int = 8192,
        device: torch.device | str = "cpu",
        prompt: str = "",
    ) -> SentenceEncoder:
        """Load the encoder of a model folder, see `load_encoder`."""
        model, tokenizer = load_encoder(folder, untrained_seed=untrained_seed)
        return cls(model, tokenizer, max_length=max_length, batch_tokens=batch_tokens, device=device, prompt=prompt)

    @torch.inference_mode()
    def embed(self, sentences: Sequence[str]) -> torch.Tensor:
        """Return the mean over the tokens of each sentence at every layer, with prompt and frame, without padding.

        Sentences are cut at ``max_length`` tokens and batched with others of similar length. The result depends on the
        other sentences only through rounding, and not at all on earlier calls. A special token that a sentence spells
        out, such as ``<mask>``, is ordinary text.

        Returns:
            (num_layers, len(sentences), H) float32 on the CPU.

        Raises:
            UserError: if a vector is not finite, as with a model that diverged in training.
        """
        token_ids = self._sentences.token_ids(sentences)
        vectors = torch.empty(self.num_layers, len(token_ids), self._model.config.hidden_size)
        for batch in length_batches([len(ids) for ids in token_ids], self._batch_tokens):
            padded = self._tokenizer.pad({"input_ids": [token_ids[i] for i in batch]}, return_tensors="pt")
            padded = {key: padded[key].to(self._model.device) for key in ("input_ids", "attention_mask")}
            hidden_states = torch.stack(self._model(**padded, output_hidden_states=True).hidden_states)
            mask = padded["attention_mask"][None, :, :, None].to(hidden_states.dtype)
            vectors[:, batch] = ((hidden_states * mask).sum(dim=2) / mask.sum(dim=2)).cpu()
        if not vectors.isfinite().all():
            raise UserError(f"{self._model.name_or_path}: the model gives vectors with NaN or infinite values")
        return vectors


def load_encoder(folder: Path, *, untrained_seed: int | None = None) -> tuple[Any, Any]:
    """Load the encoder of a model folder, in float32, and its tokenizer.

    Args:
        folder: Hugging Face model folder.
        untrained_seed: initialise the encoder's architecture freshly with this seed instead.

    Raises:
        UserError: if the folder is missing, incomplete or holds files that do not fit together.
    """
    _check_folder(folder)
    with _quiet_transformers(), _user_errors(folder):
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if untrained_seed is None:
            model, loading = AutoModel.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True
            )
            # No masked-LM objective trains the pooler of BERT and similar models, and nothing here reads it.
            missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(untrained_seed)
                model, missing = AutoModel.from_config(config), []
    if missing:
        raise UserError(f"{folder} is incomplete: its weights lack {len(missing)} tensors, the first {missing[0]}")
    if tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no padding token; add pad_token to tokenizer_config.json")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and the model's vocabulary "
            f"{model.get_input_embeddings().num_embeddings}; use the tokenizer that the model was trained with"
        )
    return model, tokenizer


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a Hugging Face model folder: config.json is missing")
    if not any((folder / name).is_file() for name in _WEIGHT_FILES):
        raise UserError(f"{folder} is incomplete: no weights ({_WEIGHT_FILES[0]}) in it")
    if not any(folder.glob("tokenizer*.json")) and not any(folder.glob("*.model")) and not any(folder.glob("vocab*")):
        raise UserError(f"{folder} is incomplete: no tokenizer (tokenizer.json) in it")


@contextlib.contextmanager
def _user_errors(folder: Path) -> Iterator[None]:
    """Raise UserError instead of the many exceptions with which libraries fail on damaged files."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be loaded as an encoder: {type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress the warning that a masked-LM checkpoint's head is unused; the weights that matter are checked here."""
    verbosity = transformers_logging.get_verbosity()
    progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bar:
            transformers_logging.enable_progress_bar()
