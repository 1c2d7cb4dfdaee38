"""Check folders: free space, permissions, file locks, and whether other nodes can see them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec

from unibert.doctor.finding import Finding, call_with_timeout, fail, ok, warn
from unibert.errors import UserError
from unibert.machine import MIN_TEMPORARY_GIB, free_gib, min_run_gib, not_writable, too_full

Arguments = ParamSpec("Arguments")

FOLDER_SECONDS = 60
"""Time limit of one check; checking the sizes of a large corpus's shards takes longest."""

MIN_SHARED_MEMORY_GIB = 0.25
"""Minimum size of /dev/shm; a container has 64 MiB by default, and loader processes and NCCL need more."""

SHARED_FILE_SYSTEMS = (
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
"""Prefixes of types in /proc/mounts of file systems that several machines can mount."""

LOCAL_FILE_SYSTEMS = ("ext", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "f2fs", "jfs", "bcachefs", "squashfs")
"""Prefixes of types of file systems that belong to one machine."""

_OTHER_FOLDER = "choose a folder that this user may write, with more space"


def check_folders(run_dir: Path | None) -> Iterator[Finding]:
    """Check the folders that UniBERT writes: the run's or the working folder, TMPDIR, /dev/shm and caches."""
    if run_dir is None:
        yield from run_check("this folder", _check_space, Path.cwd(), min_run_gib())
    else:
        yield from run_check("run folder", _check_space, run_dir, min_run_gib())
    yield from run_check("TMPDIR", _check_space, Path(tempfile.gettempdir()), MIN_TEMPORARY_GIB)
    yield from run_check("/dev/shm", _check_shared_memory, Path("/dev/shm"))
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.expanduser raises where there is no home
    for variable, default in (("HF_HOME", home / ".cache/huggingface"), ("TRITON_CACHE_DIR", home / ".triton/cache")):
        yield from run_check(variable, _check_cache, Path(os.environ.get(variable, default)))


def check_sharing(folders: dict[str, Path], nodes: int) -> Iterator[Finding]:
    """Check that all of Slurm's ``nodes`` see the folders that a job on several nodes reads or writes."""
    if nodes < 2:
        return
    shared = []
    for subject, folder in folders.items():
        findings = run_check(subject, _check_shared, folder, nodes)
        yield from findings
        shared += [] if findings else [subject]
    if shared:
        yield ok("shared folders", ", ".join(shared))


def run_check(
    subject: str,
    check: Callable[Concatenate[str, Arguments], Iterator[Finding]],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> list[Finding]:
    """Return the findings of ``check(subject, folder, …)``, or a failure where the file system fails or hangs."""
    try:
        return call_with_timeout(FOLDER_SECONDS, lambda: list(check(subject, *arguments, **options)))
    except (UserError, ImportError) as error:
        message, _, fix = str(error).rpartition("; ")
        return [fail(subject, message or fix, fix if message else "fix what this message names")]
    except TimeoutError as error:
        return [fail(subject, f"{arguments[0]}: {error}", "check that file system's server, or use another folder")]
    except OSError as error:
        return [fail(subject, f"{error.filename}: {error.strerror}", "fix its permissions, or use another folder")]


def file_system(path: Path, mounts: str) -> tuple[str, Literal["shared", "local", "unknown"]]:
    """Return the type of the file system of ``path``, and whether other machines can see it.

    Args:
        path: a resolved path.
        mounts: the content of /proc/mounts.
    """
    kind = "unknown"
    for line in mounts.splitlines():
        _, point, name, *_ = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        # The last matching mount is the visible one: inner mounts and mounts over others come later.
        if path.is_relative_to(point):
            kind = name
    if kind.startswith(SHARED_FILE_SYSTEMS):
        return kind, "shared"
    return kind, "local" if kind.startswith(LOCAL_FILE_SYSTEMS) else "unknown"


def _file_system_of(folder: Path) -> tuple[str, Literal["shared", "local", "unknown"]]:
    """Return type and visibility of the file system of a folder, which need not exist yet."""
    mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    return file_system(_existing_part(folder).resolve(), mounts)


def _existing_part(folder: Path) -> Path:
    """Return ``folder`` or its nearest parent that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def _check_space(subject: str, folder: Path, min_gib: float) -> Iterator[Finding]:
    existing = _existing_part(folder)
    problems = not_writable(existing) or too_full(existing, min_gib)
    if problems:
        yield fail(subject, problems[0], _OTHER_FOLDER)
    else:
        yield ok(subject, f"{folder}: {free_gib(existing):.1f} GiB free, on {_file_system_of(existing)[0]}")


def _check_cache(subject: str, folder: Path) -> Iterator[Finding]:
    existing = _existing_part(folder)
    fix = (
        f"export {subject}=…, a folder on this machine's own disk; the job scripts, which 'unibert slurm' writes, set "
        "TRITON_CACHE_DIR"
    )
    if problems := not_writable(existing) or too_full(existing, MIN_TEMPORARY_GIB) or _lock_problems(existing):
        yield warn(subject, problems[0], fix)
    elif subject == "TRITON_CACHE_DIR" and _file_system_of(existing)[1] == "shared":
        yield warn(subject, f"{folder} is on {_file_system_of(existing)[0]} and shared by ranks of all nodes", fix)
    else:
        yield ok(subject, str(folder))


def _lock_problems(folder: Path) -> list[str]:
    """Return a problem if locking a file in ``folder`` fails or does not exclude others."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".unibert-") as held, Path(held.name).open("rb") as other:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return [f"{folder} has no file locks ({error.strerror})"]
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return []
    return [f"{folder} has file locks that exclude nobody"]


def _check_shared_memory(subject: str, folder: Path) -> Iterator[Finding]:
    size = shutil.disk_usage(folder).total / 2**30
    if size < MIN_SHARED_MEMORY_GIB:
        fix = "start the container with --ipc=host or --shm-size=2g"
        yield warn(subject, f"{size:.2f} GiB, {MIN_SHARED_MEMORY_GIB:g} GiB are needed", fix)
    else:
        yield ok(subject, f"{size:.1f} GiB")


def _check_shared(subject: str, folder: Path, nodes: int) -> Iterator[Finding]:
    kind, visibility = _file_system_of(folder)
    if visibility != "shared":
        owner = "belongs to this node alone" if visibility == "local" else "UniBERT does not know"
        fix = "use a disk that all nodes mount at the same path, unless this is one"
        yield warn(subject, f"{folder} is on {kind}, which {owner}; Slurm has {nodes} nodes", fix)
