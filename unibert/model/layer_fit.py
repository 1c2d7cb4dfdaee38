"""A student's start: layers of its teacher, narrowed where it is narrower, and fitted in closed form.

Layers that follow each other in the student are far apart in the teacher, so that each gets an input that it was not
trained for. Here the student's layers are fitted one after the other, each to the teacher's states behind the same
layer, given what the student's own earlier layers compute. Queries, keys, values and the first matrix of the
feed-forward network stay the teacher's; the matrix that ends attention, the one that ends the feed-forward network and
the layer norms behind them are solved for by ridge regression that shrinks towards the teacher's. No gradient is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from unibert.model.architectures import first_position
from unibert.model.attention import PackedDocuments, set_attention_path
from unibert.model.distiller import PrincipalPlane
from unibert.model.teacher import Teacher
from unibert.stream import Batch

_SHRINKAGE = 1e-2
"""Ridge penalty as a share of the mean variance of the inputs. A tenth of it gives much the same students."""
_ROWS_AT_ONCE = 1 << 14


def planes_needed(layers: Sequence[int]) -> set[int]:
    """Return the hidden states, from 0, of which a narrower student of these layers needs the planes."""
    return {0, *(layer + 1 for layer in layers)}


class LayerFit:
    """Fits a student to its teacher.

    Usage: `add` the sample batch by batch, then `fit`.

    Args:
        student: model of BERT's architecture; `fit` sets its encoder's weights. If it is as wide as the teacher, it
            has the weights of the teacher's ``layers``, and what the fit does not solve for stays.
        teacher: wider than the student, or as wide.
        layers: the teacher's layers that the student's start from, from 0.
        planes: of `planes_needed`, all with the same directions, if the student is narrower, else empty.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher,
        layers: Sequence[int],
        planes: Mapping[int, PrincipalPlane],
    ) -> None:
        self._student, self._reader, self._layers = student, teacher, list(layers)
        self._device = teacher.device
        self._means = {layer: plane.mean.to(self._device) for layer, plane in planes.items()}
        self._directions = next(iter(planes.values())).directions.to(self._device) if planes else None
        self._teacher: Any = teacher.model.base_model
        self._batches: list[Batch] = []
        self._states: dict[nn.Module, list[Tensor]] = {}
        """States of the sample behind each of the teacher's modules, (N, H_s): projected if the student is narrower.
        On the CPU, since they may be many."""
        self._count = 0
        self._sums: dict[nn.Module, Tensor] = {}
        self._products: dict[nn.Module, Tensor] = {}
        """Sums over the sample of the teacher's states, (H_t,), of the products of its heads' contexts, (H_t, H_t), and
        of the squares of its neurons, (I,), from which a narrower student chooses its heads and neurons."""

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Read a batch of the sample, without its masks."""
        clean = replace(batch, input_ids=torch.where(batch.labels >= 0, batch.labels, batch.input_ids)).to(self._device)
        tokens = clean.document_ids >= 0
        blocks = [self._teacher.encoder.layer[layer] for layer in dict.fromkeys(self._layers)]
        targets = [self._teacher.embeddings, *(block.attention.output for block in blocks)]
        targets += [block.output for block in blocks]
        # Only a narrower student chooses heads and neurons.
        choosing = [] if self._directions is None else blocks
        contexts = [block.attention.self for block in choosing]
        neurons = [block.intermediate for block in choosing]
        with _outputs([*targets, *contexts, *neurons]) as outputs:
            lesson = self._reader.read(clean, _documents(clean))
        at_tokens = {module: lesson.input.at_batch_tokens(state)[tokens].float() for module, state in outputs.items()}
        for module in targets:
            states = at_tokens[module]
            self._states.setdefault(module, []).append(
                (states if self._directions is None else states @ self._directions.T).cpu()
            )
        if self._directions is not None:
            for module, states in at_tokens.items():
                self._sums[module] = self._sums.get(module, 0) + states.double().sum(dim=0)
            for module in contexts:
                states = at_tokens[module].double()
                self._products[module] = self._products.get(module, 0) + states.T @ states
            for module in neurons:
                self._products[module] = self._products.get(module, 0) + at_tokens[module].double().square().sum(dim=0)
        self._count += int(tokens.sum())
        self._batches.append(clean)

    @torch.no_grad()
    def fit(self) -> None:
        """Set the weights of the student's encoder.

        Its MLM head stays as it is: a narrower student's is fresh.
        """
        nn.Module.to(self._student, self._device).eval()
        encoder: Any = self._student.base_model
        states = self._embed(encoder.embeddings)
        masks = [
            set_attention_path("sdpa", self._student, _documents(batch))["attention_mask"] for batch in self._batches
        ]
        for block, layer, previous in zip(encoder.encoder.layer, self._layers, [-1, *self._layers], strict=False):
            source = self._teacher.encoder.layer[layer]
            heads = self._narrow_attention(block, source, previous + 1)
            contexts = [block.attention.self(state, mask)[0] for state, mask in zip(states, masks, strict=True)]
            residual = self._tokens(states)
            attended = self._fit_output(
                block.attention.output, source.attention.output, heads, self._tokens(contexts), residual
            )
            neurons = self._narrow_intermediate(block, source)
            after = self._fit_output(block.output, source.output, neurons, block.intermediate(attended), attended)
            states = self._batched(after, states)
        self._student.train()

    # ---- the parts of a layer ------------------------------------------------------------------------------------

    def _embed(self, embeddings: Any) -> list[Tensor]:
        """Set the embeddings; return their output for each batch, (B, S, H_s)."""
        source = self._teacher.embeddings
        first = first_position(self._student.config)

        def embedded() -> list[Tensor]:
            return [
                embeddings(input_ids=batch.input_ids, position_ids=batch.position_ids + first)
                for batch in self._batches
            ]

        if self._directions is not None:
            # Layer norm subtracts the mean over the dimensions and applies its gain; both go into the tables.
            for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
                table = getattr(source, name).weight.float()
                centred = (table - table.mean(dim=1, keepdim=True)) * source.LayerNorm.weight.float()
                getattr(embeddings, name).weight.copy_(centred @ self._directions.T)
            with _inputs(embeddings.LayerNorm) as inputs:
                embedded()
            summed = self._tokens([states for (states,) in inputs])
            embeddings.token_type_embeddings.weight.sub_(summed.mean(dim=0))
            _fit_norm(embeddings.LayerNorm, summed - summed.mean(dim=0), self._target(source))
        return embedded()

    def _narrow_attention(self, block: Any, source: Any, state: int) -> Tensor:
        """Set queries, keys and values; return the indices of the teacher's context that the student keeps, (H_s,).

        ``state`` is the teacher's hidden state, from 0, that the student's layer gets as its input.
        """
        width = self._reader.width
        if self._directions is None:
            return torch.arange(width, device=self._device)
        source_self = source.attention.self
        mean, products = (sums[source_self] / self._count for sums in (self._sums, self._products))
        variances = (products - mean[:, None] * mean).float()
        output, _ = self._narrowed_output(source.attention.output)
        size = source_self.attention_head_size
        shares = torch.stack(
            [
                torch.trace(output[:, head].T @ output[:, head] @ variances[head, head])
                for head in (slice(start, start + size) for start in range(0, width, size))
            ]
        )
        heads = shares.topk(block.attention.self.num_attention_heads).indices.sort().values
        kept = (heads[:, None] * size + torch.arange(size, device=self._device)).flatten()
        for name in ("query", "key", "value"):
            _narrow_input(
                getattr(block.attention.self, name),
                getattr(source_self, name),
                kept,
                self._directions,
                self._means[state],
            )
        return kept

    def _narrow_intermediate(self, block: Any, source: Any) -> Tensor:
        """Set the first matrix of the feed-forward network; return the indices of the neurons that it keeps."""
        size = source.intermediate.dense.out_features
        if self._directions is None:
            return torch.arange(size, device=self._device)
        output, _ = self._narrowed_output(source.output)
        mean, squares = (sums[source.intermediate] / self._count for sums in (self._sums, self._products))
        shares = (squares - mean.square()).float() * output.square().sum(dim=0)
        kept = shares.topk(block.intermediate.dense.out_features).indices.sort().values
        input_mean = (self._sums[source.attention.output] / self._count).float()
        _narrow_input(block.intermediate.dense, source.intermediate.dense, kept, self._directions, input_mean)
        return kept

    def _fit_output(self, output: Any, source: Any, kept: Tensor, inputs: Tensor, residual: Tensor) -> Tensor:
        """Fit a matrix and the layer norm behind it; return what they compute, (N, H_s).

        Args:
            output: the student's module, with ``dense`` and ``LayerNorm``.
            source: the teacher's.
            kept: indices of the teacher's inputs that the student has.
            inputs: the student's inputs, (N, I).
            residual: what is added before the norm, (N, H_s).
        """
        target, norm = self._target(source), output.LayerNorm
        if self._directions is not None:
            norm.weight.copy_(target.std(dim=0))
            norm.bias.zero_()
        scaled = torch.where(norm.weight.abs() > norm.eps, (target - norm.bias) / norm.weight, 0)
        weight, bias = self._narrowed_output(source)
        normalised = F.layer_norm(scaled, norm.normalized_shape)
        _fit_dense(output.dense, weight[:, kept], bias, inputs, residual, normalised)
        before_norm = residual + output.dense(inputs)
        _fit_norm(norm, before_norm, target)
        return norm(before_norm)

    def _narrowed_output(self, source: Any) -> tuple[Tensor, Tensor]:
        """Return the teacher's matrix, (H_s, I_t), and bias, (H_s,).

        A narrower student's include the gain of the norm behind them, which cannot be cut.
        """
        weight, bias = source.dense.weight.float(), source.dense.bias.float()
        if self._directions is None:
            return weight, bias
        gain = source.LayerNorm.weight.float()
        return self._directions @ (gain[:, None] * weight), self._directions @ (gain * bias)

    # ---- the sample ----------------------------------------------------------------------------------------------

    def _target(self, module: nn.Module) -> Tensor:
        """Return the teacher's states behind a module; less their mean if the student is narrower, (N, H_s)."""
        states = torch.cat(self._states[module]).to(self._device)
        return states if self._directions is None else states - states.mean(dim=0)

    def _tokens(self, states: Sequence[Tensor]) -> Tensor:
        """Join the (B, S, H) states of all batches at their tokens, (N, H)."""
        return torch.cat([state[batch.document_ids >= 0] for state, batch in zip(states, self._batches, strict=True)])

    def _batched(self, tokens: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Put (N, H) states back into batches; padding is zero."""
        inside = [batch.document_ids >= 0 for batch in self._batches]
        parts = tokens.split([int(mask.sum()) for mask in inside])
        states = [torch.zeros_like(state) for state in like]
        for state, mask, part in zip(states, inside, parts, strict=True):
            state[mask] = part
        return states


def _documents(batch: Batch) -> PackedDocuments:
    return PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen)


def _narrow_input(dense: nn.Linear, source: nn.Linear, kept: Tensor, directions: Tensor, mean: Tensor) -> None:
    """Let ``dense`` compute from projected states what the rows ``kept`` of ``source`` compute from whole ones."""
    weight, bias = source.weight.float()[kept], source.bias.float()[kept]
    dense.weight.copy_(weight @ directions.T)
    dense.bias.copy_(bias + weight @ mean)


def _fit_dense(
    dense: nn.Linear, initial: Tensor, bias: Tensor, inputs: Tensor, residual: Tensor, target: Tensor
) -> None:
    """Fit W and b so that the norm of residual + inputs Wᵀ + b comes close to the normalised target.

    The norm undoes a token's mean and scale, so the target gets those of S, the sum that the initial matrix and bias
    give. With target ≈ c (S + inputs Dᵀ), c is the factor of least squares after D is solved for, and W the initial
    matrix plus D.
    """
    initial_sum = residual + inputs @ initial.T + bias
    deviation, mean = torch.std_mean(initial_sum, dim=1, correction=0, keepdim=True)
    target = target * deviation + mean
    joined = torch.cat([target, initial_sum], dim=1)
    input_mean, joined_mean = inputs.double().mean(dim=0), joined.double().mean(dim=0)
    width, num_outputs = inputs.shape[1], target.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=inputs.device)
    cross = torch.zeros(width, 2 * num_outputs, dtype=torch.float64, device=inputs.device)
    for rows, outputs in zip(inputs.split(_ROWS_AT_ONCE), joined.split(_ROWS_AT_ONCE), strict=True):
        centred = rows.double() - input_mean
        gram += centred.T @ centred
        cross += centred.T @ (outputs.double() - joined_mean)
    gram.diagonal().add_(_SHRINKAGE * gram.diagonal().mean())
    to_target, to_sum = torch.linalg.solve(gram, cross).float().split(num_outputs, dim=1)
    centred = inputs - input_mean.float()
    target_left = target - joined_mean[:num_outputs].float() - centred @ to_target
    sum_left = initial_sum - joined_mean[num_outputs:].float() - centred @ to_sum
    factor = (target_left * sum_left).sum(dtype=torch.float64) / sum_left.square().sum(dtype=torch.float64)
    weight = initial + (to_target / factor.float() - to_sum).T
    dense.weight.copy_(weight)
    dense.bias.copy_(joined_mean[:num_outputs].float() / factor.float() - (residual + inputs @ weight.T).mean(dim=0))


def _fit_norm(norm: nn.LayerNorm, inputs: Tensor, target: Tensor) -> None:
    """Fit gain and bias of each dimension to (N, H) targets."""
    normalised = F.layer_norm(inputs, norm.normalized_shape, eps=norm.eps)
    centred = normalised - normalised.mean(dim=0)
    variances = centred.square().mean(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    norm.weight.copy_((centred * target).mean(dim=0) / variances)
    norm.bias.copy_(target.mean(dim=0) - norm.weight * normalised.mean(dim=0))


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Keep what the modules compute; of a tuple, the first."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module] = output[0] if isinstance(output, tuple) else output

    with _hooks([module.register_forward_hook(keep) for module in modules]):
        yield outputs


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[tuple[Tensor]]]:
    """Keep the inputs of each of a module's calls."""
    inputs: list[tuple[Tensor]] = []
    with _hooks([module.register_forward_pre_hook(lambda _, given: inputs.append(given))]):
        yield inputs


@contextmanager
def _hooks(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
