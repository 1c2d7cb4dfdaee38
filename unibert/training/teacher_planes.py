"""The PCA by which a wider teacher's hidden states come down to the student's width, computed once per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.files import replacing
from unibert.model.attention import PackedDocuments
from unibert.model.distiller import Distiller, PrincipalPlane
from unibert.model.teacher import Teacher
from unibert.training.checkpoint.folder import complete_checkpoints
from unibert.training.config import RunConfig
from unibert.training.teacher_sample import sample_batches, sample_taught_batches

FILE_NAME = "teacher_planes.safetensors"

Planes = dict[int, PrincipalPlane]
"""The plane of each layer of the teacher, from 0."""


def planes_of_run(config: RunConfig, layers: Sequence[int], compute: Callable[[], Planes]) -> Planes:
    """Compute a new run's planes and write them into its folder, or read those of a run that continues.

    A file without a checkpoint beside it is of an earlier start, perhaps with another teacher, and is replaced.

    Args:
        config: the run.
        layers: teacher's layers, from 0, to read.
        compute: computes the planes of these layers.

    Raises:
        UserError: if the file cannot be read or written.
    """
    run_dir = Path(config.run_dir)
    path = run_dir / FILE_NAME
    if path.is_file() and complete_checkpoints(run_dir / "checkpoints"):
        return _read(path, layers)
    planes = compute()
    try:
        with replacing(path) as partial:
            means = {f"{layer}.mean": plane.mean for layer, plane in planes.items()}
            save_file({"directions": next(iter(planes.values())).directions} | means, partial)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another run_dir") from error
    return planes


@torch.no_grad()
def planes_of_states(teacher: Teacher, width: int, layers: Sequence[int], config: RunConfig) -> Planes:
    """Compute planes of the hidden states of tokens.

    All layers share their directions, as the student's layers share its residual stream; each has its own mean. The
    directions span the principal components, turned so that all of them have similar variances: layer normalisation
    treats them alike.

    Args:
        teacher: wider than the student.
        width: hidden size of the student.
        layers: teacher's layers, from 0.
        config: the run.

    Raises:
        UserError: if the corpus cannot be read.
    """
    moments = {layer: _Moments(teacher.width, teacher.device) for layer in layers}
    for batch in sample_batches(teacher.width, config):
        batch = batch.to(teacher.device)
        documents = PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen)
        lesson = teacher.read(batch, documents, layers=layers)
        for layer, moment in moments.items():
            moment.add(lesson.states(layer - teacher.depth - 1)[batch.document_ids >= 0])
    return _planes(moments, width, config.seed)


def planes_of_vectors(distiller: Distiller, config: RunConfig, manifest: Manifest) -> Planes:
    """Compute the plane of the vectors that the corpus holds; otherwise as `planes_of_states`."""
    moment = _Moments(distiller.teacher_width, torch.device("cpu"))
    for batch in sample_taught_batches(manifest, config):
        assert batch.document_vectors is not None
        moment.add(batch.document_vectors[batch.taught])
    return _planes({distiller.teacher_depth: moment}, distiller.student_width, config.seed)


def _read(path: Path, layers: Sequence[int]) -> Planes:
    try:
        tensors = load_file(path)
        return {layer: PrincipalPlane(tensors[f"{layer}.mean"], tensors["directions"]) for layer in layers}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: is damaged ({error}); remove it, and the run computes it again") from error


def _planes(moments: dict[int, _Moments], width: int, seed: int) -> Planes:
    covariances = [moment.covariance() for moment in moments.values()]
    # A layer counts by the shape of its distribution, not by its scale.
    shapes = torch.stack([covariance / covariance.trace() for covariance in covariances])
    _, vectors = torch.linalg.eigh(shapes.sum(dim=0).cpu())
    generator = torch.Generator().manual_seed(seed)
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
