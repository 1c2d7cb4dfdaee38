"""Every attention path gives packed documents the output that a plain model gives each of them alone."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from tests.model.test_encoder import ARCHITECTURES
from unibert.model import attention
from unibert.model.attention import IMPLEMENTATIONS, PackedDocuments, choose_attention_path
from unibert.model.config import DistillationConfig, MLMConfig, ModelConfig
from unibert.model.encoder import build_masked_lm, encode
from unibert.model.teacher import Teacher
from unibert.model.unibert import StepWeights, UniBERT
from unibert.stream import Batch
from unibert.stream.batch import document_spans

VOCAB, LENGTH, WINDOW = 500, 50, 4
SEQUENCES = ([25, 1, 20], [30, 20], [7])
"""Documents by their lengths, most longer than the window; the first and the last sequence end with padding."""

LOSSES = DistillationConfig(teacher="", logits=0.5, relations=1.0, hidden=1.0, pooled=1.0)

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@dataclass(frozen=True)
class Place:
    path: str
    device: str
    dtype: torch.dtype
    calls_kernel: bool = False
    """On a CPU: whether varlen attention calls torch's kernel, as on a GPU, with a substitute for it."""

    @property
    def tolerance(self) -> float:
        """Tolerance of relative Frobenius norms. Each of four layers rounds some ten times in a row: sqrt(40) times
        fp32's 2^-24 is 4e-7, times bf16's 2^-9 1.2e-2, which sdpa has on a CPU; gradients have twice that. If documents
        attend to each other, the difference is 0.2 and more."""
        return 5e-6 if self.dtype == torch.float32 else 5e-2

    def encode(self, model: Any, packed: Packed, **options: Any) -> tuple[Tensor, ...]:
        documents = PackedDocuments.from_ids(packed.document_ids.to(self.device))
        ids, positions = packed.ids.to(self.device), packed.positions.to(self.device)
        return encode(model, ids, positions, documents, attention=self.path, **{"hidden_states": False, **options})


def _place(path: str, device: str, dtype: torch.dtype, *, calls_kernel: bool = False) -> Any:
    absent = device == "cuda" and not torch.cuda.is_available()
    marks = [pytest.mark.skipif(absent, reason="no CUDA GPU")]
    name = f"{path}-{'kernel-' if calls_kernel else ''}{device}-{str(dtype)[6:]}"
    return pytest.param(Place(path, device, dtype, calls_kernel), marks=marks, id=name)


ON_CUDA = [
    *(_place(path, "cuda", torch.bfloat16) for path in IMPLEMENTATIONS),
    *(_place(path, "cuda", torch.float32) for path in ("sdpa", "flex")),
]
TRAINABLE = [
    _place("sdpa", "cpu", torch.float32),
    _place("varlen", "cpu", torch.float32),
    _place("varlen", "cpu", torch.bfloat16),
    _place("varlen", "cpu", torch.float32, calls_kernel=True),
    *ON_CUDA,
]
ALL = [_place("flex", "cpu", torch.float32), *TRAINABLE]


@pytest.fixture
def place(request, monkeypatch) -> Place:
    """A path with device and dtype."""
    if request.param.calls_kernel:
        monkeypatch.setattr(attention, "_goes_by_document", lambda tensor: False)
        monkeypatch.setattr(attention, "varlen_attn", segment_by_segment)
    return request.param


def segment_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """Compute varlen_attn as torch documents it: (tokens, heads, D) to the same, windows (left, right), -1 without."""
    assert query.ndim == 3
    assert cu_seq_q.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    bounds = cu_seq_q.tolist()
    assert (bounds[0], bounds[-1]) == (0, len(query))
    assert max_q == max_k == int(cu_seq_q.diff().max())
    outputs = []
    for start, end in pairwise(bounds):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        offset = torch.arange(end - start)[:, None] - torch.arange(end - start)
        left, right = (reach if reach >= 0 else end for reach in window_size)
        scores = (q @ k.mT * scale).masked_fill((offset > left) | (-offset > right), -torch.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@dataclass(frozen=True)
class Packed:
    ids: Tensor
    positions: Tensor
    document_ids: Tensor


def packed(sequences: tuple[list[int], ...] = SEQUENCES) -> Packed:
    torch.manual_seed(1)
    ids = torch.randint(5, VOCAB, (len(sequences), LENGTH))
    documents, positions = torch.full_like(ids, -1), torch.zeros_like(ids)
    document = 0
    for sequence, lengths in enumerate(sequences):
        start = 0
        for length in lengths:
            documents[sequence, start : start + length] = document
            positions[sequence, start : start + length] = torch.arange(length)
            start, document = start + length, document + 1
    ids[documents < 0] = 0
    return Packed(ids, positions, documents)


def masked_lm(architecture: str, **settings: Any) -> Any:
    """Build a model without dropout, with weights ten times as large as usual, so that attention matters."""
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture] | {"initializer_range": 0.2} | settings
    return build_masked_lm(ModelConfig(architecture=architecture, config=config), VOCAB, LENGTH).eval()


def alone(model: Any, batch: Packed) -> Tensor:
    """Return the plain model's hidden states of the documents in order, (tokens, H)."""
    documents = range(int(batch.document_ids.max()) + 1)
    return torch.cat(
        [model.base_model(input_ids=batch.ids[batch.document_ids == d][None]).last_hidden_state[0] for d in documents]
    )


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().cpu().float() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("place", ALL, indirect=True)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_packed_documents_equal_documents_alone(architecture, place):
    plain = masked_lm(architecture)
    model = copy.deepcopy(plain).requires_grad_(False).to(place.device, place.dtype)
    batch = packed()
    states = place.encode(model, batch, hidden_states=True)
    assert len(states) == 5
    # Padding too.
    assert all(torch.isfinite(state).all() for state in states)
    assert difference(states[-1][batch.document_ids.to(place.device) >= 0], alone(plain, batch)) < place.tolerance
    assert model.config._attn_implementation == IMPLEMENTATIONS[place.path]


@pytest.mark.parametrize("place", TRAINABLE, indirect=True)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_those_of_documents_alone(architecture, place):
    short_names = architecture in ("modernbert", "distilbert")
    dropout = "attention_dropout" if short_names else "attention_probs_dropout_prob"
    plain = masked_lm(architecture, **{dropout: 0.0})
    model = copy.deepcopy(plain).to(place.device, place.dtype)
    batch = packed()
    expected = alone(plain, batch)
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    states = place.encode(model, batch)[-1][batch.document_ids.to(place.device) >= 0]
    (states * direction.to(place.device)).sum().backward()
    # As one vector: in the gradients of queries' or keys' weights alone, most terms cancel out.
    assert difference(gradient(model), gradient(plain)) < place.tolerance


def gradient(model: Any) -> Tensor:
    """Return the gradient of all parameters that `encode` uses, as one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("place", ALL, indirect=True)
@torch.no_grad()
def test_a_token_reaches_as_far_as_the_window(place):
    sliding = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "local_attention": 2 * WINDOW}
    model = masked_lm("modernbert", **sliding).requires_grad_(False).to(place.device, place.dtype)
    batch, changed = packed(([LENGTH],)), packed(([LENGTH],))
    changed.ids[0, 25] += 1
    differs = (place.encode(model, batch)[-1] != place.encode(model, changed)[-1]).any(dim=-1)[0]
    assert differs.nonzero()[:, 0].tolist() == list(range(25 - WINDOW, 25 + WINDOW + 1))


@torch.no_grad()
def test_block_masks_are_built_once_for_all_layers_and_models(monkeypatch):
    built = []

    def build(*arguments: Any, **options: Any) -> Any:
        built.append(arguments)
        return create(*arguments, **options)

    create = attention.create_block_mask
    monkeypatch.setattr(attention, "create_block_mask", build)
    student, teacher = (masked_lm(name).requires_grad_(False) for name in ("modernbert", "bert"))
    batch = packed()
    documents = PackedDocuments.from_ids(batch.document_ids)
    for model in (student, teacher):
        encode(model, batch.ids, batch.positions, documents, hidden_states=False, attention="flex")
    assert len(built) == 2  # with and without a window


@pytest.mark.parametrize("place", TRAINABLE, indirect=True)
def test_losses_of_student_and_teacher_by_each_path(place):
    """The MLM loss equals that of the documents alone, distillation's losses those of the sdpa path in fp32."""
    student, teacher = masked_lm("modernbert"), masked_lm("bert").requires_grad_(False)
    sequences = packed()
    masked = (sequences.ids % 3 == 0) & (sequences.document_ids >= 0)
    sums = []
    for path, device, dtype in (("sdpa", "cpu", torch.float32), (place.path, place.device, place.dtype)):
        model = UniBERT(
            copy.deepcopy(student).to(device, dtype),
            3,
            mlm=MLMConfig(),
            attention=path,
            teacher=Teacher(copy.deepcopy(teacher).to(device, dtype), attention=path),
            distillation=LOSSES,
        )
        sums.append(model(batch_of(sequences, masked).to(device), weights(device)).sums)
    reference, actual = sums
    hidden = alone(student, sequences)
    tokens = sequences.document_ids >= 0
    logits = student.decoder(student.head(hidden))[masked[tokens]]
    expected = torch.nn.functional.cross_entropy(logits, sequences.ids[masked], reduction="sum")
    assert difference(actual["mlm"], expected) < place.tolerance
    for loss in ("logits", "relations", "hidden", "pooled"):
        assert difference(actual[loss], reference[loss]) < place.tolerance
    for taken in (model.masked_lm, model.distiller.teacher.model):
        assert taken.config._attn_implementation == IMPLEMENTATIONS[place.path]


def batch_of(sequences: Packed, masked: Tensor) -> Batch:
    bounds = PackedDocuments.from_ids(sequences.document_ids)
    return Batch(
        input_ids=sequences.ids,
        labels=sequences.ids.masked_fill(~masked, -100),
        position_ids=sequences.positions,
        document_ids=sequences.document_ids,
        document_languages=torch.arange(6) % 3,
        cu_seqlens=bounds.cu_seqlens,
        max_seqlen=bounds.max_seqlen,
        masked_positions=masked.flatten().nonzero()[:, 0],
        sequence_indices=torch.arange(3),
        document_spans=document_spans(sequences.document_ids.numpy()),
        origins=[],
    )


def weights(device: str) -> StepWeights:
    return StepWeights(
        replicas=1,
        masked_tokens=1.0,
        tokens=1.0,
        documents=1.0,
        adversary_weight=1.0,
        distillation=LOSSES.weights_at(0),
        reversal_lambda=torch.zeros((), device=device),
    )


def test_bounds_of_documents_and_padding():
    documents = PackedDocuments.from_ids(packed().document_ids)
    assert documents.cu_seqlens.tolist() == [0, 25, 26, 46, 50, 80, 100, 107, 150]
    assert documents.cu_seqlens.dtype == torch.int32
    assert documents.max_seqlen == 43


@pytest.mark.parametrize("path", ["flex", "varlen"])
def test_a_saved_model_does_not_name_its_path(tmp_path, path):
    model = masked_lm("modernbert")
    model.set_attn_implementation(IMPLEMENTATIONS[path])
    model.save_pretrained(tmp_path)
    assert not any("unibert" in str(value) for value in json.loads((tmp_path / "config.json").read_text()).values())
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("place", ALL, indirect=True)
def test_compiled_by_torch(place):
    model = masked_lm("modernbert", num_hidden_layers=2).requires_grad_(False).to(place.device, place.dtype)
    batch = packed()
    expected = place.encode(model, batch)[-1].cpu().float()
    compiled = torch.compile(place.encode, backend="eager")
    assert difference(compiled(model, batch)[-1], expected) < place.tolerance


H100, T4 = (9, 0), (7, 5)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "settings", "trained", "capability", "chosen"),
    [
        ("auto", CPU, torch.float32, {}, True, H100, "varlen"),
        ("auto", CPU, torch.float32, {"hidden_size": 40}, True, H100, "varlen"),
        ("auto", CPU, torch.float32, {"attention_dropout": 0.1}, True, H100, "sdpa"),
        ("auto", CUDA, torch.bfloat16, {}, True, H100, "varlen"),
        ("auto", CUDA, torch.float16, {}, True, H100, "varlen"),
        ("auto", CUDA, torch.float32, {}, True, H100, "sdpa"),
        ("auto", CUDA, torch.bfloat16, {}, True, T4, "sdpa"),
        ("auto", CUDA, torch.bfloat16, {"attention_dropout": 0.1}, True, H100, "sdpa"),
        ("auto", CUDA, torch.bfloat16, {"attention_dropout": 0.1}, False, H100, "varlen"),
        ("auto", CUDA, torch.bfloat16, {"hidden_size": 40}, True, H100, "sdpa"),
        ("sdpa", CUDA, torch.bfloat16, {"attention_dropout": 0.1}, True, H100, "sdpa"),
        ("flex", CPU, torch.float32, {}, False, H100, "flex"),
        ("flex", CUDA, torch.float32, {}, True, H100, "flex"),
    ],
)
def test_chosen_path(monkeypatch, asked, device, dtype, settings, trained, capability, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model = masked_lm("modernbert", **settings).requires_grad_(trained)
    assert choose_attention_path(asked, model, device, dtype) == chosen


def test_on_a_cpu_documents_run_one_by_one_where_it_pays():
    model = masked_lm("modernbert", hidden_size=96)

    def chosen(path: str, length: int) -> str:
        return choose_attention_path(path, model, CPU, torch.float32, length=length)

    assert [chosen("auto", length) for length in (128, 682, 683, 1024)] == ["sdpa", "sdpa", "varlen", "varlen"]
    assert chosen("varlen", 16) == "varlen"
    assert chosen("sdpa", 1024) == "sdpa"


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "architecture", "settings", "sentence"),
    [
        (
            "varlen",
            torch.device("mps"),
            torch.bfloat16,
            "modernbert",
            {},
            "varlen needs a CPU or CUDA, these tensors are on mps; take sdpa",
        ),
        ("flex", CPU, torch.float32, "modernbert", {}, "flex has no backward pass on cpu; take sdpa"),
        ("varlen", CUDA, torch.float32, "modernbert", {}, "varlen computes in bf16 or fp16, not in float32; take sdpa"),
        (
            "varlen",
            CUDA,
            torch.bfloat16,
            "modernbert",
            {"hidden_size": 40},
            "varlen needs heads whose width is a multiple of 8 up to 256, these have 20; take sdpa",
        ),
        (
            "flex",
            CUDA,
            torch.bfloat16,
            "modernbert",
            {"hidden_size": 16},
            "flex needs heads of width 16 or more, these have 8; take sdpa",
        ),
        (
            "flex",
            CUDA,
            torch.bfloat16,
            "bert",
            {},
            "flex has no dropout, and model.config.attention_probs_dropout_prob is 0.1; take sdpa",
        ),
        ("flash", CPU, torch.float32, "bert", {}, "must be one of auto, sdpa, flex, varlen, got 'flash'"),
    ],
)
def test_unsupported_paths_are_refused(monkeypatch, asked, device, dtype, architecture, settings, sentence):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H100)
    with pytest.raises(ValueError, match=f"^attention: {sentence}$"):
        choose_attention_path(asked, masked_lm(architecture, **settings), device, dtype)
