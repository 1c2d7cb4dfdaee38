"""The configuration of a corpus build."""

from __future__ import annotations

from dataclasses import dataclass, field

from unibert.corpus.filters import FilterConfig


@dataclass(kw_only=True)
class CorpusShowConfig:
    """Which documents of an input or a corpus ``show_documents`` prints."""

    source: str
    """Dump, .jsonl or .txt file, a folder of such files, en=PATH, or a corpus folder made by `unibert corpus build`."""
    title: str | None = None
    """Title or id of the one page to show, whole. Documents of a corpus have ids only. Default: the first ones."""
    language: str | None = None
    """Code of the language to show. Default: all."""
    dropped: str | None = None
    """Show what was dropped for this reason, as in too_short; `all` for each reason. Only of inputs."""
    diff: bool = False
    """Show what of the page's visible prose is missing in its text, instead of both. Only of dumps."""
    number: int = 3
    """Number of documents to show: of each language, with --dropped of each reason, in a corpus of each split."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Quality filters."""
    max_page_characters: int = 1 << 20
    """Drop wiki pages with more characters of wikitext than this."""

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"number: must be at least 1, got {self.number}")
        if self.title is not None and self.dropped is not None:
            raise ValueError("dropped: shows samples; leave it out to see the page that title names")


@dataclass(kw_only=True)
class NearDuplicateConfig:
    """When two documents are nearly equal."""

    threshold: float | None = 0.8
    """Similarity from which on the later of two documents is dropped: the share that their shingles have in common,
    estimated within some 0.04. null compares no documents."""
    words: int = 5
    """Words in a shingle."""
    characters: int = 10
    """Characters in a shingle of the scripts without spaces between words."""
    across_languages: bool = False
    """Compare the documents of different languages too, and keep that of the language with more text."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0.5 <= self.threshold <= 1:
            raise ValueError(f"near_duplicates.threshold: must lie between 0.5 and 1, got {self.threshold}")
        for key in ("words", "characters"):
            if getattr(self, key) < 1:
                raise ValueError(f"near_duplicates.{key}: must be at least 1, got {getattr(self, key)}")


@dataclass(kw_only=True)
class StubConfig:
    """When a document is a stub that a program wrote from a template."""

    max_template_share: float | None = None
    """Drop documents of which more than this share of the words is in phrases that many documents of the language have;
    0.5 is a good value for Wikipedias written by programs. null drops none."""
    documents: int = 20
    """Number of documents, of 20,000 that are sampled of each language, that make a run of words such a phrase."""
    words: int = 4
    """Words in a phrase. Numbers count as one word."""
    characters: int = 8
    """Characters in a phrase of the scripts without spaces between words."""

    def __post_init__(self) -> None:
        if self.max_template_share is not None and not 0 <= self.max_template_share <= 1:
            raise ValueError(f"stubs.max_template_share: a share lies between 0 and 1, got {self.max_template_share}")
        for key, least in (("documents", 2), ("words", 1), ("characters", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"stubs.{key}: must be at least {least}, got {getattr(self, key)}")


@dataclass(kw_only=True)
class WrongLanguageConfig:
    """When a document is in another language than its file. Needs unibert[identification]."""

    min_probability: float | None = None
    """Drop documents that, with at least this probability, fastText's identifier takes for other languages, of which
    those similar to the file's do not count, such as nn in a file of no; 0.8 is a good value. Languages that it does
    not know are kept. null drops none."""
    by_language: dict[str, float | None] = field(default_factory=dict)
    """Other values for some languages, as in {so: 0.95, bar: null}."""

    def __post_init__(self) -> None:
        for key, value in {"min_probability": self.min_probability, **self.by_language}.items():
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"wrong_language.{key}: a probability lies between 0 and 1, got {value}")


@dataclass(kw_only=True)
class CorpusConfig:
    """What ``build_corpus`` reads, keeps and writes.

    Equal inputs and values give equal shards, for any number of ``workers``.
    """

    inputs: list[str]
    """MediaWiki dumps (.xml), .jsonl or .txt files, compressed or not, .parquet files, or folders of them. Names begin
    with the language, or en=PATH names it; any code will do."""
    output: str
    """Corpus folder to create."""
    languages: list[str] | None = None
    """Codes of the languages to include, as in en,de; the inputs must have each, unless ``skip_empty_languages``.
    Default: all languages of the inputs."""
    vocab_size: int = 64_000
    """Pieces of the tokenizer to train, special tokens and bytes included. Ids take two bytes up to 65,536 pieces."""
    tokenizer: str | None = None
    """Tokenizer to use instead of training one: a corpus, a folder or hub id of a model with a fast tokenizer, or a
    sentencepiece.model that UniBERT trained."""
    trim_vocabulary: int | None = None
    """Keep only this many pieces of ``tokenizer``: those that the text uses most, languages weighted by
    ``tokenizer_exponent``. Teachers and initial models are trimmed alike when a run loads them."""
    tokenizer_bytes: int = 300_000_000
    """Maximum bytes of text to train the tokenizer on, of all languages together. Training takes some 25 times as much
    memory, here 8 GB."""
    tokenizer_exponent: float = 0.3
    """A language's share of those bytes is proportional to its bytes of text to this power."""
    character_coverage: float = 0.99999
    """Share of all characters that get a piece of their own. The others are spelt in bytes."""
    model_max_length: int = 512
    """Number of tokens to which the Hugging Face tokenizer truncates if truncation is requested."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Quality filters."""
    near_duplicates: NearDuplicateConfig = field(default_factory=NearDuplicateConfig)
    """Which documents of a language are nearly equal; the first of them is kept. Equal ones are dropped in any case."""
    exclude: str | None = None
    """File of documents to leave out, such as the articles of an evaluation set: lines "code<TAB>title" or
    "code<TAB>id". Titles are compared as MediaWiki does; that of a redirect leaves out the page to which it leads, but
    redirects to redirects are not followed. Lines that match nothing are reported."""
    stubs: StubConfig = field(default_factory=StubConfig)
    """Which documents are stubs that a program wrote from a template, as are most articles of some Wikipedias (ceb,
    war, vo, min, new, bpy)."""
    wrong_language: WrongLanguageConfig = field(default_factory=WrongLanguageConfig)
    """Which documents are in another language than their file."""
    document_filter: str | None = None
    """A function of your own, as ``module:function``, for instance to remove personal data. It takes the text of a
    document and the code of its language, before the quality filters, and returns the text to use, or None to drop the
    document. The module must be importable."""
    decontaminate: list[str] | None = None
    """Evaluation sets, files or folders of them, whose text must not be in the corpus: .txt, .tsv, .csv, .json or
    .jsonl of any layout, compressed or not. Documents that share a run of words with any of their strings are
    dropped."""
    decontamination_words: int = 13
    """Length of that run. Strings of 8 to 12 words are looked for as a whole, shorter ones are not."""
    decontamination_characters: int = 26
    """Length of the run in characters of the scripts without spaces between words. Strings of 16 to 25 of them are
    looked for as a whole."""
    max_page_characters: int = 1 << 20
    """Drop wiki pages with more characters of wikitext than this. MediaWiki allows 2 MiB; such pages are
    mostly tables."""
    skip_empty_languages: bool = False
    """Skip languages of which no document passes the filters, and name them in the report, instead of stopping; skip
    ``languages`` that the inputs do not have."""
    heldout_share: float = 0.01
    """Share of documents held out, chosen by a hash of their id; at least one if a language has several."""
    tokens_per_shard: int = 4_000_000
    """Approximate number of tokens in a shard. The shards of a language are equally large."""
    tokens_per_block: int = 1 << 16
    """Maximum number of tokens in a sample of a tar file, unless a single document is longer."""
    seed: int = 0
    """Seed of the documents' order and of the tokenizer's sample."""
    workers: int | None = None
    """Number of processes. Default: one per CPU. Under mpirun or srun the other ranks are used instead."""
    overwrite: bool = False
    """Replace a corpus in the output folder."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ValueError("inputs: give at least one file or folder of documents")
        for key in (
            "tokenizer_bytes",
            "trim_vocabulary",
            "decontamination_words",
            "decontamination_characters",
            "tokens_per_shard",
            "tokens_per_block",
            "model_max_length",
            "workers",
        ):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"{key}: must be at least 1, got {value}")
        if self.vocab_size < 300:
            raise ValueError(f"vocab_size: needs room for 256 bytes, special tokens and pieces, got {self.vocab_size}")
        if self.trim_vocabulary is not None and self.tokenizer is None:
            raise ValueError("trim_vocabulary: needs tokenizer, which names the model whose vocabulary to trim")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share: must be at least 0 and less than 1, got {self.heldout_share}")
        if not 0.9 <= self.character_coverage <= 1:
            raise ValueError(f"character_coverage: must lie between 0.9 and 1, got {self.character_coverage}")
        if not 0 <= self.tokenizer_exponent <= 1:
            raise ValueError(f"tokenizer_exponent: must lie between 0 and 1, got {self.tokenizer_exponent}")
