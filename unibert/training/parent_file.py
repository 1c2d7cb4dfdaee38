"""``parent.json``, in which the run folder of a branch names its parent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unibert.errors import UserError

PARENT_FILE = "parent.json"


def read_parent_file(run_dir: Path) -> dict[str, Any] | None:
    """Return the fields of `unibert.training.parent.Branch`; None if the run is no branch.

    Raises:
        UserError: if the file is damaged.
    """
    path = run_dir / PARENT_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["parent"], content["step"], content["stream"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); restore it from a copy") from error
    return content
