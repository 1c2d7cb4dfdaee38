"""The device of a command that has the option ``device``."""

from __future__ import annotations

import torch

from unibert.errors import UserError


def choose_device(name: str, number: int = 0) -> torch.device:
    """Return the device that ``name`` means.

    Args:
        name: ``cpu``, ``cuda:1`` and the like, or ``auto`` for a GPU if there is one.
        number: of this process among those of the machine; with ``auto``, neighbours take different GPUs.

    Raises:
        UserError: if the device cannot be used.
    """
    if name == "auto":
        count = torch.cuda.device_count()
        return torch.device("cuda", number % count) if count else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None
    return device
