"""Write a teacher's vectors into a corpus, so that training needs no teacher.

The vectors are those that `pooled` compares: means over the pieces into which training cuts documents, read alone and
without masks. Restarted, the command goes on with the shards that are missing.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from unibert.command_options import TeachOptions
from unibert.corpus.dataset_card import DESCRIPTIONS
from unibert.corpus.executors import Workers, process_number, run_tasks, write_corpus
from unibert.corpus.manifest import MANIFEST_NAME, Manifest, Shard, Teaching
from unibert.corpus.shards import Block, add_member, encode_block, encode_vectors
from unibert.corpus.special_ids import SpecialIds
from unibert.cpu_products import use_fastest_products
from unibert.device import choose_device
from unibert.errors import UserError
from unibert.files import DISK_FULL, file_sha256, replacing, write_json
from unibert.model.attention import PackedDocuments
from unibert.model.teacher import Teacher, weights_sha256
from unibert.model_card import model_name
from unibert.stream.batch import Batch
from unibert.stream.config import StreamConfig
from unibert.stream.packing import pack
from unibert.stream.reader import read_blocks
from unibert.stream.sequences import NOT_MASKED, MaskedSequences
from unibert.stream.source import ShardSource, check_shards_exist
from unibert.stream.window import Window
from unibert.training.models import build_teacher

_UNFINISHED = ".teaching.json"


@dataclass(frozen=True, kw_only=True)
class _Task:
    shard: Shard
    options: TeachOptions
    """Name the corpus, the teacher and the output."""


def teach_corpus(options: TeachOptions) -> Manifest:
    """Write the corpus that ``options`` describe; ``manifest.json`` is written last.

    Under mpirun or srun every rank calls this; rank 0 coordinates and the others work.

    Raises:
        UserError: if corpus or teacher cannot be used, the output folder is in use, or the disk is full.
    """
    workers = options.workers or max(1, torch.cuda.device_count() if options.device == "auto" else 1)
    try:
        return write_corpus(lambda ranks: _teach(options, ranks), options.output, workers)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"output: the disk of {options.output} is full or takes no larger file; make room, and the same "
                "command goes on"
            ) from error
        raise UserError(f"output: {options.output} cannot be written ({error.strerror}); choose another") from error


def _teach(options: TeachOptions, workers: Workers) -> Manifest:
    manifest = _manifest(options.corpus)
    if options.sequence_length <= manifest.special_ids.frame_tokens:
        raise UserError(
            f"sequence_length: {options.sequence_length} leaves no room for text between the "
            f"{manifest.special_ids.frame_tokens} special tokens that frame a document; raise it"
        )
    check_shards_exist(ShardSource(options.corpus, StreamConfig()), manifest.shards)
    teacher = _load(options, torch.device("cpu"))
    teaching = Teaching(
        teacher=model_name(options.teacher),
        weights_sha256=weights_sha256(teacher.model),
        prompt=options.prompt,
        sequence_length=options.sequence_length,
        depth=teacher.depth,
        width=teacher.width,
    )
    del teacher
    _prepare_output(options.output, manifest, teaching)
    largest_first = sorted(manifest.shards, key=lambda shard: (shard.split != "train", -shard.tokens))
    tasks = [_Task(shard=shard, options=options) for shard in largest_first]
    results = run_tasks(workers, _write_shard, tasks, "teaching", lambda task: task.shard.path)
    shards = [shard for _, shard in results]
    shutil.copytree(options.corpus / "tokenizer", options.output / "tokenizer", dirs_exist_ok=True)
    for name in DESCRIPTIONS:
        if (options.corpus / name).is_file():
            shutil.copyfile(options.corpus / name, options.output / name)
    taught = replace(manifest, shards=tuple(sorted(shards, key=lambda shard: shard.path)), teaching=teaching)
    taught.save(options.output)
    (options.output / _UNFINISHED).unlink()
    more = sum(shard.size_bytes for shard in taught.shards) - sum(shard.size_bytes for shard in manifest.shards)
    print(
        f"{options.output}: vectors of {teaching.width} dimensions from {teaching.teacher} for sequences of "
        f"{teaching.sequence_length} tokens; the shards have grown by {more / 2**30:.2f} GiB",
        file=sys.stderr,
    )
    return taught


def _prepare_output(output: Path, manifest: Manifest, teaching: Teaching) -> None:
    """Create the folder, or check that it holds an interrupted run of the same command."""
    if (output / MANIFEST_NAME).exists():
        raise UserError(f"output: {output} already holds a corpus; name another folder")
    settings = {"corpus": manifest.fingerprint} | asdict(teaching)
    unfinished = output / _UNFINISHED
    if unfinished.is_file():
        try:
            earlier = json.loads(unfinished.read_text(encoding="utf-8"))
        except ValueError:
            earlier = {}
        if different := [key for key, value in settings.items() if earlier.get(key) != value]:
            raise UserError(
                f"output: {output} holds shards of an interrupted run with another {different[0]}; remove the folder "
                "or name another"
            )
        for partial in output.glob("*/.*.partial"):
            partial.unlink()
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} exists and is no unfinished run of this command; name another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_json(unfinished, settings)


def _write_shard(task: _Task) -> Shard:
    """Write a shard with vectors, or the copy of a held-out one, unless it is there already."""
    shard, options = task.shard, task.options
    path = options.output / shard.path
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            if shard.split == "train":
                _write_taught(shard, options, partial)
            else:
                shutil.copyfile(options.corpus / shard.path, partial)
    return replace(shard, size_bytes=path.stat().st_size, sha256=file_sha256(path))


def _write_taught(shard: Shard, options: TeachOptions, path: Path) -> None:
    manifest = _manifest(options.corpus)
    device = choose_device(options.device, process_number())
    use_fastest_products(device)
    teacher = _load(options, device)
    source = ShardSource(options.corpus, StreamConfig())
    written = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for block in read_blocks(source, shard, manifest.vocab_size, with_lines=True):
            vectors = _vectors(teacher, block, manifest.special_ids, options)
            for extension, content in (encode_block(block) | encode_vectors(vectors)).items():
                add_member(tar, f"{written:06d}.{extension}", content)
            written += 1
    if written < shard.blocks:
        raise UserError(
            f"{source.location(shard)}: {shard.blocks - written} damaged blocks; copy the shard again before the "
            "corpus is taught"
        )


def _vectors(teacher: Teacher, block: Block, special_ids: SpecialIds, options: TeachOptions) -> npt.NDArray[np.float16]:
    """Return the teacher's mean vector of each piece of the block's documents, in order, (N, H_t)."""
    length = options.sequence_length
    window = Window(
        tokens=block.tokens,
        lengths=block.lengths.astype(np.int64),
        languages=np.zeros(len(block.ids), np.int64),
        origins=block.ids,
        skipped={},
        special_ids=special_ids,
    )
    pieces = window.documents().split(length - special_ids.frame_tokens)
    packing = pack(pieces, length, special_ids.frame_tokens)
    sequences = window.sequences(packing, length)
    unmasked = MaskedSequences(
        **vars(sequences),
        labels=np.full_like(sequences.input_ids, NOT_MASKED),
        sequence_indices=np.arange(sequences.num_sequences),
    )
    size = max(1, options.batch_tokens // length)
    means = []
    for first in range(0, sequences.num_sequences, size):
        batch = Batch.from_sequences(unmasked, first, min(first + size, sequences.num_sequences)).to(teacher.device)
        documents = PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen)
        lesson = teacher.read(batch, documents)
        means.append(lesson.document_means(len(batch.document_languages)).half())
    vectors = torch.cat(means).cpu()
    if not vectors.isfinite().all():
        raise UserError(f"teacher: {options.teacher} gives vectors that are not finite in fp16; choose another teacher")
    in_order = np.empty((len(pieces), teacher.width), np.float16)
    # Each piece begins at a place of its own, so that places tell the order.
    in_order[np.searchsorted(pieces.start, packing.pieces.start)] = vectors.numpy()
    return in_order


@lru_cache(maxsize=1)
def _load(options: TeachOptions, device: torch.device) -> Teacher:
    return build_teacher(
        options.teacher,
        options.corpus,
        _manifest(options.corpus),
        key="teacher",
        sequence_length=options.sequence_length,
        device=device,
        clean=True,
        prompt=options.prompt,
    )


@lru_cache(maxsize=1)
def _manifest(corpus: Path) -> Manifest:
    return Manifest.load(corpus)
