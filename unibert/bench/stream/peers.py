"""Other loaders on the same documents: sequences of one length, shuffled, in batches, masked.

They read sequences that were cut in advance from concatenated documents. Nothing is padded, a sequence begins and ends
anywhere in a document, and a batch does not say which tokens belong together. The exception is WebDataset on UniBERT's
shards, which cuts sequences while it reads.
"""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unibert.bench.availability import require_package
from unibert.bench.stream.work import Delivery, Source, StreamProvider, Work, cut_sequences, frame_documents
from unibert.corpus.shards import Block, decode_block
from unibert.stream.config import StreamConfig
from unibert.stream.sequences import NOT_MASKED

SHUFFLE_SEQUENCES = 1000
"""Size of the shuffle buffers of WebDataset and Hugging Face datasets, as in their documentation."""
SEQUENCES_PER_FILE = 4096

TokenArray = npt.NDArray[np.unsignedinteger]
Masking = Callable[[TokenArray], dict[str, torch.Tensor]]


def vectorised_masking(work: Work) -> Masking:
    """A function from sequences (B, S) to a masked batch. One 24-bit random number per ordinary token decides whether
    it is masked and what replaces it, with UniBERT's shares, which are those of DataCollatorForLanguageModeling."""
    config, vocabulary, generator = StreamConfig(), work.vocabulary, np.random.default_rng(work.seed)
    mask_threshold = work.masking_rate * config.mask_share
    random_threshold = mask_threshold + work.masking_rate * config.random_share

    def mask_sequences(sequences: TokenArray) -> dict[str, torch.Tensor]:
        ids = sequences.astype(np.int64)
        numbers = generator.random(ids.shape, dtype=np.float32)
        ordinary = vocabulary.is_ordinary(ids)
        labels = np.where((numbers < work.masking_rate) & ordinary, ids, NOT_MASKED)
        randomised = (numbers >= mask_threshold) & (numbers < random_threshold) & ordinary
        ids[randomised] = generator.choice(vocabulary.ordinary_ids, np.count_nonzero(randomised))
        ids[(numbers < mask_threshold) & ordinary] = vocabulary.special_ids.mask
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    return mask_sequences


def standard_collator(work: Work) -> Callable[[Sequence[Any]], Mapping[str, torch.Tensor]]:
    """DataCollatorForLanguageModeling of transformers, with a tokenizer that holds the ids of the special tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    vocabulary, words = work.vocabulary, {str(index): index for index in range(work.vocabulary.size)}
    special = vocabulary.special_ids
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=str(special.pad))),
        pad_token=str(special.pad),
        mask_token=str(special.mask),
        additional_special_tokens=[str(index) for index in special.special],
    )
    collator: Callable[[Sequence[Any]], Mapping[str, torch.Tensor]] = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=work.masking_rate
    )
    return collator


def _deliveries(batches: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[Delivery]:
    for batch in batches:
        size = batch["input_ids"].numel()
        yield Delivery(size, size, [batch])


# WebDataset


def _tar_folder(work: Work) -> Path:
    return Path(work.folder) / "tar"


def _prepare_tar(work: Work) -> None:
    import webdataset as wds

    _tar_folder(work).mkdir()
    with wds.ShardWriter(
        str(_tar_folder(work) / "sequences-%06d.tar"), maxcount=SEQUENCES_PER_FILE, verbose=0
    ) as writer:
        for number, sequence in enumerate(work.sequences()):
            writer.write({"__key__": f"{number:09d}", "npy": sequence})


def _webdataset_sequences(work: Work) -> dict[str, Source]:
    import webdataset as wds

    paths = sorted(map(str, _tar_folder(work).glob("*.tar")))
    masked = vectorised_masking(work)

    def decoded(sample: Mapping[str, Any]) -> TokenArray:
        sequence: TokenArray = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
        return sequence

    def source(built_in: bool) -> Iterator[Delivery]:
        sequences = wds.WebDataset(paths, shardshuffle=len(paths), seed=work.seed).shuffle(SHUFFLE_SEQUENCES)
        sequences = sequences.decode().map(lambda sample: sample["npy"]) if built_in else sequences.map(decoded)
        return _deliveries(sequences.batched(work.batch_size, collation_fn=lambda batch: masked(np.stack(batch))))

    return {"np.load": lambda: source(False), ".decode()": lambda: source(True)}


def _webdataset_blocks(work: Work) -> dict[str, Source]:
    import webdataset as wds

    paths = [str(Path(work.corpus).absolute() / shard.path) for shard in work.shards]
    masked, special_ids = vectorised_masking(work), work.vocabulary.special_ids

    def sequences_of_blocks(blocks: Iterable[Block]) -> Iterator[TokenArray]:
        return cut_sequences((frame_documents(block, special_ids) for block in blocks), work.sequence_length)

    def documents(blocks: Iterable[Block]) -> Iterator[TokenArray]:
        for block in blocks:
            flat = frame_documents(block, special_ids)
            ends = np.cumsum(block.lengths + np.uint32(special_ids.frame_tokens), dtype=np.int64)
            yield from np.split(flat, ends[:-1])

    def sequences_of_documents(documents: Iterable[TokenArray]) -> Iterator[TokenArray]:
        return cut_sequences(documents, work.sequence_length)

    def source(whole_blocks: bool) -> Iterator[Delivery]:
        blocks = wds.WebDataset(paths, shardshuffle=len(paths), seed=work.seed).map(decode_block)
        if whole_blocks:
            sequences = blocks.compose(sequences_of_blocks).shuffle(SHUFFLE_SEQUENCES)
        else:
            sequences = blocks.compose(documents).shuffle(SHUFFLE_SEQUENCES).compose(sequences_of_documents)
        return _deliveries(sequences.batched(work.batch_size, collation_fn=lambda batch: masked(np.stack(batch))))

    return {"sequences shuffled": lambda: source(True), "documents shuffled": lambda: source(False)}


# MosaicML Streaming


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Provide the two names of torchvision that MosaicML Streaming imports for its image data sets.

    There is no torchvision for torch's CPU build. transformers checks for torchvision too and would take this stand-in
    for the real package, so it is imported first, and the stand-in is removed afterwards.
    """
    import transformers.feature_extraction_utils  # noqa: F401

    try:
        import torchvision  # noqa: F401
    except ImportError:
        names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
        modules = {name: types.ModuleType(name) for name in names}
        vars(modules["torchvision.datasets"])["VisionDataset"] = type("VisionDataset", (), {})
        vars(modules["torchvision.transforms.functional"])["to_tensor"] = None
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in names:
                del sys.modules[name]
    else:
        yield


def _streaming() -> Any:
    require_package("mosaicml-streaming")
    with _without_torchvision():
        import streaming
    return streaming


def _mosaic_folder(work: Work) -> str:
    return str(Path(work.folder) / "mds")


def _prepare_mosaic(work: Work) -> None:
    sequences = work.sequences()
    # With type and shape in the column's encoding they need not be decoded for each sequence.
    columns = {"input_ids": f"ndarray:{sequences.dtype}:{work.sequence_length}"}
    with _streaming().MDSWriter(out=_mosaic_folder(work), columns=columns) as writer:
        for sequence in sequences:
            writer.write({"input_ids": sequence})


def _mosaic(work: Work) -> dict[str, Source]:
    from torch.utils.data import DataLoader

    streaming = _streaming()
    masked, collator = vectorised_masking(work), standard_collator(work)
    datasets: dict[str, Any] = {}

    def vectorised(samples: Sequence[Mapping[str, TokenArray]]) -> Mapping[str, torch.Tensor]:
        return masked(np.stack([sample["input_ids"] for sample in samples]))

    def standard(samples: Sequence[Mapping[str, TokenArray]]) -> Mapping[str, torch.Tensor]:
        return collator([torch.from_numpy(sample["input_ids"].astype(np.int64)) for sample in samples])

    def source(algorithm: str, collate: Callable[[Sequence[Any]], Any]) -> Iterator[Delivery]:
        # One data set serves all passes: it supports epochs, and its folder cannot be opened twice.
        if algorithm not in datasets:
            datasets.clear()
            datasets[algorithm] = streaming.StreamingDataset(
                local=_mosaic_folder(work),
                shuffle=True,
                shuffle_algo=algorithm,
                shuffle_seed=work.seed,
                batch_size=work.batch_size,
            )
        return _deliveries(DataLoader(datasets[algorithm], batch_size=work.batch_size, collate_fn=collate))

    return {
        "py1e": lambda: source("py1e", vectorised),
        "py1e, standard collator": lambda: source("py1e", standard),
        "py1s": lambda: source("py1s", vectorised),
        "py2s": lambda: source("py2s", vectorised),
    }


# Hugging Face datasets


def _prepare_parquet(work: Work) -> None:
    require_package("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    sequences, folder = work.sequences(), Path(work.folder) / "parquet"
    folder.mkdir()
    for number, first in enumerate(range(0, len(sequences), SEQUENCES_PER_FILE)):
        flat = pa.array(np.array(sequences[first : first + SEQUENCES_PER_FILE]).ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, work.sequence_length)
        pq.write_table(pa.table({"input_ids": column}), folder / f"{number:06d}.parquet")


def _loaded(work: Work, *, streamed: bool) -> Any:
    """An IterableDataset of the Parquet files, read directly or through its memory-mapped Arrow cache."""
    require_package("datasets")
    import datasets
    import pyarrow as pa

    pa.set_cpu_count(1)
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"input_ids": datasets.List(datasets.Value(str(work.sequences().dtype)), length=work.sequence_length)}
    )
    files = sorted(map(str, (Path(work.folder) / "parquet").glob("*.parquet")))
    loaded = datasets.load_dataset(
        "parquet",
        data_files=files,
        split="train",
        features=features,
        streaming=streamed,
        cache_dir=str(Path(work.folder) / "arrow"),
    )
    if not streamed:
        loaded = loaded.to_iterable_dataset(num_shards=len(files))
    return loaded.shuffle(seed=work.seed, buffer_size=SHUFFLE_SEQUENCES)


def _datasets_sequences(work: Work) -> dict[str, Source]:
    from torch.utils.data import DataLoader

    dataset = _loaded(work, streamed=True)
    masked, collator = vectorised_masking(work), standard_collator(work)

    def vectorised(samples: Sequence[Mapping[str, TokenArray]]) -> Mapping[str, torch.Tensor]:
        return masked(np.stack([sample["input_ids"] for sample in samples]))

    def source(form: str, collate: Callable[[Sequence[Any]], Any]) -> Iterator[Delivery]:
        return _deliveries(DataLoader(dataset.with_format(form), batch_size=work.batch_size, collate_fn=collate))

    return {
        "torch, standard collator": lambda: source("torch", collator),
        "numpy, vectorised masking": lambda: source("numpy", vectorised),
    }


def _datasets_bulk(work: Work) -> dict[str, Source]:
    streamed, mapped = _loaded(work, streamed=True), _loaded(work, streamed=False)
    masked = vectorised_masking(work)

    def from_arrow(table: Any) -> Mapping[str, torch.Tensor]:
        flat = table["input_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return masked(flat.reshape(-1, work.sequence_length))

    def source(dataset: Any, form: str) -> Iterator[Delivery]:
        batches = dataset.with_format(form).iter(work.batch_size)
        if form == "arrow":
            return _deliveries(map(from_arrow, batches))
        return _deliveries(masked(np.asarray(batch["input_ids"])) for batch in batches)

    return {
        "Parquet, arrow": lambda: source(streamed, "arrow"),
        "Parquet, numpy": lambda: source(streamed, "numpy"),
        "memory-mapped, arrow": lambda: source(mapped, "arrow"),
        "memory-mapped, numpy": lambda: source(mapped, "numpy"),
    }


PEERS = (
    StreamProvider("WebDataset", "peer", _webdataset_sequences, "usual", _prepare_tar),
    StreamProvider("WebDataset on our shards", "peer", _webdataset_blocks, "bulk"),
    StreamProvider("MosaicML Streaming", "peer", _mosaic, "usual", _prepare_mosaic),
    StreamProvider("Hugging Face datasets", "peer", _datasets_sequences, "usual", _prepare_parquet),
    StreamProvider("Hugging Face datasets, bulk", "peer", _datasets_bulk, "bulk", _prepare_parquet),
)
