"""Settings as frozen dataclasses: how they are read from YAML and written, changed by dotted names and compared.

A field is documented under its line. Its type says which values it may have (:class:`Range`, :class:`OneOf`); unknown
keys, wrong types and other values are refused by name. Checks across fields live in ``__post_init__``, which first
calls that of :class:`Config`. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import itertools
import math
import operator
import re
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, Self

from s3prl_ekd.errors import UserError, nearest, shorten
from s3prl_ekd.files import parse_yaml, read_yaml


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
    """The numbers that are allowed; ``hint`` says what to give instead of another."""

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
    """The names that are allowed."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def problem(self, value: str) -> str | None:
        return None if value in self.names else f"unknown value {_show(value)}; {nearest(value, self.names)}"


class _NotEmpty:
    def problem(self, value: str) -> str | None:
        return None if value.strip() else "expected a name, found nothing"


# The upper bounds are far above what anybody needs, and below what overflows or fills the machine's memory.
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
            _convert(getattr(self, _FIELDS.get(key, key)), hint, key)

    @classmethod
    def from_mapping(cls, mapping: Any, where: str = "") -> Self:
        """Build from plain values; ``where`` they are in the file, for messages: ``teachers[0]``.

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
            if required and _key(item.name) not in mapping:
                raise UserError(f"missing key {_join(where, _key(item.name))!r}")
        values = {key: _convert(value, hints[key], _join(where, key)) for key, value in mapping.items()}
        return cls(**{_FIELDS.get(key, key): value for key, value in values.items()})

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a YAML file, and change it by :func:`apply_override`; messages start with its name."""
        mapping = read_yaml(path)
        try:
            for override in overrides:
                apply_override(mapping, override)
            return cls.from_mapping(mapping)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_saved(cls, mapping: Any, where: str) -> Self:
        """Build from what :meth:`to_mapping` gave, perhaps in an older version, when newer settings had their defaults.

        Raises:
            UserError: a setting that this version does not know, or a value that it does not allow; ``where`` it is.
        """
        try:
            return cls.from_mapping(mapping)
        except UserError as error:
            raise UserError(f"{where}: {error}; another version of this package wrote it, use that one") from error

    def to_mapping(self) -> dict[str, Any]:
        """The same as plain dicts, lists, strings and numbers: ``from_mapping(c.to_mapping()) == c``."""
        return {_key(item.name): _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


_FIELDS = {"from": "from_"}
"""Keys that no field can be called, since they are words of Python, and what their fields are called."""


def _key(field: str) -> str:
    return field.removesuffix("_")


def _types_of_keys(cls: type) -> dict[str, Any]:
    return {_key(name): hint for name, hint in typing.get_type_hints(cls, include_extras=True).items()}


_hints: Callable[[type], dict[str, Any]] = functools.cache(_types_of_keys)


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
        kinds = [kind for kind in arguments if kind is not type(None)]
        return _convert(value, next((kind for kind in kinds if _is_of_sort(value, kind)), kinds[0]), where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, found {_kind(value)}")
        if arguments[-1] is not ... and len(value) != len(arguments):
            raise UserError(f"{where}: expected {len(arguments)} values, found {len(value)}")
        types_of_items = itertools.repeat(arguments[0], len(value)) if arguments[-1] is ... else arguments
        pairs = zip(value, types_of_items, strict=True)
        return tuple(_convert(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(pairs))
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


def _is_of_sort(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the sort that ``hint`` describes, for a choice between several."""
    if typing.get_origin(hint) is Annotated:
        return _is_of_sort(value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list | tuple)
    if issubclass(hint, Config):
        return isinstance(value, Mapping | Config)
    return isinstance(value, hint)


def require(condition: bool, message: str) -> None:
    """Raise a UserError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


# ---- changing by dotted names


def apply_override(mapping: dict[str, Any], override: str) -> None:
    """Set ``key.path=value`` in nested YAML values, in place, as :func:`set_value` does; the value is YAML too.

    Raises:
        UserError: no ``=``, a path through something that has no keys, or a value that is not YAML.
    """
    path, equals, text = override.partition("=")
    if not equals or "" in path.split("."):
        raise UserError(f"{shorten(override)!r}: expected key.path=value, such as trainer.devices=4")
    try:
        value = parse_yaml(text)
    except UserError as error:
        raise UserError(f"{shorten(override)!r}: {error}") from error
    set_value(mapping, path, value)


def set_value(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set one of nested plain values, in place; mappings that it is to be in are made.

    Its name is dotted, such as ``trainer.devices``; entries of a list go by their number (``teachers.0.layers``).

    Raises:
        UserError: the name leads through something that has no keys, or to no entry of a list.
    """
    keys = name.split(".")
    place: Any = settings
    for depth, key in enumerate(keys, start=1):
        index = _index(place, key, ".".join(keys[:depth]))
        if depth == len(keys):
            place[index] = value
        elif isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[index]


def _index(place: Any, key: str, name: str) -> Any:
    """What to index ``place`` with for the last key of ``name``."""
    if isinstance(place, dict):
        return key
    if not isinstance(place, list):
        raise UserError(f"{shorten(name)}: {shorten(repr(place))} has no keys below it")
    if key not in map(str, range(len(place))):
        raise UserError(f"{shorten(name)}: expected an entry's number below {len(place)}, found {shorten(key)!r}")
    return int(key)


# ---- comparing


class Difference(NamedTuple):
    """A setting that is not the same in two mappings."""

    name: str
    """Dotted, such as ``trainer.devices`` or ``teachers[0].layers``."""
    before: Any
    now: Any


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def differences(before: Any, now: Any, free: Collection[str] = (), name: str = "") -> list[Difference]:
    """All settings that are not the same, in the order of ``before``.

    Args:
        before, now: a :class:`Config` or nested plain values.
        free: settings and sections that may differ, by dotted names without numbers: ``trainer.devices``, ``student``,
            ``teachers.weight``.
        name: of the section that the two are.
    """
    before, now = _plain(before), _plain(now)
    if before == now or re.sub(r"\[\d+\]", "", name) in free:
        return []
    pairs: Iterable[tuple[str, Any, Any]]
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        pairs = ((_join(name, key), before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in {**before, **now})
    elif _sections(before) and _sections(now) and len(before) == len(now):
        pairs = ((f"{name}[{index}]", *pair) for index, pair in enumerate(zip(before, now, strict=True)))
    else:
        return [Difference(name, before, now)]
    return [found for pair in pairs for found in differences(pair[1], pair[2], free, pair[0])]


def _sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def say_differences(
    found: Iterable[Difference], form: str = "{name}: {before!r} there, {now!r} here", separator: str = "; "
) -> str:
    """A list of them for a message; ``form`` is how one is said."""
    return separator.join(form.format(**one._asdict()) for one in found)
