"""Exceptions that reach the user as one sentence instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can fix: the message says what is wrong, where, and how to fix it, in one sentence.

    The command line prints the message and exits with 1.
    """


class AgreedError(UserError):
    """A user's mistake that all ranks raise together; only rank 0 prints it."""


class RankError(UserError):
    """A user's mistake that one rank met while the others continued; that rank prints it."""


class TransientError(UserError):
    """A failure outside this program that may pass, so that it is worth another try."""


class LostRanksError(UserError):
    """Other ranks have ended or do not respond; the same command may succeed when repeated."""


def short_message(error: BaseException) -> str:
    """Return the first two lines of a library's message, or the error's type if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") if lines else type(error).__name__
