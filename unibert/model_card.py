"""The card of an exported model: the README.md of its folder, in the format of the Hugging Face hub.

Imports no package, since both the export and the evaluation write to a card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from unibert.hub import is_on_hub
from unibert.languages import LANGUAGES, iso_code
from unibert.options import join_words
from unibert.text import compact_markdown_table, markdown_table

CARD_NAME = "README.md"

_ARCHITECTURES = {
    "bert": "BERT",
    "deberta-v2": "DeBERTa-v2",
    "distilbert": "DistilBERT",
    "modernbert": "ModernBERT",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
}
"""Names of the architectures whose exports the tests load in transformers 4 too."""
_TAUGHT = {
    "logits": "predictions at the masked positions",
    "relations": "attention relations",
    "hidden": "hidden states",
    "pooled": "mean vectors of documents",
}
"""What the losses of distillation compare, by their names."""
_USE, _SCORES, _LICENCE = "## Use", "## Scores", "## Licence"
_FOLDER_NOTE = "In these examples, `FOLDER` stands for this folder or its id on the hub."
_UNDECIDED = "The licence of these weights is not decided yet."


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """What the card says about the model itself."""

    architecture: str
    """transformers' ``model_type``."""
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    num_parameters: int
    num_embedding_parameters: int
    """Parameters of the word embeddings, which are part of ``num_parameters``."""
    max_tokens: int
    """Tokens of a text, with those of its frame, at which the tokenizer cuts it."""
    has_masked_lm_head: bool
    global_layers: Sequence[int] | None = None
    """Layers of a ModernBERT that attend to the whole text; None for architectures in which all do."""
    local_attention: int | None = None
    """Tokens that the other layers of a ModernBERT attend to."""
    loads_in_version_4: bool = True
    """Whether transformers 4 can compute the same."""
    pools_by_mean: bool = True
    """Whether sentence-transformers takes the mean of the last layer, instead of what an original model's files say."""
    projected_size: int | None = None
    """Size of the vector to which a linear layer maps that mean; None without."""


@dataclass(frozen=True, kw_only=True)
class LanguageCounts:
    """The training text of one language."""

    code: str
    """Code of its Wikipedia."""
    documents: int
    tokens: int
    """Number of tokens, without special tokens."""


@dataclass(frozen=True, kw_only=True)
class HeldoutLoss:
    """A measurement of the MLM loss on held-out documents."""

    step: int
    nats: float
    """Mean per masked token."""
    unigram_nats: float | None
    """Loss of a model that knows only the frequencies of tokens."""


@dataclass(frozen=True, kw_only=True)
class TrainingLosses:
    """What a run has measured on the training text of one step; None or empty for objectives that were off."""

    step: int
    mlm_nats: float | None
    """Mean per masked token."""
    discriminator_accuracy: float | None
    discriminator_chance: float | None
    distillation: Mapping[str, float]
    """Losses of distillation by their names."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How a run has trained a model."""

    name: str
    """Title of the card."""
    languages: Sequence[LanguageCounts]
    """The text that the run reads; empty if the corpus has changed since."""
    trainer: str
    """Name and version of the program."""
    steps: int
    tokens: int
    """Tokens read so far, padding included."""
    masked_lm: bool
    max_lambda: float | None = None
    """Adversary's factor at the end of its ramp; None without adversary."""
    teacher: str | None = None
    teacher_losses: Mapping[str, float] = field(default_factory=dict)
    """Highest weights of the losses of distillation, by their names."""
    initial_model: str | None = None
    initial_layers: Sequence[int] | None = None
    """Layers of the initial model that the model started from; None for all."""
    is_fitted: bool = False
    """Whether these layers were fitted to the initial model, and narrowed if it is wider."""
    losses: TrainingLosses | None = None
    """Of the last step that was logged."""
    heldout: HeldoutLoss | None = None
    averaged_steps: Sequence[int] = ()
    """Steps of the checkpoints whose mean the weights are; none if they are those of one checkpoint."""
    ema_half_life: int | None = None
    """Half-life in tokens of the moving average that the weights are; None if they are those of the last step."""
    parent: str | None = None
    """Name of the run that this one is a branch of."""
    parent_tokens: int = 0
    """Tokens that the parent has read before the branch."""


@dataclass(frozen=True, kw_only=True)
class Trimming:
    """How a model was made from another one by keeping a part of its vocabulary."""

    name: str
    """Title of the card."""
    languages: Sequence[LanguageCounts]
    """The text that decided which pieces were kept."""
    source: str
    """Name of the original model."""
    is_on_hub: bool
    """Whether ``source`` is an id on the Hugging Face hub."""
    source_vocab_size: int
    source_num_parameters: int


def model_card(encoder: EncoderFacts, origin: Pretraining | Trimming) -> str:
    """Return the text of a model's card: metadata in YAML, then Markdown."""
    if isinstance(origin, Pretraining):
        summary, training = _pretraining_summary(encoder, origin), ["## Training", *_training(origin)]
    else:
        summary, training = _trimming_summary(encoder, origin), []
    sections = [
        f"# {origin.name}",
        summary,
        "## Architecture",
        *_architecture(encoder),
        *training,
        "## Languages",
        *_languages(origin),
        _USE,
        *_use(encoder, origin),
        _LICENCE,
        _licence(origin),
    ]
    return _with_metadata(_metadata(encoder, origin), "\n\n".join(sections) + "\n")


def with_scores(card: str, scores: Mapping[str, Any]) -> str:
    """Return the card with the scores of the last layer, in place of older ones if it has any.

    Everything else stays, such as a licence that a person has added. If the last layer was not scored, the whole card
    stays.

    Args:
        card: text of a card.
        scores: content of scores.json, see `unibert.evaluation.universality`.
    """
    if str(scores["num_layers"] - 1) not in scores["model"]["retrieval_mean"]:
        return card
    section = f"{_SCORES}\n\n" + "\n\n".join(_scores(scores)) + "\n"
    older = re.search(rf"^{_SCORES}$.*?(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    if older:
        before, after = card[: older.start()], card[older.end() :]
    else:
        use = re.search(rf"^{_USE}$", card, re.MULTILINE)
        before, after = (card[: use.start()], card[use.start() :]) if use else (card.rstrip("\n") + "\n\n", "")
    return before + section + ("\n" + after if after else "")


def with_hub_id(card: str, name: str) -> str:
    """Return the card with a hub id in the code that names the model, so that it can be copied."""
    card = card.replace('"FOLDER"', f'"{name}"')
    return card if '"FOLDER' in card else card.replace(f"{_FOLDER_NOTE}\n\n", "")


def licence_of(card: str) -> str | None:
    """Return the licence in a card's metadata.

    Raises:
        ValueError: if the card does not begin with metadata in YAML.
    """
    return _split(card)[0].get("license")


def with_licence(card: str, licence: str) -> str:
    """Return the card with a licence in its metadata, and in the section that says that there is none.

    Raises:
        ValueError: if the card does not begin with metadata in YAML.
    """
    metadata, text = _split(card)
    sentence = f"The weights are published under this licence: {licence}."
    text = re.sub(rf"^{_LICENCE}\n\n{_UNDECIDED}.*?$", f"{_LICENCE}\n\n{sentence}", text, flags=re.MULTILINE)
    return _with_metadata({"license": licence} | metadata | {"license": licence}, text)


def _split(card: str) -> tuple[dict[str, Any], str]:
    """The metadata of a card, and its text."""
    parts = re.fullmatch(r"---\n(.*?)---\n\n?(.*)", card, re.DOTALL)
    metadata = parts and yaml.safe_load(parts[1])
    if not parts or not isinstance(metadata, dict):
        raise ValueError("it does not begin with metadata in YAML between two lines of ---")
    return metadata, parts[2]


def _with_metadata(metadata: Mapping[str, Any], text: str) -> str:
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n\n{text}"


def with_language_means(card: str, file_name: str, codes: Sequence[str]) -> str:
    """Return the card with a section on the means of languages.

    Args:
        card: text of a card without such a section.
        file_name: file with the means.
        codes: languages that have one.
    """
    code = codes[0]
    section = "\n\n".join(
        [
            "## Centred vectors",
            f"Vectors of one language share a part that says nothing of a sentence's meaning. `{file_name}` has the "
            f"mean vector of {_count(len(codes), 'language')} over training text, under its code. If you compare "
            "sentences of different languages, subtract it (`hf_hub_download` fetches the file from the hub):",
            _code(
                "from safetensors.numpy import load_file",
                "from sentence_transformers import SentenceTransformer",
                "",
                'model = SentenceTransformer("FOLDER")',
                f'means = load_file("FOLDER/{file_name}")',
                f'vectors = model.encode(["One sentence.", "Another one."]) - means["{code}"]',
            ),
        ]
    )
    before, licence, after = card.rpartition(f"{_LICENCE}\n")
    return f"{before}{section}\n\n{licence}{after}"


def model_name(name: str) -> str:
    """Return a hub id as it is, and the name of a folder without its path: the run's if the folder is ``model``."""
    if is_on_hub(name):
        return name
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[-2] if parts[-1:] == ["model"] and len(parts) > 1 else parts[-1] if parts else name


def _metadata(encoder: EncoderFacts, origin: Pretraining | Trimming) -> dict[str, Any]:
    codes = sorted({iso_code(counts.code) for counts in origin.languages})
    task = "fill-mask" if encoder.has_masked_lm_head else "feature-extraction"
    metadata = {
        **({"language": codes} if codes else {}),
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": [
            "unibert",
            "sentence-transformers",
            *(["feature-extraction"] if task != "feature-extraction" else []),
            *(["multilingual"] if len(codes) > 1 else []),
        ],
    }
    if isinstance(origin, Trimming) and origin.is_on_hub:
        metadata["base_model"] = origin.source
    return metadata


def _label(encoder: EncoderFacts) -> str:
    return _ARCHITECTURES.get(encoder.architecture, encoder.architecture)


def _pretraining_summary(encoder: EncoderFacts, origin: Pretraining) -> str:
    languages = f" for {_count(len(origin.languages), 'language')}" if origin.languages else ""
    return (
        f"This is a masked language model{languages}: {_label(encoder)} with "
        f"{_count(encoder.num_hidden_layers, 'layer')} and {encoder.num_parameters:,} parameters, pre-trained with "
        f"{origin.trainer}. It predicts masked tokens, and its hidden states serve as vectors of tokens and sentences."
    )


def _trimming_summary(encoder: EncoderFacts, origin: Trimming) -> str:
    return (
        f"This is {_source(origin)} with {encoder.vocab_size:,} of its {origin.source_vocab_size:,} pieces, those that "
        f"text in {_count(len(origin.languages), 'language')} uses most. It has {encoder.num_parameters:,} of "
        f"the original's {origin.source_num_parameters:,} parameters and was not trained further. Wherever a text "
        "segments alike with both tokenizers, the hidden states are those of the original."
    )


def _source(origin: Trimming) -> str:
    return f"[{origin.source}](https://huggingface.co/{origin.source})" if origin.is_on_hub else f"`{origin.source}`"


def _architecture(encoder: EncoderFacts) -> list[str]:
    rows = {
        "architecture": _label(encoder),
        "layers": f"{encoder.num_hidden_layers}",
        "hidden size": f"{encoder.hidden_size:,}",
        "attention heads": f"{encoder.num_attention_heads}",
        "vocabulary": f"{encoder.vocab_size:,}",
        "parameters": f"{encoder.num_parameters:,}",
        "of which word embeddings": f"{encoder.num_embedding_parameters:,}",
        "maximum length in tokens": f"{encoder.max_tokens:,}",
    }
    paragraphs = ["\n".join(markdown_table(["", ""], [[key, value] for key, value in rows.items()]))]
    if encoder.global_layers is not None and len(encoder.global_layers) < encoder.num_hidden_layers:
        layers = ", ".join(map(str, encoder.global_layers)) or "none"
        paragraphs.append(
            f"The layers that attend to the whole text, counted from 0: {layers}. The others attend to a window of "
            f"{encoder.local_attention} tokens."
        )
    return paragraphs


def _training(origin: Pretraining) -> list[str]:
    start = "from fresh weights"
    if origin.initial_model is not None:
        layers = origin.initial_layers
        part = f"layers {', '.join(map(str, layers))}" if layers is not None else "the weights"
        fitted = ", fitted in closed form to the hidden states of that model," if origin.is_fitted else ""
        start = f"from {part} of `{origin.initial_model}`{fitted}"
    objectives = [
        *(["masked language modelling"] if origin.masked_lm else []),
        *([_adversary(origin.max_lambda)] if origin.max_lambda is not None else []),
        *([_distillation(origin)] if origin.teacher is not None else []),
    ]
    lengths = f"{origin.tokens:,} tokens, padding included, in {_count(origin.steps, 'step')}"
    paragraphs = [
        f"Training started {start} and read {lengths}. Its objectives:",
        "\n".join(f"- {objective}" for objective in objectives),
    ]
    if origin.parent is not None:
        paragraphs.append(
            f"The first {origin.parent_tokens:,} tokens are those of the run `{origin.parent}`, from which this one "
            "branched off. What stands here describes the branch; text and settings of that run may differ."
        )
    if steps := origin.averaged_steps:
        listed = join_words([f"{step:,}" for step in steps], "and")
        paragraphs.append(f"The weights are the mean of those after the steps {listed}.")
    if origin.ema_half_life is not None:
        paragraphs.append(
            "The weights are an exponential moving average over the training, with a half-life of "
            f"{origin.ema_half_life:,} tokens."
        )
    if origin.losses is not None and (measured := _losses(origin.losses)):
        paragraphs.append(f"On the training text of step {origin.losses.step:,}, {join_words(measured, 'and')}.")
    if (heldout := origin.heldout) is not None:
        comparison = (
            f"; a model that knows only the frequencies of tokens would have {heldout.unigram_nats:.3f}"
            if heldout.unigram_nats is not None
            else ""
        )
        paragraphs.append(
            f"After step {heldout.step:,}, the MLM loss on held-out documents was {heldout.nats:.3f} nats per masked "
            f"token{comparison}."
        )
    return paragraphs


def _losses(losses: TrainingLosses) -> list[str]:
    accuracy, chance = losses.discriminator_accuracy, losses.discriminator_chance
    by_chance = f" (chance: {100 * chance:.1f} %)" if chance is not None else ""
    return [
        *([] if losses.mlm_nats is None else [f"the MLM loss was {losses.mlm_nats:.3f} nats per masked token"]),
        *([] if accuracy is None else [f"the language discriminator was right in {100 * accuracy:.1f} %{by_chance}"]),
        *(f"the distillation loss of {_TAUGHT[name]} was {loss:.3f}" for name, loss in losses.distillation.items()),
    ]


def _adversary(max_lambda: float) -> str:
    if max_lambda == 0:
        return "a language discriminator that has no effect on the encoder (λ = 0)"
    return (
        "a language adversary: the encoder learns to hide the language from a discriminator; λ, the factor on this "
        f"gradient, rises to {max_lambda:g}"
    )


def _distillation(origin: Pretraining) -> str:
    weights = {text: origin.teacher_losses.get(key, 0) for key, text in _TAUGHT.items()}
    losses = [f"{text} (weight {weight:g})" for text, weight in weights.items() if weight]
    return f"distillation of `{origin.teacher}`: its {', '.join(losses)}"


def _languages(origin: Pretraining | Trimming) -> list[str]:
    if not origin.languages:
        return ["The corpus has changed since the training, so its languages are not listed here."]
    documents = sum(counts.documents for counts in origin.languages)
    tokens = sum(counts.tokens for counts in origin.languages)
    what = "The training corpus has" if isinstance(origin, Pretraining) else "The pieces were chosen by"
    rows = [
        [
            counts.code,
            LANGUAGES[counts.code].name if counts.code in LANGUAGES else "",
            f"{counts.documents:,}",
            f"{counts.tokens:,}",
        ]
        for counts in origin.languages
    ]
    header = ["code", "language", "documents", "tokens"]
    return [
        f"{what} {_count(documents, 'document')} with {_count(tokens, 'token')}, held-out documents not included.",
        "\n".join(compact_markdown_table(header, rows, numbers={"documents", "tokens"})),
    ]


def _use(encoder: EncoderFacts, origin: Pretraining | Trimming) -> list[str]:
    paragraphs = [_FOLDER_NOTE]
    if encoder.has_masked_lm_head:
        paragraphs += [
            "The most likely tokens at a mask, with transformers:",
            _code(
                "from transformers import pipeline",
                "",
                'fill_mask = pipeline("fill-mask", model="FOLDER")',
                'print(fill_mask(f"A sentence with one {fill_mask.tokenizer.mask_token}."))',
            ),
        ]
    is_uncompared = isinstance(origin, Pretraining) and not origin.teacher_losses.get("pooled")
    compared = " No objective of the training has compared sentences." if is_uncompared else ""
    projected = (
        f" A linear layer maps this mean to the {encoder.projected_size:,} dimensions of the teacher; scores in this "
        "card are those of the mean itself."
        if encoder.projected_size
        else ""
    )
    pooling = (
        "The vector of a sentence is the mean of the last layer's hidden states over all its tokens, with those that "
        "the tokenizer adds at both ends."
        if encoder.pools_by_mean
        else "The vector of a sentence is made from the hidden states as in the original model, whose settings of "
        "sentence-transformers are kept."
    )
    if not encoder.loads_in_version_4:
        versions = [
            "Version 5 of transformers is required. Version 4 ends with a TypeError while it builds the model, since "
            "it cannot express which layers attend globally or how positions are scaled."
        ]
    elif encoder.architecture in _ARCHITECTURES:
        versions = ["Version 4.57 of transformers computes the same as version 5."]
    else:
        versions = []
    return [
        *paragraphs,
        "Hidden states of the tokens:",
        _code(
            "from transformers import AutoModel, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            'model = AutoModel.from_pretrained("FOLDER")',
            'batch = tokenizer(["One sentence.", "Another one."], padding=True, truncation=True, return_tensors="pt")',
            "print(model(**batch).last_hidden_state.shape)",
        ),
        "Vectors of sentences, with sentence-transformers:",
        _code(
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("FOLDER")',
            'print(model.encode(["One sentence.", "Another one."]).shape)',
        ),
        f"{pooling}{projected}{compared} Longer texts are cut at {encoder.max_tokens:,} tokens.",
        *versions,
    ]


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _licence(origin: Pretraining | Trimming) -> str:
    if isinstance(origin, Trimming):
        return (
            f"The licence of {_source(origin)} applies to this model too. Before you publish it, add that licence to "
            "the metadata above (`license`)."
        )
    others = [
        name
        for name in (origin.initial_model and "the model that it started from", origin.teacher and "the teacher")
        if name
    ]
    return (
        f"{_UNDECIDED} It depends on the licences of the training text"
        + "".join(f" and of {name}" for name in others)
        + ", which the trainer does not know. Before you publish the model, decide it and add it to the metadata above "
        "(`license`)."
    )


def _scores(scores: Mapping[str, Any]) -> list[str]:
    layer, data = str(scores["num_layers"] - 1), scores["data"]
    columns = {"this model": scores["model"], "untrained": scores["baseline"]}
    columns = {name: _last_layer(part, layer) for name, part in columns.items() if part}
    chance = {name: scores["chance"][name.split()[0]] for name in columns["this model"]}
    columns["chance"] = chance
    rows = [[name, *(f"{100 * column[name]:.1f}" for column in columns.values())] for name in chance]
    lines, languages = sum(data["sets"].values()), len(data["languages"])
    return [
        f"Scores of the last layer ({layer} of 0-{layer}, where 0 is the embeddings' output), whose mean is the vector "
        f"of a sentence. They were measured on {_count(lines, 'aligned line')} in {_count(languages, 'language')}.",
        "\n".join(markdown_table(["%", *columns], rows)),
        "Retrieval: the nearest neighbour by cosine is the translation, mean over all directions. Probe: a small "
        "network predicts the language of held-out sentences; at chance, the vectors do not show the language. "
        "Centred: the mean of each language's vectors is subtracted.",
    ]


def _last_layer(part: Mapping[str, Any], layer: str) -> dict[str, float]:
    retrieval, probe = part["retrieval_mean"][layer], part["probe"][layer]
    return {
        "retrieval raw": retrieval["raw"],
        "retrieval centred": retrieval["centred"],
        "probe raw": probe["raw"]["mlp"]["mean"],
        "probe centred": probe["centred"]["mlp"]["mean"],
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
