"""The gradient of a matrix that embeds tokens and is the MLM head's: that of autograd, in one piece."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.test_cost import ARCHITECTURES, LENGTH, NUM_LANGUAGES, VOCAB_SIZE, batch, build
from unibert.model.attention import PackedDocuments
from unibert.model.config import AdversaryConfig, MLMConfig
from unibert.model.encoder import encode
from unibert.model.tied_gradient import TiedWeight
from unibert.model.unibert import StepWeights, UniBERT
from unibert.stream import Batch

PADDING = 8


def padded(pad_id: int) -> Batch:
    """The batch with padding at the end of each sequence, and tokens that occur several times."""
    whole = batch()
    ids = whole.input_ids % 50 + 5
    ids[:, LENGTH - PADDING :] = pad_id
    documents = whole.document_ids.clone()
    documents[:, LENGTH - PADDING :] = -1
    return replace(whole, input_ids=ids, document_ids=documents)


def weights(batch: Batch) -> StepWeights:
    return StepWeights(
        replicas=1,
        masked_tokens=len(batch.masked_positions),
        tokens=int((batch.document_ids >= 0).sum()),
        documents=len(batch.document_languages),
        adversary_weight=len(batch.document_languages),
        reversal_lambda=torch.tensor(0.1),
    )


def trained(architecture: str, dtype: torch.dtype, **settings: bool) -> dict[str, torch.Tensor]:
    """The gradients of two micro-batches."""
    student = build(architecture, **settings)
    model = UniBERT(student, NUM_LANGUAGES, mlm=MLMConfig(), adversary=AdversaryConfig(), attention="sdpa").to(dtype)
    model.eval()
    for number in range(2):
        micro_batch = padded(student.config.pad_token_id)
        micro_batch.input_ids[:, : LENGTH - PADDING] += 60 * number
        model(micro_batch, weights(micro_batch)).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False}], ids=["tied", "apart"])
def test_all_gradients_are_those_of_autograd(architecture, settings, monkeypatch):
    ours = trained(architecture, torch.float64, **settings)
    monkeypatch.setattr(TiedWeight, "dtypes", ())
    autograds = trained(architecture, torch.float64, **settings)
    assert ours.keys() == autograds.keys()
    for name, gradient in ours.items():
        # Sums of some hundred fp64 terms in another order.
        torch.testing.assert_close(gradient, autograds[name], rtol=1e-10, atol=1e-13)


def test_half_precision_is_left_to_autograd(monkeypatch):
    ours = trained("modernbert", torch.bfloat16)
    monkeypatch.setattr(TiedWeight, "dtypes", ())
    autograds = trained("modernbert", torch.bfloat16)
    assert all(gradient.equal(autograds[name]) for name, gradient in ours.items())


def test_a_loss_without_the_head(monkeypatch):
    def gradient() -> torch.Tensor:
        student = build("modernbert")
        some = padded(student.config.pad_token_id)
        tied = TiedWeight(student)
        with tied.embeds_tokens():
            documents = PackedDocuments(some.document_ids, some.cu_seqlens, some.max_seqlen)
            states = encode(student, some.input_ids, some.position_ids, documents, hidden_states=False)[-1]
        tied.of_head()
        states.square().sum().backward()
        return student.get_input_embeddings().weight.grad

    ours = gradient()
    monkeypatch.setattr(TiedWeight, "dtypes", ())
    # A token's rows, at most 160 of fp32, are added in another order.
    torch.testing.assert_close(ours, gradient(), rtol=1e-5, atol=1e-5 * float(ours.abs().max()))


class MatricesOfTheVocabulary(TorchDispatchMode):
    """Keeps the names of operators on matrices (V, H) other than the weight, except those that only look at them."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.operators, self.made = weight, [], set()

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        named = named or {}
        result = operator(*arguments, **named)
        own = self.weight.untyped_storage().data_ptr()
        tensors = [one for one in (*arguments, *named.values(), result) if isinstance(one, torch.Tensor)]
        found = {one.untyped_storage().data_ptr() for one in tensors if one.numel() == self.weight.numel()} - {own}
        self.made |= found
        name = operator.overloadpacket.__name__
        if found and name not in ("detach", "t", "view", "alias"):
            self.operators.append(name)
        return result


def test_a_step_passes_over_the_gradient_of_the_vocabulary_twice():
    """It is written by the head's product, and the tokens' rows are added: no zeros, no second matrix, no scaling."""
    student = build("modernbert")
    model = UniBERT(student, NUM_LANGUAGES, mlm=MLMConfig(), attention="sdpa")
    some = padded(student.config.pad_token_id)
    weight = student.get_input_embeddings().weight
    assert len(weight) == VOCAB_SIZE
    with MatricesOfTheVocabulary(weight) as seen:
        model(some, weights(some)).total.backward()
    assert seen.operators == ["new_empty", "addmm", "index_add_"]
    assert len(seen.made) == 1
