"""The score of one evaluation: what s3prl's runner printed, checked against the answers it wrote, beside chance.

Chance is what the best constant answer scores on the same test set: the most frequent class of SID and ER, or, for PR
and ASR, one and the same transcript for every utterance (the best of many, and the empty one).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from s3prl_ekd.errors import UserError

MAX_CONSTANTS = 60
"""How many reference transcripts are tried as the constant answer of PR and ASR."""
TOLERANCE = 0.01
"""Percent by which the printed score may differ from the one computed anew from the answers."""
OFF_CHANCE_ERRORS = 3.0
"""A score is off chance when it is better by this many standard errors of chance."""


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


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a task is scored and where s3prl's runner leaves the score."""

    name: str
    """``PER``, ``accuracy`` or ``WER``, in percent."""
    higher_is_better: bool
    """Whether more is better."""
    downstream: str
    """The task's name for s3prl's ``-d``."""
    evaluate_split: str
    """What ``-t`` must be."""
    best: str
    """Name of the checkpoint that s3prl keeps of the best evaluation."""
    printed: str
    """What comes before the score in the runner's output."""
    scale: float
    """From the printed score to percent."""
    answers: tuple[str, str]
    """Files of hypotheses and of references in the experiment's folder (glob patterns)."""
    score: Callable[[Sequence[str], Sequence[str]], Outcome]
    """(answers, references) -> score, chance and their standard errors."""

    def off_chance(self, value: float, chance: float, chance_error: float) -> bool:
        """Whether ``value`` is better than chance by :data:`OFF_CHANCE_ERRORS` standard errors."""
        gain = value - chance if self.higher_is_better else chance - value
        return gain > OFF_CHANCE_ERRORS * chance_error


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


METRICS: dict[str, Metric] = {
    "pr": Metric(
        name="PER", higher_is_better=False, downstream="ctc", evaluate_split="test", best="dev-best.ckpt",
        printed="test per", scale=100, answers=("test-hyp.ark", "test-ref.ark"), score=error_rate,
    ),
    "sid": Metric(
        name="accuracy", higher_is_better=True, downstream="voxceleb1", evaluate_split="test", best="dev-best.ckpt",
        printed="test acc", scale=100, answers=("test_predict.txt", "test_truth.txt"), score=accuracy,
    ),
    "er": Metric(
        name="accuracy", higher_is_better=True, downstream="emotion", evaluate_split="test", best="dev-best.ckpt",
        printed="test acc", scale=100, answers=("test_fold*_predict.txt", "test_fold*_truth.txt"), score=accuracy,
    ),
    "asr": Metric(
        name="WER", higher_is_better=False, downstream="asr", evaluate_split="test-clean", best="dev-clean-best.ckpt",
        printed="test-clean wer", scale=1, answers=("test-clean-*-hyp.ark", "test-clean-*-ref.ark"), score=error_rate,
    ),
}  # fmt: skip
"""The four tasks by their names on the command line, in the order of tables."""


def read_outcome(metric: Metric, folder: Path, output: str) -> Outcome:
    """The score of an evaluation that left its answers in ``folder`` and printed ``output``.

    Raises:
        UserError: no score was printed, or it is not that of the answers.
    """
    printed = re.findall(rf"^{re.escape(metric.printed)}: (\S+)$", output, flags=re.MULTILINE)
    if not printed:
        raise UserError(f"{folder}: s3prl's runner printed no '{metric.printed}'")
    answers, references = (_column(folder, pattern) for pattern in metric.answers)
    value = metric.scale * float(printed[-1])
    outcome = metric.score(answers, references)
    if not abs(value - outcome.value) <= TOLERANCE:
        raise UserError(f"{folder}: s3prl's runner printed {value:.3f} % but its answers score {outcome.value:.3f} %")
    return replace(outcome, value=value)


def _column(folder: Path, pattern: str) -> list[str]:
    """What follows the utterance's name on each line of the one file that fits ``pattern``."""
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        raise UserError(f"{folder}: expected one file {pattern}, found {len(paths)}")
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    return [line.partition(" ")[2].strip() for line in lines]
