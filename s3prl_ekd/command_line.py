"""argparse as every command here uses it: words in any order, mistakes as one line, defaults in the help."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from s3prl_ekd.errors import UserError, nearest

SEEDS = (0, 2**32 - 1)
"""Smallest and largest seed that numpy takes."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are a :class:`~s3prl_ekd.errors.UserError` of one line instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; {self.prog} --help shows how")


class Parser(OneLineParser):
    """A parser whose positional words may stand before, between and after options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help, **kwargs})
        self._inner = False

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            self.error(f"{name}: unknown value {value!r}; {nearest(str(value), action.choices)}")

    def parse_known_args(  # type: ignore[override] # typeshed has an overload for each kind of namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As the base class, but intermixed, and strict about unknown options (commands below it judge their own)."""
        if self._inner or any(action.nargs == argparse.PARSER for action in self._actions):
            return super().parse_known_args(args, namespace)
        self._inner = True  # parse_known_intermixed_args calls this method
        try:
            known, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inner = False
        if unknown:
            self.error(unknown_word(unknown[0], self._option_string_actions))
        return known, []


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows examples as written, and the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        nothing = action.default in (None, "", [], argparse.SUPPRESS) or isinstance(action.default, bool)
        return text if nothing or "default" in text else f"{text} (default: %(default)s)"


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A ``type`` for an argument, which is checked while the command line is read."""

    def convert(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {least} to {most}")

    return convert


def unknown_word(word: str, options: Iterable[str]) -> str:
    """What to say of a word on the command line that nothing takes."""
    if not word.startswith("-"):
        return f"{word!r} is one word too many"
    name = word.partition("=")[0]
    return f"no option {name}; {nearest(name, (option for option in options if option.startswith('--')))}"
