"""``unibert corpus download``: the dumps of several languages, each file continued, checked and recorded."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from unibert.command_options import DownloadOptions
from unibert.corpus.download.client import CONNECTIONS, Client, Patience, UnreachableServer
from unibert.corpus.download.fetch import fetch_file
from unibert.corpus.download.partial_file import part_paths
from unibert.corpus.download.progress import Progress, bytes_for_people
from unibert.corpus.download.record import Record
from unibert.corpus.download.wikimedia import Dump, RemoteFile, database_name, find_dump, other_dumps
from unibert.corpus.inputs import DOWNLOADS_NAME
from unibert.errors import UserError, short_message
from unibert.files import DISK_FULL, locked
from unibert.stopping import EXIT_STOPPED


def download_dumps(options: DownloadOptions, patience: Patience | None = None) -> None:
    """Download the dumps into the folder ``options.output``, and record them in its ``downloads.json``.

    Ctrl-C, SIGTERM or SIGUSR1 ends the process with status 75; what was received stays for the next call.

    Raises:
        UserError: at the end, naming the languages that could not be fetched; at once if the server cannot be reached,
            the disk is too small or full, or another process downloads into the folder.
    """
    folder = Path(options.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, f"output: another process downloads into {folder}; wait for it, or name another folder"):
            finished = asyncio.run(_until_stopped(_download(options, folder, patience or Patience())))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"output: the disk of {folder} is full or takes no larger file ({short_message(error)}); make room, "
                "and the same command goes on from what there is"
            ) from error
        raise UserError(f"output: {folder} cannot be written ({short_message(error)}); name another folder") from error
    if not finished:
        print("unibert: the download has stopped; the same command goes on", file=sys.stderr, flush=True)
        sys.exit(EXIT_STOPPED)


async def _until_stopped(work: Coroutine[Any, Any, None]) -> bool:
    """Await ``work``; return False if a signal has stopped it. A second signal has its default effect."""
    loop, task, stopped = asyncio.get_running_loop(), asyncio.ensure_future(work), False

    def stop(number: signal.Signals) -> None:
        nonlocal stopped
        stopped = True
        loop.remove_signal_handler(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise
        return False
    return True


async def _download(options: DownloadOptions, folder: Path, patience: Patience) -> None:
    languages = list({database_name(language): language for language in options.languages}.values())
    failures: dict[str, str] = {}
    async with Client(patience, options.contact, on_pause=Progress.tell) as client:
        dumps = await _find_dumps(client, options, languages, folder, failures)
        record = Record(folder)
        files = [(dump, file) for dump in dumps for file in dump.files if not await record.is_complete(dump, file)]
        _raise_if_disk_is_too_small(folder, [file for _, file in files])
        with Progress(sum(file.size for _, file in files)) as progress:

            async def fetch(dump: Dump, file: RemoteFile) -> None:
                try:
                    await fetch_file(client, file, folder / file.name, progress.advance)
                except UnreachableServer:
                    raise
                except UserError as error:
                    failures.setdefault(dump.language, str(error))
                else:
                    record.add(dump, file)

            await _run_all([fetch(dump, file) for dump, file in files])
    fetched = [dump for dump in dumps if dump.language not in failures]
    _print_summary(folder, fetched)
    if failures:
        causes = "; ".join(failures[language] for language in languages if language in failures)
        raise UserError(f"{len(failures)} of {len(languages)} languages could not be fetched: {causes}")


async def _find_dumps(
    client: Client, options: DownloadOptions, languages: Sequence[str], folder: Path, failures: dict[str, str]
) -> list[Dump]:
    """Return the dumps of the languages that have one; add the other languages to ``failures``."""
    names = [path.name for path in folder.iterdir()]
    found: dict[str, Dump] = {}

    async def find(language: str) -> None:
        try:
            dump = await find_dump(client, options.mirror, language, options.date, parts=options.parts)
            if others := other_dumps(names, dump):
                raise UserError(
                    f"{language}: {folder} also holds {others[0]}, and a corpus would have its articles twice; remove "
                    f"it, or name another --output (the dump to fetch is of {dump.date})"
                )
            found[language] = dump
        except UnreachableServer:
            raise
        except UserError as error:
            failures[language] = str(error)

    await _run_all([find(language) for language in languages])
    return [found[language] for language in languages if language in found]


async def _run_all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all of ``work`` in its order, several at a time. If one raises, or this is cancelled, the rest ends."""
    waiting = iter(work)

    async def worker() -> None:
        for one in waiting:
            await one

    tasks = [asyncio.ensure_future(worker()) for _ in range(CONNECTIONS)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in waiting:
            one.close()


def _raise_if_disk_is_too_small(folder: Path, files: Sequence[RemoteFile]) -> None:
    parts = (part_paths(folder / file.name)[0] for file in files)
    needed = sum(file.size for file in files) - sum(part.stat().st_size for part in parts if part.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"output: the dumps need another {bytes_for_people(needed)}, but the disk of {folder} has "
            f"{bytes_for_people(free)} free; name a folder on a larger disk, or fewer languages"
        )


def _print_summary(folder: Path, dumps: Sequence[Dump]) -> None:
    if dumps:
        files = [file for dump in dumps for file in dump.files]
        size = bytes_for_people(sum(file.size for file in files))
        dated = ", ".join(f"{dump.language} {dump.date}" for dump in dumps)
        print(f"{folder}: {len(files)} file{'s' * (len(files) > 1)}, {size} ({dated}), listed in {DOWNLOADS_NAME}")
        print(f"Next: unibert corpus build {folder} --output corpus")
