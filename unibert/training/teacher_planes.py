"""The PCA by which a wider teacher's hidden states come down to the student's width, computed once per run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unibert.errors import UserError
from unibert.files import replacing
from unibert.model.attention import PackedDocuments
from unibert.model.distiller import Distiller, PrincipalPlane
from unibert.training.checkpoint.folder import complete_checkpoints
from unibert.training.config import RunConfig
from unibert.training.teacher_sample import sample_batches

FILE_NAME = "teacher_planes.safetensors"


def teacher_planes(
    distiller: Distiller, layers: Collection[int], config: RunConfig, num_languages: int
) -> dict[int, PrincipalPlane]:
    """Compute a new run's planes and write them into its folder, or read those of a run that continues.

    All layers share their directions, as the student's layers share its residual stream; each has its own mean. The
    directions span the principal components, turned so that all of them have similar variances: layer normalisation
    treats them alike. A file without a checkpoint beside it is of an earlier start, perhaps with another teacher, and
    is replaced.

    Args:
        distiller: the teacher, wider than the student.
        layers: teacher's layers, from 0.
        config: the run.
        num_languages: number of the run's languages.

    Returns:
        The plane of each layer.

    Raises:
        UserError: if the file cannot be read or written, or the corpus cannot be read.
    """
    run_dir = Path(config.run_dir)
    path = run_dir / FILE_NAME
    if path.is_file() and complete_checkpoints(run_dir / "checkpoints"):
        return _read(path, layers)
    planes = _compute(distiller, layers, config, num_languages)
    try:
        with replacing(path) as partial:
            means = {f"{layer}.mean": plane.mean for layer, plane in planes.items()}
            save_file({"directions": next(iter(planes.values())).directions} | means, partial)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another run_dir") from error
    return planes


def _read(path: Path, layers: Collection[int]) -> dict[int, PrincipalPlane]:
    try:
        tensors = load_file(path)
        return {layer: PrincipalPlane(tensors[f"{layer}.mean"], tensors["directions"]) for layer in layers}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: is damaged ({error}); remove it, and the run computes it again") from error


@torch.no_grad()
def _compute(
    distiller: Distiller, layers: Collection[int], config: RunConfig, num_languages: int
) -> dict[int, PrincipalPlane]:
    moments = {layer: _Moments(distiller.teacher_width, distiller.teacher.device) for layer in layers}
    for batch in sample_batches(distiller, config, num_languages):
        batch = batch.to(distiller.teacher.device)
        documents = PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen)
        lesson = distiller.teach(batch, documents, layers=layers)
        for layer, moment in moments.items():
            states = lesson.input.at_batch_tokens(lesson.hidden_states[layer - distiller.teacher_depth - 1])
            moment.add(states[batch.document_ids >= 0])
    covariances = [moment.covariance() for moment in moments.values()]
    # A layer counts by the shape of its distribution, not by its scale.
    shapes = torch.stack([covariance / covariance.trace() for covariance in covariances])
    _, vectors = torch.linalg.eigh(shapes.sum(dim=0).cpu())
    width = distiller.student_width
    generator = torch.Generator().manual_seed(config.seed)
    turn, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))
    directions = (vectors[:, -width:] @ turn).T.float().contiguous()
    return {layer: PrincipalPlane(moment.mean().float().cpu(), directions) for layer, moment in moments.items()}


class _Moments:
    """Sums from which mean and covariance follow, in float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._count = 0
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, states: Tensor) -> None:
        values = states.double()
        self._count += len(values)
        self._sum += values.sum(dim=0)
        self._products += values.T @ values

    def mean(self) -> Tensor:
        return self._sum / self._count

    def covariance(self) -> Tensor:
        mean = self.mean()
        return self._products / self._count - mean[:, None] * mean
