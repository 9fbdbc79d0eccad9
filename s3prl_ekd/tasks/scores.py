"""A score beside chance, from the answers and references that s3prl's runner writes.

Chance is what the best constant answer scores on the same test set: the most frequent class, or, for transcripts, one
and the same transcript for every utterance (the best of many, and the empty one).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_CONSTANTS = 60
"""How many reference transcripts are tried as the constant answer."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A score in percent with what is needed to judge it."""

    value: float
    """The score."""
    value_error: float
    """Standard error of ``value`` over utterances."""
    chance: float
    """The best constant answer's score."""
    chance_error: float
    """Standard error of ``chance`` over utterances."""
    utterances: int
    """Size of the test set."""
    errors: tuple[int, ...] = field(repr=False)
    """Per utterance: edits, or 1 for a wrong label and 0 for the right one."""
    lengths: tuple[int, ...] = field(repr=False)
    """Per utterance: the tokens of its reference; a label is one. The error rate is the sum of ``errors`` over that of
    ``lengths``."""
    names: tuple[str, ...] = field(default=(), repr=False)
    """Of the utterances, where they are known."""


def accuracy(answers: Sequence[str], references: Sequence[str]) -> Outcome:
    """Percent of equal labels; chance is the share of the most frequent one. Standard errors are the binomial's."""
    count = len(references)
    errors = tuple(int(answer != reference) for answer, reference in zip(answers, references, strict=True))
    correct = count - sum(errors)
    most = Counter(references).most_common(1)[0][1]

    def error(hits: int) -> float:
        share = hits / count
        return 100 * math.sqrt(share * (1 - share) / count)

    return Outcome(
        value=100 * correct / count,
        value_error=error(correct),
        chance=100 * (most / count),
        chance_error=error(most),
        utterances=count,
        errors=errors,
        lengths=(1,) * count,
    )


def error_rate(answers: Sequence[str], references: Sequence[str]) -> Outcome:
    """Edits per reference token, in percent; chance is the best constant transcript's."""
    tokens = [reference.split() for reference in references]
    edits = _edits([answer.split() for answer in answers], tokens)
    value, value_error = _rate(edits, tokens)
    by_length = sorted(tokens, key=lambda words: (len(words), words))
    every = max(1, len(by_length) // MAX_CONSTANTS)
    constants = [[], *by_length[::every]]
    chance, chance_error = min(_rate(_edits([constant] * len(tokens), tokens), tokens) for constant in constants)
    return Outcome(
        value=value,
        value_error=value_error,
        chance=chance,
        chance_error=chance_error,
        utterances=len(references),
        errors=tuple(edits),
        lengths=tuple(map(len, tokens)),
    )


def _edits(answers: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[int]:
    import editdistance

    return [editdistance.eval(answer, reference) for answer, reference in zip(answers, references, strict=True)]


def _rate(edits: Sequence[int], references: Sequence[Sequence[str]]) -> tuple[float, float]:
    """The error rate in percent and its standard error, a ratio estimate over utterances."""
    total = sum(map(len, references))
    rate = sum(edits) / total
    deviations = [count - rate * len(reference) for count, reference in zip(edits, references, strict=True)]
    return 100 * rate, 100 * math.sqrt(sum(deviation**2 for deviation in deviations)) / total
