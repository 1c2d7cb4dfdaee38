"""The corpus and the run file of the tests of training."""

from tests.training.conftest import corpus, run_file  # noqa: F401
