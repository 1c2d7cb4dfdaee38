"""The one exception that reaches the user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: says what is wrong, where, and how to mend it, in one sentence.

    The command line prints the message and exits with 1.
    """
