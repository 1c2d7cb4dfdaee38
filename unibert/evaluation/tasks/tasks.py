"""The tasks by their names."""

from __future__ import annotations

from typing import Any

from unibert.evaluation.tasks.task import Task


def load_task(name: str) -> Task[Any]:
    """Return the task ``ner``, ``nli`` or ``qa``."""
    from unibert.evaluation.tasks.ner import NamedEntities
    from unibert.evaluation.tasks.nli import InferencePairs
    from unibert.evaluation.tasks.qa import QuestionAnswering

    return {task.name: task for task in (NamedEntities, InferencePairs, QuestionAnswering)}[name]()
