"""The exceptions that reach the user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can fix: says what is wrong, where, and how to fix it, in one sentence.

    The command line prints the message and exits with 1.
    """


class AgreedError(UserError):
    """A user's mistake that all ranks raise together; rank 0 alone prints it."""


class RankError(UserError):
    """A user's mistake that one rank has met while the others went on; that rank prints it."""


class LostRanksError(UserError):
    """Other ranks have ended or do not answer; the same command may well succeed."""
