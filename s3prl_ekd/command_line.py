"""argparse as every command here uses it: words in any order, mistakes as one line, defaults in the help."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml

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
        self, args: Sequence[str], namespace: Any = None
    ) -> Any:
        """As the base class, but intermixed, and strict about unknown options (commands below it judge their own)."""
        if self._inner or any(action.nargs == argparse.PARSER for action in self._actions):
            return super().parse_known_args(args, namespace)
        args = self._with_options_file([*args])
        self._inner = True  # parse_known_intermixed_args calls this method
        try:
            known, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inner = False
        if unknown:
            self.error(unknown_word(unknown[0], self._option_string_actions))
        return known, []

    def _with_options_file(self, args: list[str]) -> list[str]:
        """``args``, before them what stands in the file that an :class:`OptionsFile` among them names."""
        for option in (action for action in self._actions if isinstance(action, OptionsFile)):
            finder = OneLineParser(prog=self.prog, add_help=False)
            finder.add_argument(*option.option_strings, dest="file")
            if (file := finder.parse_known_args(args)[0].file) is not None:
                return [*_words_of(Path(file), self._actions, args), *args]
        return args


class OptionsFile(argparse.Action):
    """An option that names a YAML file whose keys are the command's other options, without the dashes before them.

    A list stands for a repeated option, or for what is separated by commas; a mapping for ``KEY=VALUE``; in a list of
    repeated options, a mapping that has the option's own key is that option and others that belong to it. The command
    line comes after the file: an option that is there replaces the one in the file.
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values)


class Repeated(argparse.Action):
    """The base of actions of options that may be there more than once."""


_REPEATED = (Repeated, argparse._AppendAction)


def _words_of(path: Path, actions: Iterable[argparse.Action], given: Sequence[str]) -> Iterator[str]:
    """The options in a YAML file as words of a command line, but those that are ``given`` there.

    Raises:
        UserError: the file is unreadable; there is no such option; a value cannot be said on a command line.
    """
    known = {
        word.removeprefix("--"): action
        for action in actions
        if not isinstance(action, OptionsFile | argparse._HelpAction)
        for word in action.option_strings
        if word.startswith("--") and not word.startswith("--no-")
    }

    def words(settings: Mapping[Any, Any]) -> Iterator[str]:
        for key, value in settings.items():
            if key not in known:
                raise UserError(f"{path}: unknown key {key!r}; {nearest(str(key), known)}")
            if not any(word.partition("=")[0] in known[key].option_strings for word in given) and value is not None:
                yield from option(key, known[key], value)

    def option(key: str, action: argparse.Action, value: Any) -> Iterator[str]:
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"{path}: {key}: expected true or false, found {value!r:.60}")
            yes, no = (["--" + key], [word for word in action.option_strings if word == f"--no-{key}"])
            yield from yes if value else no
        elif isinstance(value, Mapping):
            yield from (f"--{key}={name}={_word(item)}" for name, item in value.items())
        elif isinstance(value, list) and isinstance(action, _REPEATED):
            for item in value:
                yield from words(item) if isinstance(item, Mapping) and key in item else option(key, action, item)
        elif isinstance(value, list):
            yield f"--{key}={','.join(map(_word, value))}"
        else:
            yield f"--{key}={_word(value)}"

    return words(read_yaml(path))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
