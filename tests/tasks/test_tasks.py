"""The table of tasks: what each has, and what follows from it elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from s3prl_ekd import cli
from s3prl_ekd.tasks import DEFAULT, TASKS, inputs


def test_real_configurations_are_superbs():
    steps = {task: TASKS[task].template("real")["runner"]["total_steps"] for task in DEFAULT}
    rates = {task: TASKS[task].template("real")["optimizer"]["lr"] for task in DEFAULT}
    assert DEFAULT == ("pr", "sid", "er", "asr")
    assert steps == {"pr": 100000, "sid": 200000, "er": 30000, "asr": 200000}
    assert rates == {"pr": 1e-2, "sid": 1e-4, "er": 1e-4, "asr": 1e-4}


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_configurations_of_a_task_have_the_same_keys_and_its_lists(task):
    mini, real = (task.template(recipes)["downstream_expert"] for recipes in ("mini", "real"))
    assert {key: set(mini[key]) for key in mini if isinstance(mini[key], dict)} == {
        key: set(real[key]) for key in real if isinstance(real[key], dict)
    }
    assert not task.lists or any(isinstance(value, list) for value in mini[task.lists].values())


def test_every_input_is_an_option_of_the_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["superb", "--help"])
    said = capsys.readouterr().out
    assert all(one.option in said for one in inputs())
    assert len({one.option for one in inputs() if one.option}) == len([one for one in inputs() if one.option])


def test_knowing_the_tasks_imports_nothing_heavy_and_nothing_above():
    code = "import sys, s3prl_ekd.tasks; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "s3prl", "s3prl_ekd.superb", "s3prl_ekd.s3prl_plugin", "s3prl_ekd.mini_corpus"} & {*loaded}
