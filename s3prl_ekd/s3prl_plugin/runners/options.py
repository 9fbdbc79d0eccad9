"""A command line of one of s3prl's runners: taken apart, checked as far as words go, and put together again."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from s3prl_ekd.command_line import OneLineParser, check_integer, unknown_word
from s3prl_ekd.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """Which options a runner knows; abbreviations and joined short options work as they do there."""

    prog: str
    """How the command is started, for messages."""
    values: dict[str, str]
    """Options with a value: long name (without dashes, underscores inside) -> short ones such as ``-c``, or nothing."""
    flags: dict[str, str]
    """The same for options without a value."""
    own: dict[str, str] = field(default_factory=dict)
    """The wrapper's own flags, which s3prl does not know -> one line of help."""
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Option -> all values that it can have."""
    integers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Option that is a whole number -> smallest and largest value."""

    def parse(self, argv: Sequence[str]) -> Options:
        """Split ``argv``; what is not known here is kept.

        Raises:
            UserError: a value is missing, or an abbreviation stands for several options.
        """
        parser = OneLineParser(prog=self.prog, add_help=False, argument_default=SUPPRESS)
        for name, short in self.values.items():
            parser.add_argument(*short.split(), f"--{name}", dest=name)
        for name, short in self.flags.items():
            parser.add_argument(*short.split(), f"--{name}", dest=name, action="store_true")
        for name in self.own:
            parser.add_argument(_own(name), dest=name, action="store_true")
        known, rest = parser.parse_known_args(list(argv))
        return Options(given=vars(known), rest=rest, own=frozenset(self.own))

    def check(self, options: Options) -> None:
        """Refuse what s3prl would answer with a page of usage, after seconds of imports.

        Raises:
            UserError: an unknown option or a value that an option cannot have.
        """
        if options.rest:
            known = [f"--{name}" for name in (*self.values, *self.flags)] + [_own(name) for name in self.own]
            raise UserError(unknown_word(options.rest[0], known))
        for name, valid in self.choices.items():
            if name in options and options.get(name) not in valid:
                value = options.get(name)
                raise UserError(f"{self.spelling(name)} {value}: unknown value; {nearest(value, valid)}")
        for name, bounds in self.integers.items():
            if name in options:
                check_integer(f"{self.spelling(name)} {options.get(name)}", options.get(name), *bounds)

    def spelling(self, name: str) -> str:
        """How a user writes an option."""
        short = (self.values | self.flags).get(name, "").split()
        return short[0] if short and len(short[0]) == 2 else f"--{name}"


def _own(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(kw_only=True)
class Options:
    """The options that were given; change ``given`` and call :meth:`argv`."""

    given: dict[str, Any]
    """Long name -> value, or True for a flag."""
    rest: list[str] = field(default_factory=list)
    """Words that belong to no known option."""
    own: frozenset[str] = frozenset()
    """Options that are not the runner's."""

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def get(self, name: str) -> str | None:
        """The value of an option, None where it is not given."""
        return self.given.get(name)

    def overrides(self, name: str) -> bool:
        """Whether ``-o`` sets ``args.<name>``, so that the option's own value does not count."""
        parts = (self.get("override") or "").split(",,")
        return any(part.partition("=")[0].strip() == f"args.{name}" for part in parts)

    def argv(self) -> list[str]:
        """The runner's command line again."""
        given = {name: value for name, value in self.given.items() if name not in self.own}
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()] + self.rest
