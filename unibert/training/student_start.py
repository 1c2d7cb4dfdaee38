"""What a new run computes of its teacher before the first step: the student's start, and the PCA of its losses."""

from __future__ import annotations

from pathlib import Path

import torch

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.model.distiller import Distiller, PrincipalPlane
from unibert.model.export import write_model_folder
from unibert.model.layer_fit import LayerFit, planes_needed
from unibert.model.teacher import Teacher
from unibert.model.unibert import UniBERT
from unibert.training.checkpoint.folder import complete_checkpoints
from unibert.training.config import RunConfig
from unibert.training.export import START_FOLDER, start_of_run
from unibert.training.models import build_fit_teacher
from unibert.training.ranks.collectives import gather_objects, run_on_rank_0
from unibert.training.teacher_planes import planes_of_run, planes_of_states, planes_of_vectors
from unibert.training.teacher_sample import sample_batches


def start_student(model: UniBERT, config: RunConfig, manifest: Manifest, device: torch.device) -> None:
    """Give the distiller its planes and, in a new run, fit the student of rank 0, whose weights DeepSpeed gives to all.

    The fitted student is written to ``RUN_DIR/start``, a model like the one that the run exports. If the run takes its
    teacher's vectors from the corpus, the fit has the teacher in memory, and rank 0 alone.

    Raises:
        AgreedError: on all ranks, if rank 0 cannot read the corpus or write into the run folder.
    """
    distiller = model.distiller
    if distiller is None:
        return
    is_new = not complete_checkpoints(Path(config.run_dir) / "checkpoints")
    layers = _layers(config, distiller) if is_new else []

    def compute() -> dict[int, PrincipalPlane]:
        teacher = distiller.teacher
        if teacher is None and layers:
            teacher = build_fit_teacher(config, manifest, device)
        plane_layers = set(distiller.plane_layers)
        is_narrower = distiller.student_width < distiller.teacher_width
        if layers and is_narrower:
            plane_layers |= planes_needed(layers)
        planes: dict[int, PrincipalPlane] = {}
        if plane_layers:
            planes = planes_of_run(
                config,
                sorted(plane_layers),
                lambda: (
                    planes_of_vectors(distiller, config, manifest)
                    if teacher is None
                    else planes_of_states(teacher, distiller.student_width, sorted(plane_layers), config)
                ),
            )
        if layers:
            assert teacher is not None
            _fit(model, teacher, layers, planes if is_narrower else {}, config)
        return planes

    planes = gather_objects(run_on_rank_0(compute) or {})[0]
    distiller.set_planes({layer: planes[layer] for layer in distiller.plane_layers}, device)


def _layers(config: RunConfig, distiller: Distiller) -> list[int]:
    """Return the teacher's layers to which the student is fitted, from 0; none if it is not."""
    if not config.model.initialize_fit:
        return []
    layers = config.model.initialize_layers
    return list(range(distiller.teacher_depth)) if layers is None else layers


def _fit(
    model: UniBERT, teacher: Teacher, layers: list[int], planes: dict[int, PrincipalPlane], config: RunConfig
) -> None:
    fit = LayerFit(model.masked_lm, teacher, layers, planes)
    for batch in sample_batches(teacher.width, config):
        fit.add(batch)
    fit.fit()
    folder = Path(config.run_dir) / START_FOLDER
    try:
        write_model_folder(
            model.masked_lm, Path(config.corpus) / "tokenizer", folder, start_of_run(Path(config.run_dir))
        )
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another run_dir") from error
