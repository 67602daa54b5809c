"""The one exception that the command line shows to its user as a single line."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can put right: a file, an option, a folder.

    ``tlazy`` prints its message as one line on stderr and ends with exit code 2.
    """
