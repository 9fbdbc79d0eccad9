"""The table of tasks: what each has, and what follows from it elsewhere."""

from __future__ import annotations

from s3prl_ekd.tasks import DEFAULT, TASKS


def test_real_configurations_are_superbs():
    steps = {task: TASKS[task].template("real")["runner"]["total_steps"] for task in DEFAULT}
    rates = {task: TASKS[task].template("real")["optimizer"]["lr"] for task in DEFAULT}
    assert steps == {"pr": 100000, "sid": 200000, "er": 30000, "asr": 200000}
    assert rates == {"pr": 1e-2, "sid": 1e-4, "er": 1e-4, "asr": 1e-4}
