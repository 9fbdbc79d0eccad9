"""What was found for a recipe is kept with its run or its cache, and found once."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
import yaml

from s3prl_ekd.calibration import find, kept, result, speech
from s3prl_ekd.calibration.kept import calibrated, calibration_of_cache
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.errors import UserError

EQUAL = (0, (1, 2), (3, 4, 5))
ASKED = {"clusters": 3, "utterances": 3}
UNITS = {"teacher": {"units": {"count": 4, "layer": 2, "utterances": 3}, "principal_components": 5}}
KL = {"objective": {"losses": [{"kind": "l1"}, {"kind": "kl"}]}}
LAYERS = ["layers-teacher0.json", "layers-teacher0.png"]


def slots(config):
    return [teacher.slots for teacher in config.teachers]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def start(config, *, resume=False):
    return calibrated(config, resume=resume, first=True)


@pytest.fixture
def forget(monkeypatch):
    """A function: from then on there are neither teachers nor speech."""

    def forget():
        monkeypatch.setattr(find, "load_teacher", None)
        monkeypatch.setattr(speech, "waveforms", None)

    return forget


def test_a_run_keeps_what_was_found_and_a_resumed_one_reads_it(recipe, tmp_path, forget):
    config = recipe(ASKED, **UNITS, **KL)
    resolved, fits = start(config)
    assert slots(resolved) == [EQUAL]
    assert names(tmp_path / "run") == ["fits.safetensors", *LAYERS]
    forget()
    plain = dataclasses.replace(config, teachers=resolved.teachers)  # as the run's own recipe.yaml has them
    for again in (start(config, resume=True), calibrated(config, resume=True, first=False), start(plain, resume=True)):
        assert again[0] == resolved
        assert {name: one.tolist() for name, one in again[1].state().items()} == {
            name: one.tolist() for name, one in fits.state().items()
        }


def test_nothing_to_be_found_writes_nothing(recipe, tmp_path, forget):
    forget()
    config = recipe([1, [2, 3]])
    assert start(config) == (config, None)
    assert not (tmp_path / "run").exists()


def test_too_many_groups_leave_nothing_behind(recipe, tmp_path):
    with pytest.raises(UserError, match="ask for 6 at most"):
        start(recipe({"clusters": 7}))
    assert not (tmp_path / "run").exists()


def test_the_resolved_recipe_needs_no_calibration_data(recipe, forget):
    resolved, _ = start(recipe(ASKED))
    text = yaml.safe_dump(resolved.to_mapping())
    again = RunConfig.from_mapping(yaml.safe_load(text))
    assert again == resolved
    assert "clusters" not in text
    forget()
    assert start(again) == (again, None)


@pytest.mark.parametrize("name", ["../a/b", "Grüße $x$ similarity.centres"])
def test_names_of_teachers_may_be_anything(name, recipe, tmp_path, forget):
    config = recipe(ASKED, teacher={**UNITS["teacher"], "name": name}, **KL)
    resolved, fits = start(config)
    assert all(path.parent == tmp_path / "run" for path in (tmp_path / "run").rglob("*"))
    forget()
    again, same = start(config, resume=True)
    assert again == resolved
    assert list(same.units) == list(same.components) == [name]
    assert torch.equal(same.units[name].centres, fits.units[name].centres)


def test_other_settings_are_refused_when_a_run_is_resumed(recipe, tmp_path):
    start(recipe(ASKED))
    for other, said in (
        (recipe({**ASKED, "clusters": 2}), r"teachers\[0\]\.layers\.clusters: 3 there, 2 here"),
        (recipe(ASKED, seed=1), r"speech\.seed: 0 there, 1 here"),
        (
            recipe([0, 1, 2], **UNITS, **KL),
            r"teachers\[0\]\.layers: \[0, \[1, 2\], \[3, 4, 5\]\] there, \[0, 1, 2\] he",
        ),
    ):
        with pytest.raises(UserError, match=f"cannot resume: .*fits.safetensors.*{said}"):
            start(other, resume=True)
    weighed = recipe(ASKED, teacher={"weight": 2.0, "own_forward": True})
    assert slots(start(weighed, resume=True)[0]) == [EQUAL]
    assert len(slots(start(recipe({**ASKED, "clusters": 2}))[0])[0]) == 2  # a new run finds them anew


def test_a_run_that_has_lost_its_units_is_not_resumed(recipe, tmp_path, forget):
    """Its checkpoints have learnt them; groups can be found anew, since checkpoints tell which they have learnt."""
    start(recipe(ASKED, **UNITS, **KL))
    (tmp_path / "run" / "fits.safetensors").unlink()
    assert slots(start(recipe(ASKED), resume=True)[0]) == [EQUAL]
    (tmp_path / "run" / "fits.safetensors").unlink()
    forget()
    for first in (True, False):
        with pytest.raises(UserError, match=r"cannot resume: .*fits\.safetensors is missing, .* of teacher 'teacher0'"):
            calibrated(recipe(ASKED, **UNITS, **KL), resume=True, first=first)


def test_a_damaged_file_is_named(recipe, tmp_path):
    start(recipe(ASKED))
    path = tmp_path / "run" / "fits.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:200], whole[:-8], whole.replace(b"groups", b"group5"), b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"fits\.safetensors: cannot be read .*; put a good copy back.* delete it"):
            start(recipe(ASKED))


def test_other_processes_wait_for_the_first(recipe, monkeypatch):
    monkeypatch.setattr(kept, "_POLL_SECONDS", 0.01)
    start(recipe({**ASKED, "clusters": 2}))  # of a run before
    config, found = recipe(ASKED), []
    waiting = threading.Thread(target=lambda: found.append(calibrated(config, resume=False, first=False)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    resolved, _ = start(config)
    waiting.join(60)
    assert found[0][0] == resolved


def test_waiting_ends(recipe, monkeypatch):
    monkeypatch.setattr(kept, "_POLL_SECONDS", 0.01)
    config = recipe(ASKED, data={"timeout_seconds": 0.1})
    with pytest.raises(UserError, match=r"fits\.safetensors: the first process has not written it in 0\.1 s"):
        calibrated(config, resume=False, first=False)


def test_no_picture_without_matplotlib(recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(result.importlib.util, "find_spec", lambda name: None)
    find.find(recipe(ASKED)).write(tmp_path / "out")
    assert names(tmp_path / "out") == ["fits.safetensors", "layers-teacher0.json"]
    assert "matplotlib is not installed" in caplog.text


def test_a_folder_that_cannot_be_written_is_named(recipe, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out"):
        find.find(recipe(ASKED)).write(tmp_path / "out")


# ---- a cache


def test_a_cached_run_takes_the_caches_groups(recipe, tmp_path, forget):
    cache = tmp_path / "cache"
    cached = {"targets": {"cache": str(cache)}}
    with pytest.raises(UserError, match="keeps no groups of layers of teacher 'teacher0'"):
        start(recipe(ASKED, **cached))
    find.find(recipe(ASKED)).write(cache)
    forget()
    for seed in (0, 1):  # the targets are the same
        resolved, fits = start(recipe(ASKED, seed=seed, **cached))
        assert slots(resolved) == [EQUAL]
        assert fits is None
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"layers\.clusters: 3 in the cache, 2 in the recipe"):
        start(recipe({**ASKED, "clusters": 2}, **cached))


def test_a_cache_keeps_what_it_was_made_with(recipe, tmp_path, forget):
    cache = tmp_path / "cache"
    found = calibration_of_cache(recipe(ASKED, **UNITS, **KL), cache, "cpu", made=False)
    assert not cache.exists()
    found.write(cache)
    forget()
    for layers in (ASKED, [0, [1, 2], [3, 4, 5]]):
        again = calibration_of_cache(recipe(layers, seed=1, **UNITS, **KL), cache, "cpu", made=True)
        assert torch.equal(again.fits.units["teacher0"].centres, found.fits.units["teacher0"].centres)
    (cache / "fits.safetensors").unlink()
    with pytest.raises(UserError, match=r"fits\.safetensors: missing"):
        calibration_of_cache(recipe(ASKED, **UNITS, **KL), cache, "cpu", made=True)
