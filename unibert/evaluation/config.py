"""Options of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(kw_only=True)
class EvaluateConfig:
    """One evaluation of one model folder."""

    model: Path
    """Hugging Face model folder: config.json, weights and tokenizer."""

    retrieval: Path | None = None
    """Folder of aligned sentences: Tatoeba pairs, or one file CODE.txt per language."""

    sts: Path | None = None
    """Folder of sentence pairs with human scores: stsb-multi-mt, KorSTS, or files that its sts.yaml lists."""

    source: str = "en"
    """Language whose dev set in the folder of --sts chooses the layer, unless --layers names it."""

    max_pairs: int = 2000
    """Number of rows to use of each set of --sts, from its beginning."""

    languages: list[str] | None = None
    """Codes of the languages to score, as in en,de. Default: all in the folder."""

    prompt: str = ""
    """Text before every sentence, as "query: " for e5. Its tokens count in the mean, as in sentence-transformers."""

    untrained: bool = False
    """Also score the same architecture with fresh weights: the baseline that shows what training has added."""

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

    max_length: int = 128
    """Number of tokens at which a sentence is cut."""

    batch_tokens: int = 8192
    """Maximum number of tokens in a batch, padding included. Lower it if the device runs out of memory."""

    device: str = "auto"
    """Device: ``cpu``, ``cuda``, ``cuda:1`` or another. ``auto`` takes the GPU if there is one."""

    seed: int = 0
    """Seed of the probe's sample, splits and initialisations, and of the untrained weights."""

    @property
    def output_folder(self) -> Path:
        """Folder that the scores go to."""
        if self.output is not None:
            return self.output
        model = self.model.resolve()
        return model.parent / ("evaluation" if model.name == "model" else f"evaluation-{model.name}")

    def __post_init__(self) -> None:
        if self.languages is not None and len(set(self.languages)) < (1 if self.retrieval is None else 2):
            raise ValueError("languages: name at least two for --retrieval, or leave it out to score all")
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
