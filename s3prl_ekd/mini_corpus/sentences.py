"""The sentences of the mini corpus: a few grammars over about a hundred words.

A sentence belongs to one of four pools by its own text, so that training, development, test and hidden sets never
share one.
"""

from __future__ import annotations

import hashlib
import random
from enum import Enum

_SLOTS: dict[str, str] = {
    "name": "jack laura martin emma roy susan george kate arthur john",
    "verb": "has wants found sold likes",
    "number": "two three four five six seven eight nine ten eleven twelve twenty thirty forty",
    "colour": "red blue green yellow brown orange purple silver",
    "things": "boxes toys chairs books birds fish sheep horses cats dogs boats shoes jackets",
    "thing": "box chair book bird horse cat dog mouse monkey boat jacket bridge",
    "place": "kitchen bedroom garage bathroom garden house river table window door",
    "preposition": "under behind near by",
    "device": "lights heater music television fan alarm oven",
    "switch": "turn switch",
    "state": "on off",
    "act": "open close wash show bring find",
    "day": "monday thursday sunday today",
    "time": "morning evening week",
}
_GRAMMARS: tuple[str, ...] = (
    "{switch} the {place} {device} {state}",
    "{switch} {state} the {device} near the {place}",
    "{name} {verb} {number} {colour} {things}",
    "{name} {verb} the {colour} {thing}",
    "the {colour} {thing} is {preposition} the {place}",
    "{act} the {colour} {thing} please",
    "{act} {number} {things} {preposition} the {place}",
    "call {name} this {day} {time}",
    "play {number} songs with {name}",
    "{number} {colour} {things} with {number} {things}",
)
_SHORT: tuple[str, ...] = (
    "{switch} the {device} {state}",
    "{name} {verb} {number} {things}",
    "{act} the {colour} {thing}",
    "{number} {colour} {things}",
    "call {name} this {time}",
    "the {thing} is {preposition} the {place}",
)
_WORDS = {slot: words.split() for slot, words in _SLOTS.items()}


class Pool(Enum):
    """Which sets a sentence may be used in, with the share of all sentences."""

    TRAIN = range(7)
    DEV = range(7, 8)
    TEST = range(8, 9)
    HIDDEN = range(9, 10)


def vocabulary() -> list[str]:
    """Every word of the grammars, sorted, in lower case."""
    words = {word for words in _WORDS.values() for word in words}
    for grammar in (*_GRAMMARS, *_SHORT):
        words |= {word for word in grammar.split() if not word.startswith("{")}
    return sorted(words)


def pool(sentence: str) -> Pool:
    """The pool of ``sentence``, which depends on its text alone."""
    share = hashlib.sha256(sentence.encode()).digest()[0] * 10 // 256
    return next(pool for pool in Pool if share in pool.value)


def draw(rng: random.Random, wanted: Pool, *, short: bool = False) -> str:
    """A random sentence of ``wanted``, in lower case without punctuation: 3-6 words, ``short`` ones 3-5."""
    while True:
        grammar = rng.choice(_SHORT if short else _GRAMMARS)
        words = [rng.choice(_WORDS[word[1:-1]]) if word.startswith("{") else word for word in grammar.split()]
        sentence = " ".join(words)
        if pool(sentence) is wanted:
            return sentence
