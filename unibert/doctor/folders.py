"""Folders: space, writing, locks, and whether the other nodes see them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec

from unibert.doctor.finding import Finding, fail, ok, warn, within
from unibert.errors import UserError
from unibert.machine import MIN_TEMPORARY_GIB, free_gib, min_run_gib, not_writable, too_full

Arguments = ParamSpec("Arguments")

FOLDER_SECONDS = 60
"""The sizes of a large corpus's shards take the longest."""

MIN_SHARED_MEMORY_GIB = 0.25
"""Of /dev/shm; a container has 64 MiB unless told otherwise, and loader processes and NCCL want more."""

SHARED = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "fuse.ceph",
    "glusterfs",
    "fuse.glusterfs",
    "pvfs2",
    "wekafs",
    "panfs",
    "afs",
    "cifs",
    "smb3",
    "9p",
    "virtiofs",
    "fuse.sshfs",
    "fuse.juicefs",
)
"""How the names of file systems begin, in /proc/mounts, that several machines can mount."""

LOCAL = ("ext", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "f2fs", "jfs", "bcachefs", "squashfs")
"""Likewise of those that one machine has for itself."""

_ELSEWHERE = "choose a folder that this user may write, with more room"


def check_folders(run_dir: Path | None) -> Iterator[Finding]:
    """The folders that UniBERT writes: the run's or the working one, for temporary files, in memory, for caches."""
    if run_dir is None:
        yield from patiently("this folder", _written, Path.cwd(), min_run_gib())
    else:
        yield from patiently("run folder", _written, run_dir, min_run_gib())
    yield from patiently("TMPDIR", _written, Path(tempfile.gettempdir()), MIN_TEMPORARY_GIB)
    yield from patiently("/dev/shm", _shared_memory)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.expanduser raises where there is no home
    for variable, default in (("HF_HOME", home / ".cache/huggingface"), ("TRITON_CACHE_DIR", home / ".triton/cache")):
        yield from patiently(variable, _cache, Path(os.environ.get(variable, default)))


def check_sharing(folders: dict[str, Path], nodes: int) -> Iterator[Finding]:
    """Whether all of Slurm's ``nodes`` see the folders that a job on several nodes reads or writes."""
    if nodes < 2:
        return
    shared = []
    for subject, folder in folders.items():
        findings = patiently(subject, _not_shared, folder, nodes)
        yield from findings
        shared += [] if findings else [subject]
    if shared:
        yield ok("shared folders", ", ".join(shared))


def patiently(
    subject: str,
    look: Callable[Concatenate[str, Arguments], Iterator[Finding]],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> list[Finding]:
    """What ``look(subject, …)`` finds, also where a file system fails or does not answer."""
    try:
        return within(FOLDER_SECONDS, lambda: list(look(subject, *arguments, **options)))
    except (UserError, ImportError) as error:
        found, _, fix = str(error).rpartition("; ")
        return [fail(subject, found or fix, fix if found else "fix what that names")]
    except TimeoutError as error:
        return [fail(subject, f"{arguments[0]}: {error}", "look at that file system's server, or take another folder")]
    except OSError as error:
        return [fail(subject, f"{error.filename}: {error.strerror}", "fix its permissions, or take another folder")]


def file_system(path: Path, mounts: str) -> tuple[str, Literal["shared", "local", "unknown"]]:
    """The type of the file system that ``path`` lies on, and whether other machines can see it.

    Args:
        path: resolved.
        mounts: as in /proc/mounts.
    """
    kind = "unknown"
    for line in mounts.splitlines():
        _, point, name, *_ = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        # Of mounts over each other the last is seen, and inner ones come after outer ones.
        if path.is_relative_to(point):
            kind = name
    if kind.startswith(SHARED):
        return kind, "shared"
    return kind, "local" if kind.startswith(LOCAL) else "unknown"


def _file_system_here(folder: Path) -> tuple[str, Literal["shared", "local", "unknown"]]:
    """Of a folder of this machine, also where it is yet to be made."""
    mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    return file_system(_nearest(folder).resolve(), mounts)


def _nearest(folder: Path) -> Path:
    """``folder``, or what of its path is there already."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def _written(subject: str, folder: Path, least: float) -> Iterator[Finding]:
    there = _nearest(folder)
    problems = not_writable(there) or too_full(there, least)
    if problems:
        yield fail(subject, problems[0], _ELSEWHERE)
    else:
        yield ok(subject, f"{folder}: {free_gib(there):.1f} GiB free, on {_file_system_here(there)[0]}")


def _cache(subject: str, folder: Path) -> Iterator[Finding]:
    there = _nearest(folder)
    fix = (
        f"export {subject}=…, a folder on this machine's own disk; the job scripts, which 'unibert slurm' writes, set "
        "Triton's"
    )
    if problems := not_writable(there) or too_full(there, MIN_TEMPORARY_GIB) or _without_locks(there):
        yield warn(subject, problems[0], fix)
    elif subject == "TRITON_CACHE_DIR" and _file_system_here(there)[1] == "shared":
        yield warn(subject, f"{folder} is on {_file_system_here(there)[0]}, where ranks of all nodes meet in it", fix)
    else:
        yield ok(subject, str(folder))


def _without_locks(folder: Path) -> list[str]:
    """A problem if a lock on a file in ``folder`` fails, or does not keep others out."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".unibert-") as held, Path(held.name).open("rb") as other:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return [f"{folder} has no file locks ({error.strerror})"]
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return []
    return [f"{folder} has file locks that keep nobody out"]


def _shared_memory(subject: str) -> Iterator[Finding]:
    size = shutil.disk_usage("/dev/shm").total / 2**30
    if size < MIN_SHARED_MEMORY_GIB:
        fix = "start the container with --ipc=host or --shm-size=2g"
        yield warn(subject, f"{size:.2f} GiB, and {MIN_SHARED_MEMORY_GIB:g} are wanted", fix)
    else:
        yield ok(subject, f"{size:.1f} GiB")


def _not_shared(subject: str, folder: Path, nodes: int) -> Iterator[Finding]:
    kind, seen = _file_system_here(folder)
    if seen != "shared":
        whose = "is this node's own" if seen == "local" else "UniBERT does not know"
        fix = "have it on a disk that all nodes mount at the same path, unless this is one"
        yield warn(subject, f"{folder} is on {kind}, which {whose}; Slurm has {nodes} nodes", fix)
