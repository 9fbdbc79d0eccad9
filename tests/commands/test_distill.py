"""`s3prl-ekd distill`: the recipe on its command line, printed and refused; no training."""

from __future__ import annotations

import helpers_train as h
import pytest
import yaml

from s3prl_ekd.cli import main
from s3prl_ekd.config.training import RunConfig


def write_recipe(path, **changes):
    recipe = h.recipe(path / "run").to_mapping() | changes
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(path / "recipe.yaml")


@pytest.mark.parametrize(
    ("data", "overrides", "says"),
    [
        (
            {"batch_seconds": 75},
            ["trainer.devices=4"],
            "300 s of audio: data.batch_seconds 75 x 4 device(s) x accumulate 1",
        ),
        (
            {"global_batch_seconds": 300},
            ["trainer.devices=4", "trainer.num_nodes=2", "trainer.accumulate=3"],
            "300 s of audio: data.global_batch_seconds, 12.5 s for each of 8 device(s) x accumulate 3",
        ),
        (
            {"batch_seconds": 75},
            ["trainer.devices=null"],
            "75 s of audio (data.batch_seconds) x all devices x accumulate 1",
        ),
    ],
)
def test_the_size_of_a_step_is_said(data, overrides, says, tmp_path, capsys):
    recipe = write_recipe(tmp_path, data={"cuts": ["train"], **data})
    assert main(["distill", recipe, *overrides, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[:2] == [
        f"# a step is up to {says}",
        "# the student has 16.83 k parameters, 5.877 M multiply-adds a second",
    ]
    assert RunConfig.from_mapping(yaml.safe_load(printed)).to_mapping() == yaml.safe_load(printed)


def test_print_config_resolves(tmp_path, capsys):
    overrides = ["trainer.devices=4", "teachers.0.layers=[0, 2]", "student.initialize_from=null", "optimizer.lr=1e-4"]
    assert main(["distill", write_recipe(tmp_path), *overrides, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["devices"] == 4
    assert printed["teachers"][0]["layers"] == [0, 2]
    assert printed["optimizer"] == {
        "lr": 1e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01, "clip_norm": 5.0,
    }  # fmt: skip
    assert RunConfig.from_mapping(printed).to_mapping() == printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.device=4", "unknown key 'trainer.device'; did you mean 'devices'"),
        ("trainer.devices", "expected key.path=value"),
        ("trainer.devices=[", "not valid YAML"),
        ("trainer.devices=many", "trainer.devices: expected int"),
        ("teachers.3.layers=[1]", "number below 1"),
        ("output.x=1", "has no keys below"),
        ("trainer.precision=half", "trainer.precision: unknown value 'half'"),
        ("trainer.accumulate=0", "trainer.accumulate: expected at least 1"),
        ("schedule.warmup=1", "schedule.warmup: expected less than 1"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas"),
    ],
)
def test_mistakes_are_named(override, message, tmp_path, capsys):
    assert main(["distill", write_recipe(tmp_path), override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
