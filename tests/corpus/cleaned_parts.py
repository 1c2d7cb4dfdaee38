"""The cleaning of an input file in parts, as the processes of a build share it."""

from collections.abc import Iterator
from pathlib import Path

from unibert.corpus.cleaning import CleaningResult, CleaningTask, clean
from unibert.corpus.config import NearDuplicateConfig, WrongLanguageConfig
from unibert.corpus.exclusions import Exclusions
from unibert.corpus.filters import FilterConfig
from unibert.corpus.inputs import find_inputs


def results_of_parts(dump: Path, folder: Path, parts: int) -> Iterator[CleaningResult]:
    """Yield the results of the parts, the last one first."""
    for part in reversed(range(parts)):
        yield clean(
            CleaningTask(
                file=find_inputs([str(dump)])[0],
                part=part,
                parts=parts,
                spool=folder / f"{part}.spool",
                filters=FilterConfig(),
                wrong_language=WrongLanguageConfig(),
                near_duplicates=NearDuplicateConfig(),
                exclusions=Exclusions(),
                evaluation=None,
                document_filter=None,
                max_page_characters=1 << 20,
            )
        )
