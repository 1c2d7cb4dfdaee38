"""The wheel, built and run outside the checkout, and the sdist beside it."""

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

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("unibert", "kernels", "ds_configs", "slurm")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt")
KINDS = {".py", ".yaml", ".xml", ".html", ".toml", ".json", ".sh", ".example"}

pytestmark = pytest.mark.slow


def python(*words: str, **options: object) -> None:
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def wheel_of(source: Path, folder: Path) -> Path:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
    python("-m", "pip", "wheel", *options, str(source))
    [wheel] = folder.glob("unibert-*.whl")
    return wheel


def files_of(*names: str) -> list[str]:
    """Files of the repository in some folders, without those that git ignores."""
    options = ("--cached", "--others", "--exclude-standard")
    listed = subprocess.run(
        ["git", "ls-files", *options, *names], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what the wheel is built of, since a build leaves folders behind that a later one would take up."""
    folder = tmp_path_factory.mktemp("source")
    for name in files_of(*SOURCES, *FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return wheel_of(source, tmp_path_factory.mktemp("wheel"))


def content(wheel: Path) -> dict[str, tuple[int, bytes]]:
    """Permissions and bytes of each file but the list of them all."""
    with zipfile.ZipFile(wheel) as archive:
        files = [entry for entry in archive.infolist() if not entry.filename.endswith("/RECORD")]
        return {entry.filename: (entry.external_attr >> 16 & 0o777, archive.read(entry)) for entry in files}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    places = {"unibert": "unibert", "kernels/unibert_kernels": "unibert_kernels"}
    places |= {name: f"unibert/{name}" for name in ("ds_configs", "slurm")}
    expected = {}
    for name in files_of(*places):
        [(start, place)] = [(start, place) for start, place in places.items() if name.startswith(f"{start}/")]
        expected[place + name.removeprefix(start)] = (REPOSITORY / name).read_bytes()
    assert {Path(name).suffix for name in expected} == KINDS
    found = content(wheel)
    about = {name for name in found if ".dist-info/" in name}
    assert {name: data for name, (_, data) in found.items() if name not in about} == expected
    assert {name.partition(".dist-info/")[2] for name in about} == {
        "METADATA",
        "WHEEL",
        "entry_points.txt",
        "top_level.txt",
        "licenses/LICENSE",
    }
    executable = {name for name, (mode, _) in found.items() if mode & 0o111}
    assert executable == {f"unibert/slurm/{name}.sh" for name in ("array", "bench", "corpus", "evaluate", "pretrain")}


def test_the_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    python("-c", build, cwd=source)
    [sdist] = tmp_path.glob("unibert-*.tar.gz")
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert top == {*SOURCES, *FILES, "PKG-INFO", "setup.cfg", "unibert.egg-info"}
    assert content(wheel_of(sdist, tmp_path / "wheel")) == content(wheel)


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """A folder outside any checkout, in which the steps below leave what the later ones want."""
    return tmp_path_factory.mktemp("outside")


Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start(wheel, outside, tmp_path_factory) -> Command:
    """Starts a command outside the checkout with the wheel, whose packages come before an editable installation's."""
    packages = tmp_path_factory.mktemp("packages")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(packages), str(wheel))
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> subprocess.Popen[str]:
        command = [packages / "bin" / "unibert", *words] if words[0] != "python" else [sys.executable, *words[1:]]
        return subprocess.Popen(
            command, cwd=outside, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    names = "import unibert.installation as i, unibert_kernels as k; print(i.__file__, k.__file__, sep='\\n')"
    found, _ = start("python", "-c", names).communicate()
    assert [Path(line).parents[1] for line in found.splitlines()] == [packages, packages]
    return start


@pytest.fixture(scope="module")
def unibert(start) -> Callable[..., str]:
    """What a command prints that ends well."""

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
    examined = unibert("doctor")
    assert "ok    packages" in examined
    assert "0 FAIL" in examined


def test_the_job_scripts(unibert, outside):
    assert "jobs/pretrain.sh" in unibert("slurm", "--output", "jobs")
    assert os.access(outside / "jobs" / "pretrain.sh", os.X_OK)


def test_the_demo_s_first_steps_and_a_run_of_its_own(start, unibert, outside):
    demo = start("demo")
    try:
        wait_for_line(outside / "demo-run" / "teacher" / "metrics.jsonl", step=2)
    finally:
        demo.send_signal(signal.SIGTERM)
        printed, _ = demo.communicate(timeout=100)
    assert "unibert: error: stopped; the same command continues" in printed
    words = ("--corpus=demo-run/corpus", "--run_dir=run", "--training.ds_config=zero2", "--training.log_every=1")
    trained = unibert("pretrain", "demo-teacher", *words, f"--training.tokens={3 * 16 * 128}")
    assert (outside / "run" / "metrics.jsonl").read_text().count('"loss"') == 3, trained
    assert (outside / "run" / "model" / "model.safetensors").exists()
