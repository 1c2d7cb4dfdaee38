from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from unibert_kernels.fused import launch


class _Kernel:
    """Stand-in for a Triton kernel that records the arguments of its launches."""

    def __init__(self) -> None:
        self.launched: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.launched.append(arguments | {"grid": grid})


@pytest.mark.parametrize(("current", "switches"), [(0, [1]), (1, [])])
def test_the_current_device_changes_only_for_tensors_on_another_device(
    current: int, switches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    switched = []

    class Device:
        def __init__(self, device: torch.device) -> None:
            switched.append(device.index)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", Device)
    with FakeTensorMode():
        tensor = torch.empty(3, device="cuda:1")
    kernel = _Kernel()
    launch.launch(kernel, (2,), size=3, source_ptr=tensor)
    assert switched == switches
    assert kernel.launched[0]["grid"] == (2,)


def test_an_empty_grid_launches_nothing() -> None:
    kernel = _Kernel()
    launch.launch(kernel, (2, 0), source_ptr=torch.empty(3))
    assert not kernel.launched
