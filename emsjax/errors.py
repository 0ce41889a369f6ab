"""Errors that are the caller's to mend."""


class UserError(ValueError):
    """A user's mistake, told in one sentence that names the value and the remedy.

    The command line prints the sentence alone and exits with status 2.
    """
