"""Changes that a user asks for, to the packaged configurations."""

from __future__ import annotations

import pytest

from s3prl_ekd.errors import UserError
from s3prl_ekd.superb.evaluation import set_option, with_steps
from s3prl_ekd.tasks import TASKS


def test_options_change_only_what_is_there():
    config = TASKS["sid"].template("mini")
    assert set_option(config, "optimizer.lr", "1e-3")["optimizer"]["lr"] == 1e-3
    assert config["optimizer"]["lr"] != 1e-3
    for key, value, message in (
        ("optimizer.learning_rate", 1.0, "no key 'optimizer.learning_rate'"),
        ("optimiser.lr", 1.0, "did you mean 'optimizer'"),
        ("optimizer.lr", "fast", "expected float"),
        ("runner.total_steps", 1.5, "expected int"),
    ):
        with pytest.raises(UserError, match=message):
            set_option(config, key, value)


def test_few_steps_still_save_and_evaluate():
    assert {with_steps(TASKS["asr"].template("real"), 7)["runner"][key] for key in ("eval_step", "save_step")} == {7}
