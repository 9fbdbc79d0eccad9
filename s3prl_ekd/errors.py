"""What goes wrong because of the input, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: its message is one line that says what is wrong and what to do.

    Entry points print it without a traceback and exit with :data:`EXIT_USER_ERROR`.
    """


EXIT_USER_ERROR = 2


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as ``did you mean 'layers'? valid: layers, name`` for an unknown ``name``."""
    choices = sorted(str(item) for item in valid)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(choices)}"
