"""Every kernel is compiled for both GPU generations by both supported versions of Triton."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from unibert_kernels.fused import gate

KERNELS = {
    "rows",
    "finish_rows",
    "gradient",
    "label_logits",
    "teacher",
    "statistics",
    "find_documents",
    "discriminate",
    "finish",
    "hidden_gradient",
    "keep",
    "scale",
}
PINNED, OLDER = "pinned", "3.6.0"


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[subprocess.Popen[str], Path]]:
    """The gate with each version, in parallel processes in which Triton compiles instead of interpreting."""
    folder = tmp_path_factory.mktemp("gate")
    older = Path(sys.prefix) / f"triton-{OLDER}"
    started = {}
    for version, search in ((PINNED, []), (OLDER, [str(older)])):
        if search and not older.is_dir():
            continue
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join([*search, environment.get("PYTHONPATH", "")])
        report = folder / f"{version}.json"
        command = [sys.executable, "-m", "unibert_kernels.fused.gate", "--json", str(report)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started[version] = process, report
    return started


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("version", [PINNED, OLDER])
def test_no_kernel_spills_or_exceeds_shared_memory_or_makes_ptxas_warn(
    processes: dict[str, tuple[subprocess.Popen[str], Path]], version: str
) -> None:
    if version not in processes:
        pytest.skip(f"Triton {version} is not installed beside the environment; `make test` installs it")
    process, report = processes[version]
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    found = json.loads(report.read_text())
    assert version in (PINNED, found["triton"])
    for generation in ("sm_80", "sm_90"):
        of_generation = [kernel for kernel in found["kernels"] if kernel["generation"] == generation]
        assert {kernel["kernel"] for kernel in of_generation} == KERNELS
        # Half-precision products over the vocabulary use tensor cores.
        products = [kernel for kernel in of_generation if "DEPTH" in kernel["constants"]]
        assert {kernel["dtype"] for kernel in products} == {"bfloat16", "float32", "float32 as tf32"}
        assert all(kernel["tensor_core_instructions"] for kernel in products if kernel["dtype"] == "bfloat16")
        assert products


@pytest.mark.parametrize(
    ("generation", "spilled", "shared", "warnings", "problem"),
    [
        ("sm_90", 0, 232_448, "", ""),
        ("sm_90", 0, 232_449, "", "needs 232449 bytes of shared memory, 232448 are available"),
        ("sm_80", 0, 150_000, "", "needs 150000 bytes of shared memory, 101376 are available"),
        ("sm_80", 8, 1_000, "", "spills 8 bytes"),
        ("sm_90", 0, 232_448, "C7515", "ptxas warns: C7515"),
    ],
)
def test_problems_are_reported(
    generation: str,
    spilled: int,
    shared: int,
    warnings: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kernel = gate.Resources("rows", generation, "bfloat16", "", 8, 3, 255, spilled, shared, 1000, 4, warnings)
    monkeypatch.setattr(gate, "compile_all", lambda capability: [kernel])
    assert kernel.problem == problem
    assert gate.main([]) == int(bool(problem))
    assert problem in capsys.readouterr().out
