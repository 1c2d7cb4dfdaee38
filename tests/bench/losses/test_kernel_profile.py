import pytest

from unibert.bench.losses.kernel_profile import summarize_trace


def test_a_trace_is_summed_by_kernel():
    def event(name, start, microseconds, category="kernel", **arguments):
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": microseconds, "args": arguments}

    arguments = {"registers per thread": 255, "shared memory": 1024}
    events = [
        event("gemm", 400, 100),
        event("rows", 100, 200, **arguments),
        event("rows", 300, 100),
        event("launch", 0, 50, "cuda_runtime"),
        {"ph": "i", "name": "mark"},
    ]
    summary = summarize_trace([*events, event("gemm", 900, 100)], 2, ("kernel", "gpu_memset"))
    assert summary["milliseconds"] == pytest.approx(0.45)
    assert summary["busy"] == pytest.approx(500 / 900)
    rows, gemm = summary["kernels"]
    assert rows == {
        "name": "rows",
        "calls": 1,
        "microseconds": 150,
        "share": 0.6,
        "registers": 255,
        "shared_bytes": 1024,
    }
    assert (gemm["calls"], gemm["microseconds"], gemm["share"]) == (1, 100, 0.4)
    with pytest.raises(ValueError, match="no kernel, gpu_memset"):
        summarize_trace(events[3:], 2, ("kernel", "gpu_memset"))
