"""Made-up results of s3prl-ekd superb."""

from __future__ import annotations

from typing import Any

from s3prl_ekd.superb.summary import Row
from s3prl_ekd.tasks import TASKS


def settings(**downstream: Any) -> dict[str, Any]:
    """Settings of an evaluation; keywords are what the downstream configuration has."""
    own = {"runner": {"total_steps": 3}, "optimizer": {"lr": 0.001}, **downstream}
    return {"fine_tune": False, "device": None, "data": {"fingerprint": "0" * 64}, "downstream": own}


def row(**changes: Any) -> Row:
    """ER of FBANK, with changes."""
    values = {"task": "er", "split": "public", "test_set": "test", "value": 60.0, "chance": 25.0, "chance_error": 2.0,
              "utterances": 10, "upstream": "fbank", "ckpt": None, "label": "fbank", "seed": 1, "steps": 3,
              "seconds": 1.0, "corpus": "mini", "checkpoint": "dev-best.ckpt", "value_error": 5.0, "weights": "",
              "settings": settings()}  # fmt: skip
    values |= changes
    return Row(metric=TASKS[values["task"]].metric, **values)


def old_row(**changes: Any) -> Row:
    """The same out of a summary of format 1."""
    return row(**{"value_error": None, "weights": None, "settings": None, **changes})
