"""Steps prepared while the model works on the one before."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, wait

from unibert.schedules import Step
from unibert.stream.background import SECONDS_TO_END, Background
from unibert.stream.batch import Batch
from unibert.stream.stream import StepBatch


def prepare_ahead(
    steps: Generator[StepBatch], micro_batch_size: Callable[[Step], int]
) -> Generator[tuple[StepBatch, list[Batch]]]:
    """Yield each step with its micro-batches, of the size that ``micro_batch_size`` returns for it.

    The next step is prepared in a thread meanwhile. What it raises is raised when that step is asked for.
    """

    def prepare() -> tuple[StepBatch, list[Batch]] | None:
        step = next(steps, None)
        return None if step is None else (step, step.micro_batches(micro_batch_size(step.step)))

    background = Background()
    following: Future[tuple[StepBatch, list[Batch]] | None] | None = None
    # The first one is prepared here, because torch watches loader processes only if the main thread starts them.
    prepared = prepare()
    try:
        while prepared is not None:
            following = background.start(prepare)
            yield prepared
            prepared = following.result()
    finally:
        # Closing ends the loader processes. An iterator that is at work cannot be closed; they end with this process.
        if following is None or wait([following], SECONDS_TO_END).done:
            steps.close()
