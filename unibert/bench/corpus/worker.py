"""A process that measures one program: ``python -m unibert.bench.corpus.worker JOB.json RESULT.json``.

It imports no more than the job needs, since its memory is measured, and that of the commands which it starts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unibert.bench.availability import NotAvailableError
from unibert.bench.worker_process import one_line
from unibert.errors import UserError
from unibert.files import write_json

Row = dict[str, Any]
Task = Literal["prepare", "clean", "compare", "tokenise", "build"]


@dataclass(kw_only=True)
class Job:
    """The job of a worker."""

    task: Task
    """Write documents and tokenizers, clean dumps, compare the texts of cleaners, tokenise, or build a corpus."""
    folder: str
    """The benchmark's folder."""
    output: str = ""
    """Folder that the job fills."""
    files: list[tuple[str, str, str]] = field(default_factory=list)
    """Path, language and kind of the input files."""
    inputs: list[str] = field(default_factory=list)
    """The inputs as they were given."""
    number: int = 0
    """Which of the cleaners, encoders or starts."""
    texts: dict[str, str] = field(default_factory=dict)
    """Folder of the texts of each cleaner."""
    vocab_size: int = 0
    pretrained: str | None = None


def main(job_file: str, result_file: str) -> None:
    """Do the job and write its result as JSON, for a program that cannot run or fails {"status", "why"}."""
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    try:
        result = _run_job(job)
    except (NotAvailableError, ImportError) as error:
        result = {"status": "not run", "why": one_line(error)}
    except UserError as error:
        result = {"status": "failed", "why": str(error)}
    except Exception as error:  # any error of another program is recorded in its row
        result = {"status": "failed", "why": one_line(error)}
    write_json(Path(result_file), result)


def _run_job(job: Job) -> Row:
    folder, output = Path(job.folder), Path(job.output)
    if job.task in ("clean", "tokenise"):
        output.mkdir(parents=True, exist_ok=True)
    if job.task in ("clean", "compare"):
        from unibert.bench.corpus.cleaning import CLEANERS

        dumps = [(path, language) for path, language, _ in job.files]
        if job.task == "clean":
            return CLEANERS[job.number].clean(dumps, output)
        from unibert.bench.corpus.quality import compare_texts

        return compare_texts(dumps, {name: Path(texts) for name, texts in job.texts.items()})
    from unibert.bench.corpus.builds import STARTS, measure_build

    if job.task == "build":
        return measure_build(STARTS[job.number], job.inputs, folder / "tokenizer", output)
    from unibert.bench.corpus.tokenising import ENCODERS, prepare_documents
    from unibert.corpus.inputs import InputFile

    if job.task == "tokenise":
        return ENCODERS[job.number].run(folder, output)
    files = [InputFile(Path(path), language, kind) for path, language, kind in job.files]  # type: ignore[arg-type]
    return prepare_documents(files, folder, job.vocab_size, job.pretrained)


if __name__ == "__main__":
    main(*sys.argv[1:])
