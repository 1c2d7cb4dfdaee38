"""Options of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unibert.errors import UserError
from unibert.evaluation.tasks.options import FineTuningConfig

TaskName = Literal["ner", "nli", "qa", "sts", "retrieval", "probe"]
FINE_TUNED: tuple[TaskName, ...] = ("ner", "nli", "qa")
"""Tasks for which the model is fine-tuned."""

MAX_LENGTH = 128
"""Number of tokens at which sentences are cut by default."""


@dataclass(kw_only=True)
class EvaluateConfig:
    """One evaluation of one model folder."""

    model: Path
    """Hugging Face model: a folder with config.json, weights and tokenizer, or a hub id."""

    data: Path | None = None
    """Folder with the subfolders ner, nli, qa, sts and retrieval, or some of them."""

    tasks: list[TaskName] | None = None
    """Tasks to score, of ner, nli, qa, sts, retrieval and probe. The last two come together. Default: all that have a
    folder."""

    ner: Path | None = None
    """Folder of tagged words: PAN-X, Universal NER, CoNLL, or files that its ner.yaml lists."""

    nli: Path | None = None
    """Folder of premises and hypotheses: XNLI, KorNLI, FarsTail, MultiNLI, or files that its nli.yaml lists."""

    qa: Path | None = None
    """Folder of questions in SQuAD's JSON: XQuAD, MLQA, TyDi QA, SQuAD, or files that its qa.yaml lists."""

    retrieval: Path | None = None
    """Folder of aligned sentences: Tatoeba pairs, or one file CODE.txt per language."""

    sts: Path | None = None
    """Folder of sentence pairs with human scores: stsb-multi-mt, KorSTS, or files that its sts.yaml lists."""

    source: str = "en"
    """Language of the training data, whose dev sets choose epoch and layer, unless --layers names the layer."""

    fine_tuning: FineTuningConfig = field(default_factory=FineTuningConfig)
    """How the model is fine-tuned for ner, nli and qa."""

    center: bool = False
    """Subtract the mean of each language over training text, which ``unibert export --center`` writes into the model
    folder, from the hidden states in ner, nli and qa, and from the vectors of the last layer in sts. Languages without
    a mean are left out. --retrieval always has a line with these means, if there are any."""

    max_pairs: int = 2000
    """Number of rows to use of each set of --sts, from its beginning."""

    languages: list[str] | None = None
    """Codes of the languages to score, as in en,de. Default: all in the folder."""

    prompt: str = ""
    """Text before every sentence of --sts and --retrieval, as "query: " for e5. Its tokens count in the mean, as in
    sentence-transformers."""

    untrained: bool = False
    """Also score the same architecture with fresh weights: the baseline that shows what training has added. Not for
    --sts."""

    layers: list[int] | None = None
    """Layers to score, as in -1,0: 0 is the embeddings' output, -1 the last layer. The first named represents the
    model. Default: all, represented by the one that is best on the dev set of --source, or by the last without it."""

    output: Path | None = None
    """Folder for scores, tables and predictions. Default: beside the model folder, ``evaluation`` for
    ``model``, the export of a run, and ``evaluation-NAME`` for a folder of another name."""

    max_sentences: int = 1000
    """Number of lines to use of each aligned set, from its beginning."""

    probe_sentences: int = 200
    """Number of sentences per language for the language probe."""

    probe_restarts: int = 3
    """Number of splits and initialisations over which the probe's accuracy is averaged."""

    max_length: int = MAX_LENGTH
    """Number of tokens at which a sentence is cut."""

    batch_tokens: int = 8192
    """Maximum number of tokens in a batch, padding included. Lower it if the device runs out of memory."""

    device: str = "auto"
    """Device: ``cpu``, ``cuda``, ``cuda:1`` or another. ``auto`` takes the GPU if there is one."""

    seed: int = 0
    """Seed of fine-tuning, of the probe's sample, splits and initialisations, and of the untrained weights."""

    @property
    def output_folder(self) -> Path:
        """Folder that the scores go to. Those of a model on the hub go to the working folder."""
        if self.output is not None:
            return self.output
        model = self.model.resolve() if self.model.exists() else Path.cwd() / self.model.name
        return model.parent / ("evaluation" if model.name == "model" else f"evaluation-{model.name}")

    def folders(self) -> dict[TaskName, Path]:
        """Return the folder of each task that is scored, in the order of the options.

        Raises:
            UserError: if there is none, or a named task has none.
        """
        found: dict[TaskName, Path] = {}
        for task in (*FINE_TUNED, "sts", "retrieval"):
            folder = getattr(self, task)
            if folder is None and self.data is not None and (self.data / task).is_dir():
                folder = self.data / task
                # As in retrieval/tatoeba; the other tasks look into subfolders themselves.
                inner = sorted(path for path in folder.iterdir() if path.is_dir())
                if task == "retrieval" and len(inner) == 1:
                    folder = inner[0]
            if folder is not None:
                found[task] = folder
        if self.data is not None and not self.data.is_dir():
            raise UserError(f"data: there is no folder {self.data}")
        if self.tasks is not None:
            named = ["retrieval" if task == "probe" else task for task in self.tasks]
            if missing := [task for task in named if task not in found]:
                raise UserError(f"tasks: there is no folder for {missing[0]}; name it with --{missing[0]}")
            found = {task: folder for task, folder in found.items() if task in named}
        if not found:
            raise UserError(
                "there is nothing to score; name the folder of a task, such as --nli or --retrieval, or one with a "
                "subfolder for each with --data"
            )
        return found

    def __post_init__(self) -> None:
        if self.languages is not None and len(set(self.languages)) < (1 if self.retrieval is None else 2):
            raise ValueError("languages: name at least two for --retrieval, or leave it out to score all")
        if self.center and (self.prompt or self.layers not in (None, [-1])):
            raise ValueError(
                "center: the means are those of the last layer without a prompt; leave out prompt and layers"
            )
        if self.layers == []:
            raise ValueError("layers: name at least one layer, or leave it out to score all")
        minima = {
            "max_sentences": 2,
            "max_pairs": 2,
            "probe_sentences": 2,
            "probe_restarts": 1,
            "max_length": 1,
            "batch_tokens": 1,
        }
        for key, minimum in minima.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"{key}: must be at least {minimum}, got {getattr(self, key)}")
