"""Scores and chance, against numbers computed by hand; and the printed score against the answers."""

from __future__ import annotations

import pytest

from s3prl_ekd.errors import UserError
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.scores import accuracy, error_rate


def test_error_rate_and_its_chance():
    scored = error_rate(["A B", "", "C D E"], ["A C", "A", "C D"])
    assert scored.value == pytest.approx(100 * (1 + 1 + 1) / 5)
    assert scored.value_error == pytest.approx(100 * (0.2**2 + 0.4**2 + 0.2**2) ** 0.5 / 5)  # edits - 0.6 * tokens
    assert scored.chance == pytest.approx(100 * 3 / 5)  # always "A C": right, one too many, both... three edits
    assert scored.chance_error > 0
    perfect = error_rate(["A"] * 9, ["A"] * 9)
    assert (perfect.value, perfect.value_error, perfect.chance, perfect.utterances) == (0, 0, 0, 9)


def test_accuracy_and_its_chance():
    scored = accuracy(list("abbb"), list("aaba"))
    assert (scored.value, scored.chance, scored.utterances) == (50, 75, 4)
    assert scored.value_error == pytest.approx(100 * (0.5 * 0.5 / 4) ** 0.5)
    assert scored.chance_error == pytest.approx(100 * (0.75 * 0.25 / 4) ** 0.5)
    assert not TASKS["sid"].off_chance(80, 75, 5)
    assert TASKS["sid"].off_chance(91, 75, 5)
    assert TASKS["pr"].off_chance(50, 80, 5)
    assert not TASKS["pr"].off_chance(95, 80, 5)


def test_printed_score_must_be_that_of_the_answers(tmp_path):
    (tmp_path / "test-hyp.ark").write_text("one A B\ntwo \n")
    (tmp_path / "test-ref.ark").write_text("one A C\ntwo D D\n")
    assert TASKS["pr"].outcome(tmp_path, "noise\ntest per: 0.75\n").value == 75
    for output, message in (("test per: 0.5\n", "answers score 75.000"), ("dev per: 0.75\n", "printed no 'test per'")):
        with pytest.raises(UserError, match=message):
            TASKS["pr"].outcome(tmp_path, output)
