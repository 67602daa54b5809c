"""The one exception that the command line shows to its user as a single line, and its wording."""

from __future__ import annotations

MOST_LINE = 1000
MOST_QUOTED = 60


class UserError(ValueError):
    """Something that the user can put right: a file, an option, a folder.

    ``tlazy`` prints its message as one line on stderr and ends with exit code 2. Whatever data is
    quoted in it, the message is one line of at most `MOST_LINE` characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: object, most: int = MOST_LINE) -> str:
    r"""`text` without line breaks, unprintable characters and what exceeds `most` characters.

    >>> one_line("two\n  lines"), one_line("0123456789", 5)
    ('two lines', '01…89')
    """
    line = shortened(" ".join(str(text).split()), most)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def quoted(text: str) -> str:
    """`text` in quotes, as data of any length is shown in a message.

    >>> quoted("left")
    "'left'"
    """
    return repr(shortened(text, MOST_QUOTED))


def counted(count: int, noun: str) -> str:
    """A number with its noun, which takes an s where there is not just one.

    >>> counted(1, "channel"), counted(2, "thread")
    ('1 channel', '2 threads')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def reason(error: BaseException) -> str:
    """What an exception says, or its name where it says nothing.

    >>> reason(ValueError("no zip")), reason(EOFError())
    ('no zip', 'EOFError')
    """
    return one_line(error) or type(error).__name__


def shortened(text: str, most: int) -> str:
    """`text` with its middle left out where it has more than `most` characters."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"
