"""The one exception for mistakes that the user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong and what to do.

    The command-line programs print it without a traceback and exit with code 2.
    """
