"""Settings as frozen dataclasses: what a field's type may say of its values, and one way to and from YAML.

A field is documented under its line. Its type says which values it may have (:class:`Range`, :class:`OneOf`); unknown
keys, wrong types and other values are refused by name. Checks across fields live in ``__post_init__``, which first
calls that of :class:`Config`. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import math
import operator
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml


class Rule(Protocol):
    """What a field's type may say of its values, as in ``Annotated[int, Range(at_least=1)]``."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with ``value``, or None."""


_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "at_least": operator.ge,
    "more_than": operator.gt,
    "at_most": operator.le,
    "less_than": operator.lt,
}


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that make sense; ``hint`` says what to do instead of others."""

    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None
    hint: str = ""

    def problem(self, value: float) -> str | None:
        for name, holds in _RELATIONS.items():
            bound = getattr(self, name)
            if bound is not None and not holds(value, bound):
                hint = f"; {self.hint}" if self.hint else ""
                return f"expected {name.replace('_', ' ')} {bound}, found {_show(value)}{hint}"
        return None


class OneOf:
    """The names that there are."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def problem(self, value: str) -> str | None:
        return None if value in self.names else f"unknown value {_show(value)}; {nearest(value, self.names)}"


class _NotEmpty:
    def problem(self, value: str) -> str | None:
        return None if value.strip() else "expected a name, found nothing"


# The upper bounds are far beyond what anybody means, and below what takes the machine's memory or overflows.
Count = Annotated[int, Range(at_least=1, at_most=10**12)]
Size = Annotated[int, Range(at_least=1, at_most=16_384)]
Depth = Annotated[int, Range(at_least=1, at_most=1000)]
Probability = Annotated[float, Range(at_least=0, at_most=1)]
Dropout = Annotated[float, Range(at_least=0, less_than=1)]
Weight = Annotated[float, Range(more_than=0, at_most=1e6)]
Decibels = Annotated[float, Range(at_least=-200, at_most=200)]
Workers = Annotated[int, Range(at_least=0, at_most=4096)]
Seconds = Annotated[float, Range(more_than=0, at_most=1e6)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Name = Annotated[str, _NotEmpty()]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A frozen configuration that is built from, and turned back into, plain YAML values."""

    def __post_init__(self) -> None:
        for key, hint in _hints(type(self)).items():
            _convert(getattr(self, key), hint, key)

    @classmethod
    def from_mapping(cls, mapping: Any, where: str = "") -> Self:
        """Build from plain values.

        Args:
            mapping: the YAML value.
            where: its place in the file, for messages, such as ``teachers[0]``.

        Raises:
            UserError: an unknown key (named, with the nearest valid one), a missing key, a value of a wrong type or
                one that cannot be.
        """
        if not isinstance(mapping, Mapping):
            raise UserError(f"{where or cls.__name__}: expected a mapping of keys, found {_kind(mapping)}")
        hints = _hints(cls)
        for key in mapping:
            if key not in hints:
                raise UserError(f"unknown key {_show(_join(where, key))}; {nearest(str(key), hints)}")
        for item in dataclasses.fields(cls):
            required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            if required and item.name not in mapping:
                raise UserError(f"missing key {_join(where, item.name)!r}")
        return cls(**{key: _convert(value, hints[key], _join(where, key)) for key, value in mapping.items()})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file; messages start with its name."""
        mapping = read_yaml(path)
        try:
            return cls.from_mapping(mapping)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def to_mapping(self) -> dict[str, Any]:
        """The same as plain dicts, lists, strings and numbers: ``from_mapping(c.to_mapping()) == c``."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def _show(value: Any) -> str:
    """``repr`` of bounded length, whatever the value."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of very many digits"  # which Python refuses to print from some thousands on
    return _repr.repr(value)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {_show(value)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_mapping()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def _convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the type ``hint`` asks for, or a UserError naming ``where``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, *rules = arguments
        value = _convert(value, kind, where)
        for problem in (rule.problem(value) for rule in rules):
            require(problem is None, f"{where}: {problem}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, found {_kind(value)}")
        if arguments[-1] is not ... and len(value) != len(arguments):
            raise UserError(f"{where}: expected {len(arguments)} values, found {len(value)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_convert(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds, strict=True)))
    if issubclass(hint, Config):
        return value if isinstance(value, hint) else hint.from_mapping(value, where)
    if issubclass(hint, enum.StrEnum):
        try:
            return hint(value)
        except ValueError:
            raise UserError(f"{where}: unknown value {_show(value)}; {nearest(str(value), list(hint))}") from None
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # YAML 1.1 reads 1e-6 (no dot) as a string
            value = float(value)
    if isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: expected a finite number, found {value}")
        if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise UserError(f"{where}: {_show(value)} holds a character that no file name and no text can have")
        return value
    raise UserError(f"{where}: expected {hint.__name__}, found {_kind(value)}")


def require(condition: bool, message: str) -> None:
    """Raise a UserError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)
