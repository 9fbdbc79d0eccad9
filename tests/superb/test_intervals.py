"""Bootstrap intervals against formulas, and outcomes on disk."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers_results import row

from s3prl_ekd.errors import UserError
from s3prl_ekd.superb.intervals import Fold, draws, folds_of, interval
from s3prl_ekd.superb.outcomes import read_outcomes, write_outcomes
from s3prl_ekd.superb.tables import tables
from s3prl_ekd.tasks.scores import error_rate

NAMES = tuple(f"utterance{number}" for number in range(300))


def fold(errors, lengths=None) -> Fold:
    errors = np.array(errors, float)
    count = errors.shape[1]
    return Fold(names=NAMES[:count], errors=errors, lengths=np.ones(count) if lengths is None else np.array(lengths))


def test_one_seed_scatters_as_the_utterances_do():
    """Accuracies as the binomial, a difference as the paired one: the deviation of differences over sqrt(n)."""
    generator = np.random.default_rng(1)
    hard = generator.random(300)
    one, other = (hard + 0.2 * generator.standard_normal(300) > border for border in (0.6, 0.5))
    first, second = draws([[fold([one])], [fold([other])]], "sid", ["one", "other"])
    share = one.mean()
    assert first.mean() == pytest.approx(100 * (1 - share), abs=0.3)
    assert first.std() == pytest.approx(100 * math.sqrt(share * (1 - share) / 300), rel=0.06)
    paired = 100 * (one.astype(float) - other).std() / math.sqrt(300)
    assert (first - second).std() == pytest.approx(paired, rel=0.06)
    assert paired < 0.7 * math.hypot(first.std(), second.std())  # what the pairing gains
    low, high = interval(first)
    assert (high - low) / 2 == pytest.approx(1.96 * first.std(), rel=0.06)


def test_error_rates_scatter_as_their_ratio_estimate():
    generator = np.random.default_rng(2)
    references = [" ".join("ab"[n] for n in generator.integers(2, size=generator.integers(3, 12))) for _ in range(300)]
    answers = ["".join(c if generator.random() > 0.3 else "x" for c in reference) for reference in references]
    outcome = error_rate(answers, references)
    (drawn,) = draws([[fold([outcome.errors], [*map(float, outcome.lengths)])]], "pr", ["one"])
    assert drawn.mean() == pytest.approx(outcome.value, abs=0.2)
    assert drawn.std() == pytest.approx(outcome.value_error, rel=0.06)


def test_seeds_scatter_as_their_mean_does():
    """Where all utterances of a seed are alike: the sample's deviation over sqrt(n), though it is drawn from n alone;
    and the mean over folds scatters less than a fold."""
    seeds = np.array([0, 1, 1, 0, 1])
    (drawn,) = draws([[fold(np.tile(seeds[:, None], (1, 50)))]], "er", ["one"])
    assert drawn.std() == pytest.approx(100 * seeds.std(ddof=1) / math.sqrt(5), rel=0.06)
    assert drawn.mean() == pytest.approx(40, abs=1.5)
    halves = [[0, 1] * 50]
    other = Fold(names=NAMES[100:200], errors=np.array(halves, float), lengths=np.ones(100))
    (one,), (two,) = (draws([folds], "er", ["one"]) for folds in ([fold(halves)], [fold(halves), other]))
    assert two.std() == pytest.approx(one.std() / math.sqrt(2), rel=0.08)


def test_the_same_outcomes_differ_by_nothing():
    errors = [np.random.default_rng(3).integers(2, size=300)]
    first, second = draws([[fold(errors)], [fold(errors)]], "ks", ["one", "other"])
    assert interval(first - second) == (0, 0)
    assert (first == draws([[fold(errors)]], "ks", ["one"])[0]).all()  # and are drawn the same every time


@pytest.mark.parametrize(("wrong", "verdict"), [(5, "better"), (29, ""), (55, "worse")])
@pytest.mark.parametrize("task", ["er", "pr"])
def test_better_is_what_the_interval_says(tmp_path, task, wrong, verdict):
    def judged(label: str, count: int):
        path = tmp_path / f"{label}.csv"
        write_outcomes(path, NAMES[:60], [int(number < count) for number in range(60)], [1] * 60)
        value = 100 * count / 60 if task == "pr" else 100 - 100 * count / 60
        return row(task=task, label=label, value=value, outcomes=(str(path),))

    (table,) = tables([judged("base", 30), judged("mine", wrong)], baseline="base")
    base, mine = table.columns[0].cells
    assert base.difference is None
    assert mine.difference.verdict == verdict
    assert mine.interval[0] < mine.mean < mine.interval[1]
    assert mine.text.partition("]")[2] == {"better": " ▲", "worse": " ▼", "": ""}[verdict]
    assert mine.difference.low < mine.difference.value < mine.difference.high


def test_what_has_no_interval_is_said(tmp_path):
    write_outcomes(tmp_path / "a.csv", ["x", "y"], [1, 0], [1, 1])
    write_outcomes(tmp_path / "b.csv", ["x", "z"], [1, 0], [1, 1])
    a, b = ((str(tmp_path / f"{name}.csv"),) for name in "ab")
    with pytest.raises(UserError, match="fbank, ER test: no interval, since its results were made by an"):
        tables([row(outcomes=a), row(seed=2)], intervals=True)
    with pytest.raises(UserError, match="its seeds were judged on different utterances"):
        tables([row(outcomes=a), row(seed=2, outcomes=b)], intervals=True)
    with pytest.raises(UserError, match="mine and fbank were judged on different utterances"):
        tables([row(outcomes=a), row(label="mine", outcomes=b)], intervals=True)
    with pytest.raises(UserError, match="--baseline mine: no result has this label; valid: fbank"):
        tables([row(outcomes=a)], baseline="mine")
    with pytest.raises(UserError, match="2 lines of a table are called so"):
        tables([row(outcomes=a), row(steps=9, outcomes=a)], baseline="fbank")


def test_outcomes_are_read_as_written(tmp_path):
    path = tmp_path / "outcomes.csv"
    write_outcomes(path, ["a", "b, c", "a"], [2, 0, 1], [5, 0, 3])
    assert read_outcomes(path) == {"a": (2, 5), "b, c": (0, 0), "a#2": (1, 3)}
    assert [f.errors.tolist() for f in folds_of([row(outcomes=(str(path),))])] == [[[2, 1, 0]]]
    for content in ("", "utterance,errors\n", "utterance,errors,length\n", "utterance,errors,length\na,b,1\n", "\0"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"is not the outcomes\.csv"):
            read_outcomes(path)
