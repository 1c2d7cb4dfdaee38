"""The PCA by which a wider teacher's hidden states come down to the student's width, computed once per run."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unibert.errors import UserError
from unibert.files import replacing
from unibert.model.attention import PackedDocuments
from unibert.model.distiller import Distiller, PrincipalPlane
from unibert.stream import split_batches
from unibert.training.checkpoint.folder import complete_checkpoints
from unibert.training.config import RunConfig

FILE_NAME = "teacher_planes.safetensors"
_TOKENS_PER_DIMENSION = 64
"""Sample size: a covariance of H dimensions needs many times H samples."""


def teacher_planes(distiller: Distiller, config: RunConfig, num_languages: int) -> dict[int, PrincipalPlane]:
    """Compute a new run's planes and write them into its folder, or read those of a run that continues.

    Every language has the same share of the text that they are computed from, the beginning of its train shards. A file
    without a checkpoint beside it is of an earlier start, perhaps with another teacher, and is replaced.

    Returns:
        The plane of each layer of ``distiller.plane_layers``.

    Raises:
        UserError: if the file cannot be read or written, or the corpus cannot be read.
    """
    run_dir = Path(config.run_dir)
    path = run_dir / FILE_NAME
    if path.is_file() and complete_checkpoints(run_dir / "checkpoints"):
        return _read(path, distiller.plane_layers)
    planes = _compute(distiller, config, num_languages)
    try:
        with replacing(path) as partial:
            save_file({name: tensor for layer in planes for name, tensor in _named(layer, planes[layer])}, partial)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another run_dir") from error
    return planes


def _read(path: Path, layers: list[int]) -> dict[int, PrincipalPlane]:
    try:
        tensors = load_file(path)
        return {layer: PrincipalPlane(tensors[f"{layer}.mean"], tensors[f"{layer}.directions"]) for layer in layers}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: is damaged ({error}); remove it, and the run computes it again") from error


def _named(layer: int, plane: PrincipalPlane) -> list[tuple[str, Tensor]]:
    return [(f"{layer}.mean", plane.mean), (f"{layer}.directions", plane.directions)]


@torch.no_grad()
def _compute(distiller: Distiller, config: RunConfig, num_languages: int) -> dict[int, PrincipalPlane]:
    length = config.training.timeline()[0].sequence_length
    tokens_needed = _TOKENS_PER_DIMENSION * distiller.teacher_width
    batches = split_batches(
        config.corpus,
        config.stream,
        split="train",
        seed=config.seed,
        sequence_length=length,
        micro_batch_size=config.training.micro_batch_size,
        max_sequences_per_language=ceil(tokens_needed / length / num_languages),
    )
    device, width = distiller.teacher.device, distiller.teacher_width
    moments = {layer: _Moments(width, device) for layer in distiller.plane_layers}
    for batch in batches:
        batch = batch.to(device)
        lesson = distiller.teach(batch, PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen))
        for layer, moment in moments.items():
            states = lesson.input.at_batch_tokens(lesson.hidden_states[layer - distiller.teacher_depth - 1])
            moment.add(states[batch.document_ids >= 0])
    return {layer: moment.plane(distiller.student_width) for layer, moment in moments.items()}


class _Moments:
    """Sums from which mean and covariance follow, in float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, states: Tensor) -> None:
        values = states.double()
        self.count += len(values)
        self.sum += values.sum(dim=0)
        self.products += values.T @ values

    def plane(self, dimensions: int) -> PrincipalPlane:
        """Return the plane of the largest variances."""
        mean = self.sum / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        _, vectors = torch.linalg.eigh(covariance.cpu())
        directions = vectors[:, -dimensions:].flip(1).T
        return PrincipalPlane(mean.float().cpu(), directions.float().contiguous())
