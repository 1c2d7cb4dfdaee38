"""Small fast tokenizers of each kind that public encoders have, trained on given lines."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("wordpiece", "unigram", "sentencepiece-bpe", "byte-level-bpe")


def train(kind: str, lines: Sequence[str], vocab_size: int, folder: Path) -> Path:
    """Train a tokenizer and save it as transformers does; returns ``folder``."""
    tokenizer, roles = globals()[f"_{kind.replace('-', '_')}"](lines, vocab_size)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **roles)
    fast.save_pretrained(str(folder))
    return folder


def _bert_roles() -> dict[str, str]:
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return roles | {"mask_token": "[MASK]"}


def _wordpiece(lines: Sequence[str], vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As multilingual BERT, cased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    roles = _bert_roles()
    tokenizer.train_from_iterator(
        lines,
        trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(roles.values()), show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer, roles


def _unigram(lines: Sequence[str], vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As XLM-R: fairseq's order of the special ids, the mask behind all pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        lines,
        trainers.UnigramTrainer(
            vocab_size=vocab_size - 1, special_tokens=first, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    roles = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    return tokenizer, roles | {"unk_token": "<unk>", "mask_token": "<mask>"}


def _sentencepiece_bpe(lines: Sequence[str], vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As mmBERT, whose tokenizer is Gemma's: spaces as pieces, other characters in bytes."""
    roles = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    roles |= {"mask_token": "<mask>", "cls_token": "<bos>", "sep_token": "<eos>"}
    special = list(dict.fromkeys(roles.values()))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        limit_alphabet=200,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    content = json.loads(tokenizer.to_str())
    # The bytes are pieces, not special tokens.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> $B <eos>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<bos>", "<eos>")],
    )
    return tokenizer, roles


def _byte_level_bpe(lines: Sequence[str], vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As ModernBERT: bytes as characters, special tokens behind all pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = _bert_roles()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(roles),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(list(roles.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer, roles
