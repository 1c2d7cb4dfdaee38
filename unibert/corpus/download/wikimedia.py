"""The layout of Wikimedia's dumps: what a server has of a language, and which files hold its articles.

A server has ``/<wiki>/<date>/dumpstatus.json`` with the jobs of a dump, their status, and the size and digests of their
files. The articles of most languages are in one file, ``<wiki>-<date>-pages-articles-multistream.xml.bz2``. Those of
large ones are in parts with ranges of page ids, ``…-multistream1.xml-p1p41242.bz2``, and again in one file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from unibert.corpus.download.client import Client, NotFound
from unibert.errors import UserError
from unibert.languages import dump_name

LICENSE = (
    "Text of Wikipedia is available under CC BY-SA 4.0 and, for the most part, the GFDL; its authors are named in the "
    "history of each page. See https://dumps.wikimedia.org/legal.html"
)
LATEST = "latest"

_PARTS_JOB, _WHOLE_JOB = "articlesmultistreamdump", "articlesmultistreamdumprecombine"
"""The job that writes the parts, or the one file of a language without parts; and the job that joins parts."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dump on a server."""

    name: str
    url: str
    size: int
    """In bytes."""
    sha1: str
    """Hexadecimal."""


@dataclass(frozen=True)
class Dump:
    """The files with the articles of a language at a date: one, or all parts."""

    language: str
    date: str
    files: tuple[RemoteFile, ...]


class Unfinished(UserError):
    """The dump is still being written, or was given up."""


def database_name(language: str) -> str:
    """Return the name of a language's wiki in paths: ``viwiki`` for vi, ``zh_yuewiki`` for zh-yue, zh_yue or yue."""
    return f"{dump_name(language)}wiki"


async def find_dump(client: Client, mirror: str, language: str, date: str, *, parts: bool) -> Dump:
    """Return the dump of a language at ``date``, which is YYYYMMDD or ``latest``: the newest that is finished.

    ``parts``: take the parts where there are any, else the one file where there is one.

    Raises:
        UserError: if there is no such dump, with the dates that there are; if it is not finished; if its status cannot
            be read.
    """
    folder = f"{mirror.rstrip('/')}/{database_name(language)}"
    if date != LATEST:
        try:
            return await _dump_at(client, folder, language, date, parts)
        except NotFound as error:
            dates = await _dates(client, folder, language)
            there = f"the dates there are {', '.join(dates)}" if dates else "there are none"
            raise UserError(f"{language}: {folder}/ has no dump of {date}; {there}") from error
    dates = await _dates(client, folder, language)
    for date in dates:
        try:
            return await _dump_at(client, folder, language, date, parts)
        except (NotFound, Unfinished):
            continue
    raise UserError(f"{language}: {folder}/ has no finished dump (dates: {', '.join(dates) or 'none'})")


def other_dumps(names: list[str], dump: Dump) -> list[str]:
    """Return those of the names that are articles of the dump's language, but none of its files: of another date, or
    the whole where parts are wanted."""
    articles = re.compile(rf"{database_name(dump.language)}-\d{{8}}-pages-articles.*\.xml(-p\d+p\d+)?(\.\w+)?")
    wanted = {file.name for file in dump.files}
    return sorted(name for name in names if articles.fullmatch(name) and name not in wanted)


async def _dates(client: Client, folder: str, language: str) -> list[str]:
    """Return the dates in the listing of a wiki's folder, newest first."""
    try:
        listing = await client.text(f"{folder}/")
    except NotFound as error:
        raise UserError(
            f"{language}: {folder}/ does not exist; languages are named as in <language>.wikipedia.org"
        ) from error
    return sorted(set(re.findall(r'href="(?:[^"]*/)?(\d{8})/?"', listing)), reverse=True)


async def _dump_at(client: Client, folder: str, language: str, date: str, parts: bool) -> Dump:
    url = f"{folder}/{date}/dumpstatus.json"
    text = await client.text(url)
    try:
        jobs = json.loads(text)["jobs"]
        files = _finished_files(jobs, f"{database_name(language)}-{date}", parts)
    except Unfinished as error:
        raise Unfinished(f"{language}: the dump of {date} is not finished ({error}); name an earlier --date") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{language}: {url} is not the status of a dump ({error!r}); try another --mirror") from error
    remote = (
        RemoteFile(name, f"{folder}/{date}/{name}", int(entry["size"]), entry["sha1"]) for name, entry in files.items()
    )
    return Dump(language, date, tuple(remote))


def _finished_files(jobs: dict[str, Any], prefix: str, parts: bool) -> dict[str, dict[str, Any]]:
    """Return the entries of the wanted files. Raises Unfinished with the status of the job."""
    for name in (_PARTS_JOB, _WHOLE_JOB) if parts else (_WHOLE_JOB, _PARTS_JOB):
        job = jobs.get(name)
        if job is None or job["status"] == "skipped":
            continue
        if job["status"] != "done":
            raise Unfinished(job["status"])
        # Only these names: they become names of files here, and a job also has an index of each file.
        pattern = re.compile(rf"{prefix}-pages-articles-multistream(\d*)\.xml(-p\d+p\d+)?\.bz2")
        matches = {file: match for file in job["files"] if (match := pattern.fullmatch(file))}
        of_parts = [file for file, match in matches.items() if match[1]]
        whole = [file for file, match in matches.items() if not match[1]]
        files = {file: job["files"][file] for file in (of_parts or whole if parts else whole or of_parts)}
        if files and all(_is_complete(entry) for entry in files.values()):
            return files
        raise Unfinished("without sizes and checksums of its articles")
    raise Unfinished("without articles")


def _is_complete(entry: dict[str, Any]) -> bool:
    sha1 = entry.get("sha1")
    return isinstance(entry.get("size"), int) and isinstance(sha1, str) and bool(re.fullmatch("[0-9a-f]{40}", sha1))
