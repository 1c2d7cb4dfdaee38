"""The SentencePiece model as a Hugging Face fast tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from unibert.corpus.normalization_rules import normalizer
from unibert.corpus.text_tokenizer import NEVER_BEST_SCORE
from unibert.corpus.tokenizer import MODEL_NAME, SPECIAL_TOKENS


def save_tokenizer(model: bytes, folder: Path, *, model_max_length: int) -> None:
    """Write ``sentencepiece.model`` and the fast tokenizer that ``AutoTokenizer.from_pretrained(folder)`` loads.

    It segments any text as the SentencePiece model does, except for ties between segmentations of equal score, and
    frames texts as ``<s> A </s>``, pairs as ``<s> A </s> B </s>``. Special tokens that a text spells out are text if
    ``split_special_tokens=True``.

    Args:
        model: serialised SentencePiece unigram model whose first ids are ``SPECIAL_TOKENS``.
        folder: folder to write to, created if missing.
        model_max_length: number of tokens to which ``truncation=True`` cuts.

    Raises:
        UserError: if the model's rules of normalisation are not those of UniBERT's models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_NAME).write_bytes(model)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_build(model),
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        # includes the space before it, so that "a <mask>" has no lone space token before the mask
        mask_token=AddedToken("<mask>", lstrip=True, special=True, normalized=False),
        model_max_length=model_max_length,
        padding_side="right",
        truncation_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))


def _build(model: bytes) -> Tokenizer:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    normal = {piece.piece for piece in proto.pieces if piece.type == piece.NORMAL}
    pieces = [(piece.piece, piece.score if piece.piece in normal else NEVER_BEST_SCORE) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=True))
    steps: list[normalizers.Normalizer] = []
    if charsmap := proto.normalizer_spec.precompiled_charsmap:
        steps.append(normalizer(charsmap))
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r" +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    # "first", not "always": in "(<mask>)" no space belongs before the second bracket
    prepend_scheme: Literal["first", "never"] = "first" if proto.normalizer_spec.add_dummy_prefix else "never"
    cuts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend_scheme)]
    # An unknown character scores below any piece, so that a special token with one in it would win. If such characters
    # stand alone, none fits.
    if unknown := {*"".join(piece for piece, _ in pieces)} - {*"".join(normal)}:
        cuts.append(pre_tokenizers.Split(Regex(f"[{re.escape(''.join(sorted(unknown)))}]"), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme=prepend_scheme)]
    )
    start, end = (SPECIAL_TOKENS[2], 2), (SPECIAL_TOKENS[3], 3)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start[0]} $A {end[0]}", pair=f"{start[0]} $A {end[0]} $B {end[0]}", special_tokens=[start, end]
    )
    return tokenizer
