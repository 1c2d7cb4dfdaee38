"""The losses inside torch.compile, activation checkpointing, autocast and gradient accumulation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from unibert_kernels import adversary_loss, distillation_loss, mlm_head_loss, operators

from .closeness import DEVICE, FP32_GRADIENT, assert_same, distance, repeats_bits

VOCAB, NUM_LANGUAGES = 67, 5
LOSSES: dict[str, Callable[..., Any]] = {
    "mlm": mlm_head_loss,
    "distillation": distillation_loss,
    "adversary": adversary_loss,
}
PATHS = [
    ("mlm", "chunked"),
    ("mlm", "recompute"),
    ("mlm", "exp-store"),
    ("distillation", "chunked"),
    ("distillation", "recompute"),
    ("distillation", "store-teacher"),
    ("adversary", "chunked"),
    ("adversary", "fused"),
]
every_path = pytest.mark.parametrize(("loss", "path"), PATHS)
chunked = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(
    loss: str, num_rows: int = 21, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors that require gradients, and all other arguments; for the adversary the rows are tokens of five documents.

    The sizes of the model do not depend on the number of rows.
    """
    generator = torch.Generator().manual_seed(num_rows)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype).requires_grad_()

    languages = torch.randint(NUM_LANGUAGES, (num_rows,), generator=generator).to(DEVICE)
    if loss == "adversary":
        documents = torch.arange(num_rows) * 5 // num_rows
        documents[3] = -1
        tensors = {"hidden": leaf(num_rows, 32), "w1": leaf(16, 32), "b1": leaf(16)}
        tensors |= {"w2": leaf(NUM_LANGUAGES, 16), "b2": leaf(NUM_LANGUAGES)}
        rest = {"document_ids": documents.to(DEVICE), "languages": languages[:5]}
        return tensors, rest | {"reversal": torch.tensor(0.3, device=DEVICE)}
    labels = torch.randint(VOCAB, (num_rows,), generator=generator)
    labels[1::4] = -100
    rest = {"labels": labels.to(DEVICE), "lang_ids": languages, "num_languages": NUM_LANGUAGES}
    head = {"hidden": leaf(num_rows, 32), "weight": leaf(VOCAB, 32), "bias": leaf(VOCAB)}
    if loss == "mlm":
        return head, rest | {"label_smoothing": 0.1, "z_loss": 0.01}
    teacher = {"teacher_hidden": leaf(num_rows, 16).detach(), "teacher_weight": leaf(VOCAB, 16).detach()}
    return {f"student_{name}": tensor for name, tensor in head.items()}, rest | teacher | {
        "temperature": 2.0,
        "ce_weight": 0.5,
    }


def run(function: Callable[..., Any], tensors: dict[str, Tensor], rest: dict[str, Any]) -> list[Tensor | None]:
    """All results, and the gradients of three times the loss, which is the first result, with respect to
    ``tensors``."""
    tensors = {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in tensors.items()}
    output = function(**tensors, **rest)
    if output[0].requires_grad:
        (output[0] * 3).backward()
    return [tensor.detach() for tensor in output] + [tensor.grad for tensor in tensors.values()]


def compiled_bits(path: str) -> bool:
    """Whether compiled code gives the bits of eager code. On CUDA it may choose other products, and ``fused``
    multiplies by λ, by the token's share and by the upstream gradient in another order."""
    return repeats_bits(path) and DEVICE.type == "cpu"


@every_path
def test_compiled_equals_eager_and_another_number_of_rows_does_not_recompile(loss: str, path: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(LOSSES[loss], fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for num_rows in (21, 30):
        tensors, rest = batch(loss, num_rows)
        rest["path"] = path
        assert_same(run(compiled, tensors, rest), run(LOSSES[loss], tensors, rest), compiled_bits(path))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


@every_path
def test_gradients_of_some_tensors_only(loss: str, path: str) -> None:
    tensors, rest = batch(loss)
    rest["path"] = path
    names = list(tensors)
    for frozen in (names[:1], names[1:]):
        some = {name: tensor.detach() if name in frozen else tensor for name, tensor in tensors.items()}
        torch._dynamo.reset()
        compiled = torch.compile(LOSSES[loss], fullgraph=True, backend="aot_eager")
        assert_same(run(compiled, some, rest), run(LOSSES[loss], some, rest), compiled_bits(path))
    with torch.no_grad():
        assert not compiled(**tensors, **rest).loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@chunked
def test_compiled_in_other_dtypes(loss: str, dtype: torch.dtype) -> None:
    tensors, rest = batch(loss, dtype=dtype)
    compiled = torch.compile(LOSSES[loss], fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, tensors, rest), run(LOSSES[loss], tensors, rest), compiled_bits("chunked"))


@pytest.mark.parametrize(("loss", "path"), [entry for entry in PATHS if entry[1] not in ("chunked", "fused")])
def test_gradients_kept_in_bf16(loss: str, path: str) -> None:
    tensors, rest = batch(loss, dtype=torch.bfloat16)
    rest["path"] = path
    compiled = torch.compile(LOSSES[loss], fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, tensors, rest), run(LOSSES[loss], tensors, rest), compiled_bits(path))


@pytest.mark.skipif(shutil.which("g++") is None and DEVICE.type == "cpu", reason="inductor needs a C++ compiler")
@chunked
def test_compiled_by_inductor_within_a_model(loss: str) -> None:
    tensors, rest = batch(loss)
    first = next(iter(tensors))

    def model(**arguments: Any) -> Any:
        return LOSSES[loss](**arguments | {first: torch.tanh(arguments[first])})

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for actual, expected in zip(run(compiled, tensors, rest), run(model, tensors, rest), strict=True):
        # Inductor vectorises sums, and so changes their order.
        assert distance(actual, expected) <= FP32_GRADIENT


@pytest.mark.parametrize("level", ["mean", "cls", "token"])
@pytest.mark.parametrize("path", ["chunked", "fused"])
def test_every_level_of_the_adversary(path: str, level: str) -> None:
    tensors, rest = batch("adversary")
    weights = torch.linspace(0.5, 1.5, NUM_LANGUAGES, device=DEVICE)
    rest |= {"path": path, "level": level, "objective": "uniform", "class_weights": weights}
    compiled = torch.compile(adversary_loss, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, tensors, rest), run(adversary_loss, tensors, rest), compiled_bits(path))


def test_compiled_code_rejects_a_path_that_cannot_serve() -> None:
    tensors, rest = batch("mlm", dtype=torch.float64)
    compiled = torch.compile(mlm_head_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="path: recompute computes in fp32 at most"):
        compiled(**tensors, **rest, path="recompute")


def arguments_of(loss: str, path: str, needs_grad: tuple[bool, ...]) -> tuple[Any, tuple[Any, ...]]:
    """An operator and its arguments."""
    tensors, rest = batch(loss)
    inputs = [tensor.detach() for tensor in tensors.values()]
    if loss == "adversary":
        hidden, *discriminator = inputs
        documents, languages = rest["document_ids"], rest["languages"]
        inputs = [hidden, documents, languages, *discriminator, rest["reversal"], None]
        return operators.adversary_operator, (*inputs, (*needs_grad, *needs_grad[1:]), path, "mean", "reversal")
    counted = rest["labels"] >= 0
    labels = rest["labels"].where(counted, 0)
    student = (*inputs, torch.float32)
    if loss == "mlm":
        return operators.mlm_head_operator, (*student, needs_grad, labels, counted, path, None, 0.1, 0.0)
    teacher = rest["teacher_hidden"], rest["teacher_weight"], None, torch.float32
    return operators.distillation_operator, (*student, *teacher, needs_grad, labels, counted, path, None, 2.0, 4.0, 0.5)


@every_path
def test_operators_pass_opcheck(loss: str, path: str) -> None:
    operator, arguments = arguments_of(loss, path, needs_grad=(True, False, True))
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("reentrant", [False, True])
@every_path
def test_activation_checkpointing_changes_nothing(loss: str, path: str, reentrant: bool) -> None:
    tensors, rest = batch(loss)
    rest["path"] = path
    first = next(iter(tensors))

    def model(**arguments: Any) -> Any:
        return LOSSES[loss](**arguments | {first: torch.tanh(arguments[first])})

    def checkpointed(**arguments: Any) -> Any:
        # Reentrant checkpointing tracks positional tensors only.
        names, values = list(tensors), [arguments.pop(name) for name in tensors]

        def segment(*values: Tensor) -> Any:
            return model(**dict(zip(names, values, strict=True)), **arguments)

        return checkpoint(segment, *values, use_reentrant=reentrant)

    expected = run(model, tensors, rest)
    if reentrant:
        # Its results come from a first pass without gradients, in which exp-store stores nothing and takes another
        # shift; the gradients come from a second pass.
        with torch.no_grad():
            results = model(**tensors, **rest)
        expected[: len(results)] = results
    assert_same(run(checkpointed, tensors, rest), expected, repeats_bits(path))


@chunked
def test_checkpointing_in_compiled_code(loss: str) -> None:
    tensors, rest = batch(loss)
    first = next(iter(tensors))

    def model(**arguments: Any) -> Any:
        return LOSSES[loss](**arguments | {first: torch.tanh(arguments[first])})

    def checkpointed(**arguments: Any) -> Any:
        return checkpoint(model, use_reentrant=False, **arguments)

    compiled = torch.compile(checkpointed, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, tensors, rest), run(model, tensors, rest), compiled_bits("chunked"))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="autocast on CUDA does change the operands")
@every_path
def test_autocast_on_the_cpu_changes_nothing(loss: str, path: str) -> None:
    tensors, rest = batch(loss)
    rest["path"] = path

    def cast(**arguments: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return LOSSES[loss](**arguments)

    expected = run(LOSSES[loss], tensors, rest)
    assert_same(run(cast, tensors, rest), expected, repeats_bits(path))
    compiled = torch.compile(cast, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, tensors, rest), expected, compiled_bits(path))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="autocast changes nothing on the CPU")
@every_path
def test_autocast_on_cuda_is_that_of_the_trace(loss: str, path: str) -> None:
    tensors, rest = batch(loss)
    rest["path"] = path

    def cast(**arguments: Any) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return LOSSES[loss](**arguments)

    compiled = torch.compile(cast, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, tensors, rest), run(cast, tensors, rest), bits=False)


@chunked
def test_gradients_accumulate_in_compiled_code(loss: str) -> None:
    halves = [batch(loss, num_rows) for num_rows in (21, 30)]
    shared, _ = halves[0]
    compiled = torch.compile(LOSSES[loss], fullgraph=True, backend="aot_eager", dynamic=True)

    def accumulate(function: Callable[..., Any]) -> list[Tensor | None]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in shared.items()}
        for tensors, rest in halves:
            # Each half has its own hidden states; the parameters are shared.
            hidden = {name: tensor for name, tensor in tensors.items() if name.endswith("hidden")}
            (function(**leaves | hidden, **rest).loss / 2).backward()
        return [tensor.grad for name, tensor in leaves.items() if not name.endswith("hidden")]

    assert_same(accumulate(compiled), accumulate(LOSSES[loss]), compiled_bits("chunked"))
