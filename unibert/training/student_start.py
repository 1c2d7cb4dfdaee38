"""What a new run computes of its teacher before the first step: the student's start, and the PCA of its losses."""

from __future__ import annotations

from pathlib import Path

import torch

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.model.distiller import PrincipalPlane
from unibert.model.export import write_model_folder
from unibert.model.layer_fit import LayerFit, planes_needed
from unibert.model.teacher import Teacher
from unibert.model.unibert import UniBERT
from unibert.training.checkpoint.folder import complete_checkpoints
from unibert.training.config import RunConfig
from unibert.training.export import START_FOLDER, start_of_run
from unibert.training.models import build_fit_teacher
from unibert.training.ranks.collectives import gather_objects, run_on_rank_0
from unibert.training.teacher_planes import Planes, planes_of_run, planes_of_states, planes_of_vectors
from unibert.training.teacher_sample import sample_batches


def start_student(model: UniBERT, config: RunConfig, manifest: Manifest, device: torch.device) -> None:
    """Give the distiller its planes and, in a new run, fit the student of rank 0, whose weights DeepSpeed gives to all.

    The fitted student is written to ``RUN_DIR/start``, a model like the one that the run exports. If the run has no
    teacher, or takes its vectors from the corpus, the fit has the teacher in memory, and rank 0 alone.

    Raises:
        AgreedError: on all ranks, if rank 0 cannot read the corpus or write into the run folder.
    """
    distiller = model.distiller
    if distiller is None and not config.model.initialize_fit:
        return
    fits = config.model.initialize_fit and not complete_checkpoints(Path(config.run_dir) / "checkpoints")
    width = int(model.masked_lm.config.hidden_size)

    def compute() -> dict[int, PrincipalPlane]:
        teacher = None if distiller is None else distiller.teacher
        if teacher is None and fits:
            teacher = build_fit_teacher(config, manifest, device)
        layers = _fitted_layers(config, teacher) if fits and teacher is not None else []
        plane_layers = set() if distiller is None else set(distiller.plane_layers)
        is_narrower = teacher is not None and width < teacher.width
        if layers and is_narrower:
            plane_layers |= planes_needed(layers)
        planes: dict[int, PrincipalPlane] = {}

        def new_planes() -> Planes:
            if teacher is not None:
                return planes_of_states(teacher, width, sorted(plane_layers), config)
            assert distiller is not None
            return planes_of_vectors(distiller, config, manifest)

        if plane_layers:
            planes = planes_of_run(config, sorted(plane_layers), new_planes)
        if layers:
            assert teacher is not None
            _fit(model, teacher, layers, planes if is_narrower else {}, config)
        return planes

    planes = gather_objects(run_on_rank_0(compute) or {})[0]
    if distiller is not None:
        distiller.set_planes({layer: planes[layer] for layer in distiller.plane_layers}, device)


def _fitted_layers(config: RunConfig, teacher: Teacher) -> list[int]:
    """Return the teacher's layers to which the student is fitted, from 0."""
    layers = config.model.initialize_layers
    return list(range(teacher.depth)) if layers is None else layers


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
