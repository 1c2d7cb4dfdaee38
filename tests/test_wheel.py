"""The wheel, built and used outside the checkout, and the sdist."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.processes import wait_for_line
from unibert.demo.e5_teacher import find_e5_file

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("unibert", "kernels", "ds_configs", "slurm")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt")
SUFFIXES = {".py", ".yaml", ".xml", ".html", ".toml", ".json", ".sh", ".example"}

pytestmark = pytest.mark.slow


def run_python(*words: str, **options: object) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr


def build_wheel(source: Path, folder: Path) -> Path:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
    run_python("-m", "pip", "wheel", *options, str(source))
    [wheel] = folder.glob("unibert-*.whl")
    return wheel


def files_of(*names: str) -> list[str]:
    """Return the repository's files with these names or in these folders, except those that git ignores."""
    options = ("--cached", "--others", "--exclude-standard")
    listed = subprocess.run(
        ["git", "ls-files", *options, *names], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources, because a build leaves folders behind that the next build would use."""
    folder = tmp_path_factory.mktemp("source")
    for name in files_of(*SOURCES, *FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def content(wheel: Path) -> dict[str, tuple[int, bytes]]:
    """Return permissions and bytes of each file except RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        files = [entry for entry in archive.infolist() if not entry.filename.endswith("/RECORD")]
        return {entry.filename: (entry.external_attr >> 16 & 0o777, archive.read(entry)) for entry in files}


def test_the_wheel_contains_exactly_the_package(wheel):
    folders = {"unibert": "unibert", "kernels/unibert_kernels": "unibert_kernels"}
    folders |= {name: f"unibert/{name}" for name in ("ds_configs", "slurm")}
    expected = {}
    for name in files_of(*folders):
        [(source, target)] = [(start, target) for start, target in folders.items() if name.startswith(f"{start}/")]
        expected[target + name.removeprefix(source)] = (REPOSITORY / name).read_bytes()
    assert {Path(name).suffix for name in expected} == SUFFIXES
    files = content(wheel)
    metadata = {name for name in files if ".dist-info/" in name}
    assert {name: data for name, (_, data) in files.items() if name not in metadata} == expected
    assert {name.partition(".dist-info/")[2] for name in metadata} == {
        "METADATA",
        "WHEEL",
        "entry_points.txt",
        "top_level.txt",
        "licenses/LICENSE",
    }
    executable = {name for name, (mode, _) in files.items() if mode & 0o111}
    scripts = ("array", "bench", "corpus", "evaluate", "pretrain", "study", "teach")
    assert executable == {f"unibert/slurm/{name}.sh" for name in scripts}


def test_the_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    run_python("-c", build, cwd=source)
    [sdist] = tmp_path.glob("unibert-*.tar.gz")
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert top == {*SOURCES, *FILES, "PKG-INFO", "setup.cfg", "unibert.egg-info"}
    assert content(build_wheel(sdist, tmp_path / "wheel")) == content(wheel)


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """A folder outside any checkout, shared by the tests below."""
    return tmp_path_factory.mktemp("outside")


Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start(wheel, outside, tmp_path_factory) -> Command:
    """Start a command of the wheel outside the checkout; its packages precede those of an editable installation."""
    packages = tmp_path_factory.mktemp("packages")
    run_python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(packages), str(wheel))
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> subprocess.Popen[str]:
        command = [packages / "bin" / "unibert", *words] if words[0] != "python" else [sys.executable, *words[1:]]
        return subprocess.Popen(
            command, cwd=outside, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    program = "import unibert.installation as i, unibert_kernels as k; print(i.__file__, k.__file__, sep='\\n')"
    files, _ = start("python", "-c", program).communicate()
    assert [Path(line).parents[1] for line in files.splitlines()] == [packages, packages]
    return start


@pytest.fixture(scope="module")
def unibert(start) -> Callable[..., str]:
    """Run a command that must succeed and return its output."""

    def run(*words: str) -> str:
        process = start(*words)
        printed, _ = process.communicate(timeout=200)
        assert process.returncode == 0, printed
        return printed

    return run


def test_version_doctor_and_plan(unibert):
    assert unibert("--version") == "unibert 0.1.0\n"
    planned = unibert("plan", "tiny", "--gpus", "8", "--gpu", "h100", "--vocab_size", "64000")
    assert "recommended  --training.ds_config zero1" in planned
    assert "zero3_offload" in planned
    checks = unibert("doctor")
    assert "ok    packages" in checks
    assert "0 FAIL" in checks


def test_job_scripts(unibert, outside):
    assert "jobs/pretrain.sh" in unibert("slurm", "--output", "jobs")
    assert os.access(outside / "jobs" / "pretrain.sh", os.X_OK)


def test_first_steps_of_the_demo_and_a_run_on_its_corpus(start, unibert, outside):
    demo = start("demo")
    try:
        first_run = "teacher" if find_e5_file() is None else "student"
        wait_for_line(outside / "demo-run" / first_run / "metrics.jsonl", step=2)
    finally:
        demo.send_signal(signal.SIGTERM)
        printed, _ = demo.communicate(timeout=200)
    assert "unibert: error: stopped; the same command continues" in printed
    words = ("--corpus=demo-run/corpus", "--run_dir=run", "--training.ds_config=zero2", "--training.log_every=1")
    trained = unibert("pretrain", "demo-teacher", *words, f"--training.tokens={3 * 16 * 128}")
    assert (outside / "run" / "metrics.jsonl").read_text().count('"loss"') == 3, trained
    assert (outside / "run" / "model" / "model.safetensors").exists()
