"""Whole runs of recipes that ask for groups of layers, units and components: resumed, cached, in two processes."""

from __future__ import annotations

import dataclasses

import helpers_train as h
import pytest
import torch
import yaml
from helpers_teachers import tiny_model

from s3prl_ekd.calibration import find, groups
from s3prl_ekd.calibration.kept import calibrated, calibration_of_cache
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.cuts.stream import BatchStream
from s3prl_ekd.distiller import teacher_states
from s3prl_ekd.errors import UserError
from s3prl_ekd.target_cache.filling import Caching
from s3prl_ekd.target_cache.reading import TargetCache
from s3prl_ekd.teachers import load_teachers
from s3prl_ekd.training import run
from s3prl_ekd.training.run import train

ASKED = {"clusters": 3, "utterances": 3}
PLAIN = [0, [1, 2], [3, 4, 5]]
FITS = {"teacher": {"units": {"count": 4, "layer": 2, "utterances": 3}, "principal_components": 5}}
KL = {"objective": {"losses": [{"kind": "l1"}, {"kind": "kl"}]}}


@pytest.fixture
def forget(monkeypatch):
    """A function: from then on nothing can be found."""
    return lambda: monkeypatch.setattr(find, "load_teacher", None)


def changed(config, **trainer):
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **trainer))


def test_a_run_of_plain_groups_is_the_same(recipe, tmp_path, forget):
    assert train(recipe(ASKED)) == 0
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["teachers"][0]["layers"] == PLAIN
    assert yaml.safe_load((tmp_path / "run" / "student" / "recipe.yaml").read_text())["teachers"][0]["layers"] == PLAIN
    forget()
    assert train(RunConfig.from_mapping(written | {"output": str(tmp_path / "plain")})) == 0
    h.assert_same_run(tmp_path / "run", tmp_path / "plain")
    assert not (tmp_path / "plain" / "fits.safetensors").exists()


def test_a_resumed_run_has_the_units_and_components_it_began_with(recipe, tmp_path, forget):
    config = recipe(ASKED, schedule={"decay": "constant", "warmup": 0.0}, **FITS, **KL)
    assert train(changed(dataclasses.replace(config, output=str(tmp_path / "whole")), max_steps=4)) == 0
    assert train(config) == 0
    forget()
    with pytest.raises(UserError, match="holds a run already"):
        train(config)
    assert train(changed(config, max_steps=4), resume=True) == 0
    h.assert_same_run(tmp_path / "run", tmp_path / "whole")
    written = RunConfig.from_yaml(tmp_path / "run" / "recipe.yaml")
    assert train(changed(written, max_steps=5), resume=True) == 0
    (tmp_path / "run" / "fits.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot resume: .*fits\.safetensors is missing"):
        train(changed(written, max_steps=6), resume=True)


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_begun_anew(recipe, tmp_path):
    """Nothing depends on what it may have found by then."""
    config = recipe(ASKED, **FITS, **KL)
    calibrated(dataclasses.replace(config, seed=1), resume=False, first=True)
    assert train(config, resume=True) == 0
    assert RunConfig.from_yaml(tmp_path / "run" / "recipe.yaml").seed == 0


def test_all_stages_have_them(recipe, tmp_path):
    stages = [{"name": "first", "max_steps": 1}, {"name": "second", "max_steps": 1}]
    assert train(recipe(ASKED, stages=stages, **FITS, **KL)) == 0
    written = [yaml.safe_load(path.read_text()) for path in (tmp_path / "run").rglob("recipe.yaml")]
    assert [one["teachers"][0]["layers"] for one in written] == [PLAIN] * 5  # the run's, its stages', the students'
    assert len(list((tmp_path / "run").rglob("fits.safetensors"))) == 1


def test_a_cache_holds_the_targets_and_a_run_on_it_needs_no_teacher(recipe, tmp_path, forget, monkeypatch):
    folder = tmp_path / "cache"
    config = recipe(ASKED, data={"max_crop_samples": None}, **FITS, **KL)
    assert f"{'targets':12s}5 + 5 + 5 + 4 values a frame" in Caching(config, folder).estimate()
    assert not folder.exists()
    Caching(config, folder).run()
    assert (folder / "layers-teacher0.png").exists()
    found = calibration_of_cache(config, folder, "cpu", made=True)
    resolved, cache = found.resolve(config), TargetCache(folder)
    batch = next(iter(BatchStream(config.data, config.distortion, seed=0, targets_cache=cache).loader(0)))
    (taught,) = teacher_states(resolved, load_teachers(resolved), batch, found.fits)
    torch.testing.assert_close(batch.cached.rows, torch.cat(taught.rows, dim=-1).half(), rtol=1e-2, atol=1e-3)

    forget()
    monkeypatch.setattr(run, "load_teachers", None)
    for name, layers in (("asked", ASKED), ("plain", PLAIN)):
        cached = {"output": str(tmp_path / name), "targets": {"cache": str(folder)}}
        assert train(recipe(layers, data={"max_crop_samples": None}, **cached, **FITS, **KL)) == 0
        written = yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())
        assert written["teachers"][0]["layers"] == PLAIN
    h.assert_same_run(tmp_path / "asked", tmp_path / "plain")
    with pytest.raises(UserError, match=r"layers\.clusters: 3 in the cache, 2 in the recipe"):
        train(recipe({**ASKED, "clusters": 2}, targets={"cache": str(folder)}, **FITS, **KL))


def test_a_cache_is_another_one_with_other_units(recipe, tmp_path):
    identities = set()
    for seed in (0, 0, 1):
        folder = tmp_path / f"cache{len(identities)}-{seed}"
        Caching(recipe([1, 2], seed=seed, **FITS, **KL), folder).run()
        identities.add(TargetCache(folder).identity)
    assert len(identities) == 2


def test_parts_that_start_together_go_by_what_the_first_has_written(recipe, tmp_path, monkeypatch):
    """Each has found units, components and groups of its own by then."""
    folder, entry = tmp_path / "cache", {"data": {"max_crop_samples": None}, **FITS, **KL}
    first = Caching(recipe(ASKED, **entry), folder, part=(0, 2))
    with monkeypatch.context() as others:
        others.setattr(groups, "group", lambda *_: (0, 1, (2, 3, 4, 5)))
        second = Caching(recipe(ASKED, seed=1, **entry), folder, part=(1, 2))
    first.run()
    second.run()
    assert [teacher.slots for teacher in second.config.teachers] == [(0, (1, 2), (3, 4, 5))]
    config = recipe(ASKED, **entry)
    Caching(config, folder).run()
    Caching(config, tmp_path / "alone").run()
    together, alone = TargetCache(folder), TargetCache(tmp_path / "alone")
    assert together.identity == alone.identity
    batches = [
        next(iter(BatchStream(config.data, config.distortion, seed=0, targets_cache=one).loader(0)))
        for one in (together, alone)
    ]
    torch.testing.assert_close(batches[0].cached.rows, batches[1].cached.rows, rtol=1e-2, atol=2e-3)


@pytest.mark.slow
def test_two_processes_have_the_same_groups(recipe, speech, tmp_path):
    tiny_model("hubert", num_hidden_layers=1).save_pretrained(tmp_path / "shallow")
    config = h.recipe(tmp_path / "run", student=h.NO_DROPOUT, devices=2, data={"cuts": [str(speech)]}, max_steps=4)
    entry = {"name": "fake", "transformers": str(tmp_path / "shallow"), "layers": {"clusters": 2, "utterances": 3}}
    config = RunConfig.from_mapping(config.to_mapping() | {"teachers": [entry]})
    assert [h.finish(process) for process in h.start_all(config)] == [0, 0]
    assert RunConfig.from_yaml(tmp_path / "run" / "recipe.yaml").teachers[0].slots == (0, 1)
