"""What goes wrong because of the input, said in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_MESSAGE = 1000
"""Characters; what is longer loses its middle, since the ends say where and what to do."""


def shorten(text: str, most: int = 80) -> str:
    """``text``, its middle left out where it is longer than ``most`` characters."""
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def printable_line(text: str) -> str:
    """``text`` as one line for a terminal: unprintable characters escaped, no longer than :data:`LONGEST_MESSAGE`."""
    text = shorten(text, LONGEST_MESSAGE)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
    return shorten(text, LONGEST_MESSAGE)


def one_line(error: BaseException | str, most: int | None = None) -> str:
    """What an error says, as one line: without line breaks and without runs of spaces.

    Args:
        error: an exception, whose class is named where it says nothing itself, or a text.
        most: the longest that the line may be, in characters (default: any length); then its middle is left out.
    """
    text = " ".join(f"{'no entry ' if isinstance(error, KeyError) else ''}{error}".split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text if most is None else shorten(text, most)


def without_traceback(message: str) -> str:
    """What an error said that torch's DataLoader makes again of a worker's whole traceback."""
    if not message.startswith("Caught ") or "Traceback (most recent call last):\n" not in message:
        return message
    return re.sub(r"^(\w+\.)*\w*Error: ", "", message.strip().splitlines()[-1])


class UserError(Exception):
    """Bad input: its message is one line that says what is wrong and what to do.

    Commands print it without a traceback and exit with status 2 (:func:`s3prl_ekd.processes.run_command`). Whatever
    input the message quotes, it stays one printable line of bounded length.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable_line(without_traceback(message)))


EXIT_USER_ERROR = 2


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as ``did you mean 'layers'? valid: layers, name`` for an unknown ``name``."""
    choices = sorted(str(item) for item in valid)
    close = difflib.get_close_matches(str(name)[:100], choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {shorten(', '.join(choices), 350)}"
