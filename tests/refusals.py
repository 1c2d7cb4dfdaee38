"""The message of the command line for a user's mistake."""

from typing import Any

import pytest

from unibert.cli import main


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[str, str]:
    """Run ``unibert WORDS``, which must exit with status 1; return its output and the one line of its error."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert printed.err.startswith("unibert: error: ")
    assert printed.err.count("\n") == 1
    return printed.out, printed.err
