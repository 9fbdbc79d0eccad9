"""What is done to good input: flipped bits, cut files, values that no setting can have."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 2, 7, 255, 2**31 - 1, 2**32, 2**63, 10**9, 10**30, -(10**12), 0.5, -0.0, 1e-310, 1e308,
    float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, False, "", " ", "auto", "1e-3", "0x10", "nan", "²", "../..", "/dev/null", "/dev/zero", "~",
    "a\0b", "\ud800", "\x1b[31m", "x" * 5000, "line\nline", "2024-13-45", "{}", [], {}, [[]], [None], [-1], {"": None},
    {"a": {"b": []}}, [1] * 300,
)  # fmt: skip


class Change:
    """Makes changes and notes which.

    Args:
        rng: what is drawn from.
        harmless: change nothing, so that a kind can show that its good input works.

    Attributes:
        notes: what was done, for reports.
    """

    def __init__(self, rng: random.Random, *, harmless: bool = False) -> None:
        self.rng = rng
        self.harmless = harmless
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Add to the notes."""
        self.notes.append(text[:200])

    def data(self, data: bytes, *, header: int = 128) -> bytes:
        """Bytes with one kind of damage, often within the first ``header`` of them."""
        if self.harmless:
            return data
        changes = (_flip, _flip_header(header), _field(header), _field(header), _cut, _zero, _insert, _repeat, _number)
        changed, what = self.rng.choice(changes)(data, self.rng)
        self.note(what)
        return changed

    def mapping(self, mapping: Any) -> Any:
        """A deep copy of plain values with one to three of them replaced, removed, renamed or added."""
        mapping = copy.deepcopy(mapping)
        if not self.harmless:
            for _ in range(self.rng.randint(1, 3)):
                self._one(mapping)
        return mapping

    def _one(self, mapping: Any) -> None:
        found = list(places(mapping))
        if not found:
            return
        path, holder, key = self.rng.choice(found)
        value = copy.deepcopy(self.rng.choice(VALUES))  # as a later change may reach into it
        action = self.rng.choice(
            ("replace", "replace", "replace", "scale", "scale", "entry", "remove", "rename", "add")
        )
        if action == "scale" and isinstance(holder[key], int | float):
            value = holder[key] * self.rng.choice((0.5, 2, 3, -1, 10, 1000, 10**6))
        self.note(f"{action} {path} {value!r}"[:120])
        if action == "entry" and isinstance(holder[key], list) and holder[key]:
            holder[key][self.rng.randrange(len(holder[key]))] = value
        elif action == "remove":
            del holder[key]
        elif action == "rename" and isinstance(holder, dict):
            holder[str(value)] = holder.pop(key)
        elif action == "add" and isinstance(holder, dict):
            holder[self.rng.choice(("extra", "²", "", "x" * 3000, "\x1b"))] = value
        else:
            holder[key] = value

    def text(self, text: str, fragments: tuple[str, ...]) -> str:
        """Text with one to three fragments put in, or parts taken out or said twice."""
        if self.harmless:
            return text
        for _ in range(self.rng.randint(1, 3)):
            at = self.rng.randint(0, len(text))
            if self.rng.random() < 0.3:
                at = text.rfind("\n", 0, at) + 1
            action = self.rng.choice(("insert", "insert", "insert", "cut", "double", "number"))
            self.note(f"{action} at {at}")
            if action == "insert":
                fragment = self.rng.choice(fragments)
                self.note(repr(fragment)[:80])
                text = text[:at] + fragment + text[at:]
            elif action == "cut":
                text = text[:at] + text[at + self.rng.randint(1, 40) :]
            elif action == "double":
                text = text[:at] + text[max(0, at - 40) : at] + text[at:]
            else:
                text = _number(text.encode("utf-8", "surrogatepass"), self.rng)[0].decode("utf-8", "ignore")
        return text


def places(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, holder and key of everything in nested plain values."""
    keys = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in keys:
        yield f"{path}.{key}", value, key
        yield from places(item, f"{path}.{key}")


Damage = Callable[[bytes, random.Random], tuple[bytes, str]]


def _flip_within(data: bytes, rng: random.Random, end: int) -> tuple[bytes, str]:
    changed, bits = bytearray(data), []
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if end else 0):
        place, bit = rng.randrange(end), rng.randrange(8)
        changed[place] ^= 1 << bit
        bits.append(f"{place}.{bit}")
    return bytes(changed), f"bits {', '.join(bits)} flipped"


def _flip(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    return _flip_within(data, rng, len(data))


def _flip_header(size: int) -> Damage:
    return lambda data, rng: _flip_within(data, rng, min(size, len(data)))


def _field(size: int) -> Damage:
    """A number of two or four bytes in the first ``size``, such as a sampling rate, becomes another one."""

    def change(data: bytes, rng: random.Random) -> tuple[bytes, str]:
        width, order = rng.choice((2, 4)), rng.choice(("little", "little", "big"))
        start = rng.randrange(max(1, min(size, len(data) - width) // 2)) * 2
        value = int.from_bytes(data[start : start + width], order)
        new = rng.choice((value + 1, value - 1, 2 * value, value // 2, 3 * value, 0, 1, -1, 1 << (8 * width - 1)))
        field = (new % (1 << (8 * width))).to_bytes(width, order)
        return data[:start] + field + data[start + width :], f"{width} bytes at {start} made {new} ({order})"

    return change


def _cut(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    size = rng.choice((0, 1, rng.randint(0, len(data)), max(0, len(data) - rng.randint(1, 64))))
    return data[:size], f"cut to {size} of {len(data)} bytes"


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((1, 4, 64, 4096)))


def _zero(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    start, end = _span(data, rng)
    return data[:start] + bytes(end - start) + data[end:], f"bytes {start} to {end} zeroed"


def _insert(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    place, count = rng.randint(0, len(data)), rng.choice((1, 3, 100))
    return data[:place] + rng.randbytes(count) + data[place:], f"{count} bytes put in at {place}"


def _repeat(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] + data[end:], f"bytes {start} to {end} said twice"


def _number(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A number written in digits (of JSON, CSV, YAML) becomes another one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 1 << 16]))
    if not found:
        return _flip(data, rng)
    match, new = rng.choice(found), str(rng.choice(NUMBERS))
    return data[: match.start()] + new.encode() + data[match.end() :], f"number at {match.start()} made {new}"
