"""Costs computed before a model is built equal those of the built model."""

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.model.test_encoder import ARCHITECTURES
from unibert.model.activation_checkpointing import checkpoint_layers
from unibert.model.attention import PackedDocuments
from unibert.model.config import AdversaryConfig, DistillationConfig, MLMConfig, ModelConfig
from unibert.model.cost import EncoderShape, flops_by_part, parameters_by_part
from unibert.model.distiller import PrincipalPlane
from unibert.model.encoder import build_masked_lm, encode
from unibert.model.teacher import Teacher
from unibert.model.unibert import StepWeights, UniBERT
from unibert.stream import Batch

VOCAB_SIZE, NUM_LANGUAGES = 500, 7
NUM_SEQUENCES, LENGTH, MASKED = 4, 48, 12
TOKENS = NUM_SEQUENCES * LENGTH


def build(architecture: str, **sizes: float) -> Any:
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture] | sizes
    return build_masked_lm(ModelConfig(architecture=architecture, config=config), VOCAB_SIZE, LENGTH)


def batch() -> Batch:
    """A batch of one document per sequence, with ``MASKED`` masked tokens in each."""
    masked = (torch.arange(LENGTH) < MASKED).expand(NUM_SEQUENCES, LENGTH)
    ids = torch.randint(5, VOCAB_SIZE, (NUM_SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    return Batch(
        input_ids=ids.masked_fill(masked, 4),
        labels=ids.masked_fill(~masked, -100),
        position_ids=torch.arange(LENGTH).expand(NUM_SEQUENCES, LENGTH).contiguous(),
        document_ids=torch.arange(NUM_SEQUENCES)[:, None].expand(NUM_SEQUENCES, LENGTH).contiguous(),
        document_languages=torch.arange(NUM_SEQUENCES),
        cu_seqlens=torch.arange(NUM_SEQUENCES + 1, dtype=torch.int32) * LENGTH,
        max_seqlen=LENGTH,
        masked_positions=masked.flatten().nonzero()[:, 0],
        sequence_indices=torch.arange(NUM_SEQUENCES),
        document_spans=[(number * LENGTH, (number + 1) * LENGTH) for number in range(NUM_SEQUENCES)],
        origins=[],
    )


def counted(step: Any) -> Counter[str]:
    """Count FLOPs by operation with torch; attention as plain products, since torch does not count its CPU kernel."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return Counter({str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()})


def trained(model: UniBERT) -> float:
    """Return the FLOPs per token of a training step."""
    weights = StepWeights(
        replicas=1,
        masked_tokens=1,
        tokens=1,
        documents=1,
        adversary_weight=1,
        distillation=model.distiller.config.weights_at(0) if model.distiller else {},
        reversal_lambda=torch.tensor(0.1),
    )
    return sum(counted(lambda: model(batch(), weights).total.backward()).values()) / TOKENS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_by_part(architecture):
    student, teacher = build(architecture), build(architecture, hidden_size=128)
    model = UniBERT(
        student,
        NUM_LANGUAGES,
        mlm=MLMConfig(),
        adversary=AdversaryConfig(intermediate_size=24),
        teacher=Teacher(teacher),
        distillation=DistillationConfig(teacher="", hidden=1.0, projection="learned"),
    )
    parts = parameters_by_part(model)
    assert sum(parts.values()) == sum(parameter.numel() for parameter in model.parameters())
    size = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()}
    base = f"masked_lm.{student.base_model_prefix}"
    assert parts == {
        "embeddings": size[f"{base}.embeddings"],
        "layers": size[base] - size[f"{base}.embeddings"],
        "MLM head": size["masked_lm"] - size[base],
        "adversary": 64 * 24 + 24 + 24 * NUM_LANGUAGES + NUM_LANGUAGES,
        "distillation": 64 * 128 + 128,
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flops_of_the_encoder(architecture):
    model = build(architecture)
    shape, inputs = EncoderShape.from_model(model), batch()
    documents = PackedDocuments.from_ids(inputs.document_ids)
    flops = counted(
        lambda: encode(model, inputs.input_ids, inputs.position_ids, documents, hidden_states=False, attention="sdpa")
    )
    scores = shape.encoder_flops(LENGTH, masks=True) - 2 * shape.layer_weights
    assert flops["aten.mm"] + flops["aten.addmm"] == 2 * shape.layer_weights * TOKENS
    assert flops["aten.bmm"] == scores * TOKENS


def test_windows_are_those_of_the_masks():
    shape, documents = EncoderShape.from_model(build("modernbert")), PackedDocuments.from_ids(batch().document_ids)
    for window, reach in zip(shape.windows, (None, 4, 4, None), strict=True):
        keys = documents.mask(reach).sum(-1)
        assert (window or LENGTH) == keys.max() == keys[0, 0, LENGTH // 2]
    pairs = sum(min(LENGTH, window or LENGTH) for window in shape.windows)
    assert shape.encoder_flops(LENGTH, masks=False) == 2 * shape.layer_weights + 4 * 64 * pairs


@pytest.mark.parametrize(
    ("adversary", "distillation"),
    [
        (None, None),
        (AdversaryConfig(), None),
        (AdversaryConfig(level="token", intermediate_size=32, objective="uniform"), None),
        (None, DistillationConfig(teacher="", logits=1.0)),
        (None, DistillationConfig(teacher="", logits=0.0, relations=1.0)),
        (None, DistillationConfig(teacher="", hidden=1.0, hidden_layers=[(1, 1), (-1, -1)], projection="learned")),
        (AdversaryConfig(level="token"), DistillationConfig(teacher="", logits=1.0, relations=1.0, hidden=1.0)),
    ],
)
def test_flops_of_a_training_step(adversary, distillation):
    student = build("modernbert")
    teacher = build("modernbert", hidden_size=128).requires_grad_(False) if distillation else None
    model = UniBERT(
        student,
        NUM_LANGUAGES,
        mlm=MLMConfig(),
        adversary=adversary,
        distillation=distillation,
        teacher=Teacher(teacher, attention="sdpa") if distillation else None,
        attention="sdpa",
    )
    if distillation:
        model.distiller.set_planes(
            {layer: PrincipalPlane(torch.zeros(128), torch.randn(64, 128)) for layer in model.distiller.plane_layers},
            torch.device("cpu"),
        )
    parts = flops_by_part(
        EncoderShape.from_model(student),
        length=LENGTH,
        masked=MASKED / LENGTH,
        masks=True,
        recompute=0.0,
        adversary=adversary,
        num_languages=NUM_LANGUAGES,
        documents_per_token=1 / LENGTH,
        distillation=distillation,
        teacher=EncoderShape.from_model(teacher) if teacher else None,
    )
    # Losses, counts and hits by language are computed by a product too, which the parts do not include.
    by_language = 2 * 3 * NUM_LANGUAGES * MASKED / LENGTH
    assert trained(model) == pytest.approx(sum(parts.values()) + by_language, rel=1e-12)


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
@pytest.mark.parametrize("every", [1, 3])
def test_flops_of_layers_that_are_computed_twice(architecture, every):
    student = build(architecture)
    shape = EncoderShape.from_model(student)
    model = UniBERT(student, NUM_LANGUAGES, mlm=MLMConfig(), attention="sdpa")
    plain = trained(model)
    checkpoint_layers(student, every)
    sizes = {"length": LENGTH, "masked": 0.25, "masks": True, "recompute": 0.0, "checkpointing": every}
    # Nothing needs the output of a ModernBERT layer's last product, so torch ends before it.
    last_product = 2 * 64 * 96 * len(range(0, 4, every)) if architecture == "modernbert" else 0
    assert trained(model) - plain == flops_by_part(shape, **sizes)["layers, recomputed"] - last_product


def test_a_shape_from_sizes_equals_that_of_the_model():
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "local_attention": 128, "num_hidden_layers": 5}
    assert EncoderShape.modernbert(128, 5, 96, VOCAB_SIZE) == EncoderShape.from_model(build("modernbert", **sizes))


def test_an_untied_decoder_costs_parameters_and_no_flops():
    tied, untied = (build("modernbert", tie_word_embeddings=tie) for tie in (True, False))
    assert EncoderShape.from_model(untied) == EncoderShape.from_model(tied)
    parts = parameters_by_part(UniBERT(untied, NUM_LANGUAGES, mlm=MLMConfig()))
    assert parts["MLM head"] == 64 * 64 + 64 + 64 * VOCAB_SIZE + VOCAB_SIZE


@pytest.mark.parametrize(("architecture", "dropout"), [("modernbert", 0.0), ("bert", 0.0), ("bert", 0.1)])
def test_activations_saved_for_the_backward_pass(architecture, dropout):
    """Compare per layer: the difference between models of five layers and of two."""
    dropouts = {"attention_probs_dropout_prob": dropout} if architecture == "bert" else {}
    kept, shapes = [], []
    for depth in (2, 5):
        model = build(architecture, num_hidden_layers=depth, **dropouts)
        kept.append(_saved_activations(model) / TOKENS)
        shapes.append(EncoderShape.from_model(model).saved_activations(LENGTH, masks=True))
    # Also saved: mean and deviation of both norms, and the log-sum of each head.
    assert 0 <= kept[1] - kept[0] - (shapes[1] - shapes[0]) <= 3 * (4 + 2)


@pytest.mark.parametrize(("every", "num_kept", "num_inputs"), [(1, 0 + 1, 4), (2, 2, 2), (3, 2 + 1, 2), (4, 3, 1)])
def test_activations_saved_with_checkpoints(every, num_kept, num_inputs):
    """Of four layers. The last one, if computed again, has all of its activations before any other's are gone."""
    model = build("bert")
    shape = EncoderShape.from_model(model)
    layer = (shape.saved_activations(LENGTH, masks=True) - 3 * 64) / 4
    saved = shape.saved_activations(LENGTH, masks=True, checkpointing=every)
    assert saved == num_kept * layer + (num_inputs + 3) * 64
    plain = _saved_activations(model) / TOKENS
    checkpoint_layers(model, every)
    # The forward pass alone, less what the formula leaves out: one mask for all, and what norms and attention sum up.
    freed = num_inputs * (layer - 64) - LENGTH
    assert 0 <= plain - _saved_activations(model) / TOKENS - freed <= num_inputs * (4 + 2)


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_activations_saved_with_selective_checkpoints(architecture):
    """Compare per layer, as above."""
    kept, shapes = [], []
    dropouts = {"attention_probs_dropout_prob": 0.0} if architecture == "bert" else {}
    for depth in (2, 5):
        model = build(architecture, num_hidden_layers=depth, **dropouts)
        shapes.append(EncoderShape.from_model(model).saved_activations(LENGTH, masks=True, checkpointing="selective"))
        checkpoint_layers(model, "selective")
        kept.append(_saved_activations(model) / TOKENS)
    # Also saved: the log-sum of each head.
    assert kept[1] - kept[0] - (shapes[1] - shapes[0]) == 3 * 2


def test_selective_checkpoints_compute_no_product_with_weights_again():
    """Attention, which is counted as plain products here, is no operator of its own, and is computed again."""
    student = build("modernbert")
    model = UniBERT(student, NUM_LANGUAGES, mlm=MLMConfig(), attention="sdpa")
    plain = trained(model)
    checkpoint_layers(student, "selective")
    shape, sizes = EncoderShape.from_model(student), {"length": LENGTH, "masked": 0.25, "masks": True, "recompute": 0.0}
    assert trained(model) - plain == shape.encoder_flops(LENGTH, masks=True) - 2 * shape.layer_weights
    assert flops_by_part(shape, **sizes, checkpointing="selective") == flops_by_part(shape, **sizes)


def _saved_activations(model: Any) -> int:
    """Number of the values that torch saves for the backward pass, and of those that Python holds for it."""
    inputs, before = batch(), {tensor.untyped_storage().data_ptr() for tensor in _held_by_python()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in before:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        documents = PackedDocuments.from_ids(inputs.document_ids)
        states = encode(model, inputs.input_ids, inputs.position_ids, documents, hidden_states=False, attention="sdpa")
    for tensor in _held_by_python():
        if tensor.dtype == states[0].dtype:
            keep(tensor)
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values())


def _held_by_python() -> list[torch.Tensor]:
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    # Those that torch.vmap has left behind have none.
    return [one for one in tensors if torch._C._has_storage(one)]
