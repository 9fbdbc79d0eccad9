"""A whole pruned run on cached targets: groups of layers, a copy of a teacher, gates, the switch, recovery."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal

import helpers_train as h
import pytest
import soundfile
import torch
from helpers_models import speech_like
from helpers_teachers import tiny_model

import s3prl_ekd.training.run
from s3prl_ekd import cost
from s3prl_ekd.config.training import RunConfig, TargetsConfig
from s3prl_ekd.cuts.manifests import folder_recordings, write_manifest
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.folder import load_student, load_student_and_heads
from s3prl_ekd.target_cache.filling import Caching
from s3prl_ekd.training.run import open_inputs, train

GROUPS = [0, [1, 2], 3]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A copy of the second of two teachers, pruned to three quarters of its multiply-adds; targets are cached."""
    root = tmp_path_factory.mktemp("root")
    for number in range(8):
        path = root / "speech" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, speech_like(6400 + 800 * number, number).numpy(), 16000)
    write_manifest(root / "cuts.jsonl.gz", folder_recordings(root / "speech"))
    kinds = ("hubert", "wavlm")
    for seed, kind in enumerate(kinds):
        tiny_model(kind, seed=seed).save_pretrained(root / kind)
    config = RunConfig.from_mapping(
        {
            "student": {"copy": "wavlm", "hidden_dropout": 0.05, "feature_grad_scale": 1.0},
            "teachers": [{"name": kind, "transformers": str(root / kind), "layers": GROUPS} for kind in kinds],
            "heads": {"kind": "linear", "initialize": "identity", "from": "same"},
            "objective": {"losses": [{"kind": "l1"}, {"kind": "cosine", "form": "raw"}]},
            "data": {
                "cuts": [str(root / "cuts.jsonl.gz")],
                "batch_seconds": 4.0,
                "max_crop_samples": 16000,
                "num_buckets": 1,
                "num_workers": 0,
            },
            "optimizer": {"lr": 3e-3},
            "pruning": {"budget": {"multiply_adds": 4e6}, "warmup_steps": 6, "learning_rate": 0.3},
            "stages": [{"name": "prune", "max_steps": 16}, {"name": "recover", "max_steps": 12, "warmup": 0.1}],
            "trainer": {
                "precision": "32", "accelerator": "cpu", "devices": 1, "log_every": 1, "checkpoint_every": 5,
            },
            "output": str(root / "whole"),
        }
    )  # fmt: skip
    Caching(config, root / "cache").run()
    return dataclasses.replace(config, targets=TargetsConfig(cache=str(root / "cache")))


def start(config, *, resume=False, before=None):
    process = h._context.Process(target=_train, args=(config, resume, before))
    process.start()
    return process


def _train(config, resume, before):
    torch.set_num_threads(1)
    if before is not None:
        before()
    os._exit(train(config, resume=resume))


@pytest.fixture(scope="module")
def whole(recipe):
    assert h.finish(start(recipe)) == 0
    return recipe.output


def test_the_student_is_as_large_as_asked(recipe, whole):
    for folder in (f"{whole}/prune/student", f"{whole}/student"):
        config = load_student(folder).config
        size = cost.multiply_adds(cost.FixedSizes.of(config), cost.UnitCounts.of(config))
        assert 0.98 * 4e6 < size <= 4e6
        assert (config.hidden_dropout, config.feature_grad_scale) == (0.05, 1.0)
    resolved = RunConfig.from_yaml(f"{whole}/recover/recipe.yaml")
    assert resolved.student == config
    assert resolved.pruning is None


def loss(recipe, folder):
    """Of the student and its heads in a folder, over the data."""
    student, heads = load_student_and_heads(folder)
    config = dataclasses.replace(recipe, student=student.config, stages=(), pruning=None)
    stream, _, distiller = open_inputs(config, 0, 1)
    distiller.student, distiller.heads = student, heads
    with torch.no_grad():
        return sum(float(distiller.eval()(batch).loss) for batch in stream.loader(0))


def test_it_recovers(recipe, whole):
    assert loss(recipe, f"{whole}/student") < 0.97 * loss(recipe, f"{whole}/prune/student")


def die_at_the_switch(after):
    save = s3prl_ekd.training.run.save_student

    def die(*args, **kwargs):
        if after:
            save(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    s3prl_ekd.training.run.save_student = die


def test_killed_at_the_switch(recipe, whole, tmp_path):
    """Before the smaller student is written, and after it."""
    config = dataclasses.replace(recipe, output=str(tmp_path / "run"))
    for after in (False, True):
        process = start(config, resume=after, before=functools.partial(die_at_the_switch, after))
        assert h.finish(process) == -signal.SIGKILL
    assert h.finish(start(config, resume=True)) == 0
    for name in ("prune", "recover"):
        h.assert_same_run(f"{config.output}/{name}", f"{whole}/{name}")
    for name in ("prune/student", "student"):
        ours, theirs = (load_student(f"{output}/{name}").state_dict() for output in (config.output, whole))
        h.assert_equal(ours, theirs)


def test_a_budget_that_a_copy_cannot_reach(recipe, tmp_path):
    """It is refused once the teacher's sizes are known, and nothing is left of the run."""
    pruning = RunConfig.from_mapping(
        recipe.to_mapping() | {"pruning": {"budget": {"parameters": 100}, "warmup_steps": 6}}
    ).pruning
    with pytest.raises(UserError, match=r"pruning.budget.parameters: 100 cannot be reached by pruning .* the least is"):
        train(dataclasses.replace(recipe, pruning=pruning, output=str(tmp_path / "run")))
    assert list(tmp_path.iterdir()) == []
