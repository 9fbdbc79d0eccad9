"""A score beside chance, from the answers and references that s3prl's runner writes.

Chance is what the best constant answer scores on the same test set: the most frequent class, or, for transcripts, one
and the same transcript for every utterance (the best of many, and the empty one).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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


def accuracy(answers: Sequence[str], references: Sequence[str]) -> Outcome:
    """Percent of equal labels; chance is the share of the most frequent one. Standard errors are the binomial's."""
    count = len(references)
    correct = sum(answer == reference for answer, reference in zip(answers, references, strict=True))
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
    )


def error_rate(answers: Sequence[str], references: Sequence[str]) -> Outcome:
    """Edits per reference token, in percent; chance is the best constant transcript's."""
    tokens = [reference.split() for reference in references]
    value, value_error = _rate([answer.split() for answer in answers], tokens)
    by_length = sorted(tokens, key=lambda words: (len(words), words))
    every = max(1, len(by_length) // MAX_CONSTANTS)
    constants = [[], *by_length[::every]]
    chance, chance_error = min(_rate([constant] * len(tokens), tokens) for constant in constants)
    return Outcome(
        value=value,
        value_error=value_error,
        chance=chance,
        chance_error=chance_error,
        utterances=len(references),
    )


def _rate(answers: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> tuple[float, float]:
    """The error rate in percent and its standard error, a ratio estimate over utterances."""
    import editdistance

    edits = [editdistance.eval(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    total = sum(map(len, references))
    rate = sum(edits) / total
    deviations = [count - rate * len(reference) for count, reference in zip(edits, references, strict=True)]
    return 100 * rate, 100 * math.sqrt(sum(deviation**2 for deviation in deviations)) / total
