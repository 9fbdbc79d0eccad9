"""A command line of one of s3prl's runners, taken apart and put together again without judging it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """Which options a runner knows; abbreviations and joined short options work as they do there."""

    prog: str
    """How the command is started, for argparse's own messages."""
    values: dict[str, str]
    """Options with a value: long name (without dashes, underscores inside) -> short ones such as ``-c``, or nothing."""
    flags: dict[str, str]
    """The same for options without a value."""

    def parse(self, argv: Sequence[str]) -> Options:
        """Split ``argv``; what is not known here is kept for the runner to judge."""
        parser = argparse.ArgumentParser(prog=self.prog, add_help=False, argument_default=argparse.SUPPRESS)
        for name, short in self.values.items():
            parser.add_argument(*short.split(), f"--{name}", dest=name)
        for name, short in self.flags.items():
            parser.add_argument(*short.split(), f"--{name}", dest=name, action="store_true")
        known, rest = parser.parse_known_args(list(argv))
        return Options(given=vars(known), rest=rest)


@dataclass(kw_only=True)
class Options:
    """The options that were given; change ``given`` and call :meth:`argv`."""

    given: dict[str, Any]
    """Long name -> value, or True for a flag."""
    rest: list[str] = field(default_factory=list)
    """Words that belong to no known option."""

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def get(self, name: str) -> str | None:
        """The value of an option, None where it is not given."""
        return self.given.get(name)

    def overrides(self, name: str) -> bool:
        """Whether ``-o`` sets ``args.<name>``, so that the option's own value does not count."""
        return f"args.{name}" in (self.get("override") or "")

    def argv(self) -> list[str]:
        """The command line again."""
        words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in self.given.items()]
        return words + self.rest
