"""``unibert trim``: a Hugging Face model with the vocabulary of a corpus, without training."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError, short_message
from unibert.hub import is_on_hub, local_folder
from unibert.model.architectures import check_architecture
from unibert.model.corpus_counts import language_counts
from unibert.model.encoder import load_config
from unibert.model.export import write_model_folder
from unibert.model.sentence_transformers_files import FILE_PATTERNS
from unibert.model.vocabulary import adapt_to_corpus
from unibert.model_card import Trimming, model_name


def trim_model(name: str, corpus: Path, output: Path) -> None:
    """Write the model with the ids and the tokenizer of the corpus, and print what it has left.

    Wherever a text segments alike with both tokenizers, the hidden states are the original's, bit for bit. If the
    original has files for sentence-transformers, they are kept, so that vectors of texts are the original's too.

    Args:
        name: model folder or hub id.
        corpus: corpus that was built with ``--tokenizer NAME --trim_vocabulary N``.
        output: folder to create.

    Raises:
        UserError: if the output exists, the model cannot be loaded, or the corpus was made with another tokenizer.
    """
    manifest = Manifest.load(corpus)
    if output.exists():
        raise UserError(f"output: {output} exists; name another folder")
    model = _load(name)
    before, vocabulary = model.num_parameters(), int(model.config.vocab_size)
    adapt_to_corpus(model, name, corpus / "tokenizer", "trim")
    pooling_from = local_folder(name, FILE_PATTERNS)
    origin = Trimming(
        name=output.resolve().name,
        languages=language_counts(manifest),
        source=model_name(name),
        is_on_hub=is_on_hub(name),
        source_vocab_size=vocabulary,
        source_num_parameters=before,
    )
    try:
        write_model_folder(model, corpus / "tokenizer", output, origin, pooling_from)
    except OSError as error:
        raise UserError(f"output: {output} cannot be written ({error.strerror})") from error
    print(
        f"{output}: {manifest.vocab_size:,} of {vocabulary:,} pieces, {model.num_parameters():,} of {before:,} "
        "parameters"
    )


def _load(name: str) -> PreTrainedModel:
    config = load_config(name, "trim")
    check_architecture(config.model_type, f"trim ({name})", teaches=True)
    has_head = any("MaskedLM" in architecture for architecture in config.architectures or [])
    try:
        if has_head:
            return AutoModelForMaskedLM.from_pretrained(name)
        model, loading = AutoModel.from_pretrained(name, output_loading_info=True)
        if any(key.startswith("pooler.") for key in loading["missing_keys"]):
            # transformers adds one with random weights, which would be saved as the model's.
            return AutoModel.from_pretrained(name, add_pooling_layer=False)
        return model
    except Exception as error:  # transformers passes on whatever its parts raise
        raise UserError(f"trim: the model {name} cannot be loaded ({short_message(error)})") from error
