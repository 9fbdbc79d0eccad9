"""Groups of layers for a recipe: found on its own data, once, and kept with its run."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest
import soundfile
import torch
import yaml
from helpers_models import speech_like

from s3prl_ekd.calibration import find, speech
from s3prl_ekd.calibration.find import Calibration, calibrate, calibrated
from s3prl_ekd.cli import main
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.cuts.manifests import folder_recordings, write_manifest
from s3prl_ekd.errors import UserError

EQUAL = (0, (1, 2), (3, 4, 5))


def slots(config):
    return [teacher.slots for teacher in config.teachers]


@pytest.fixture
def forget_teachers(monkeypatch):
    """A function: from then on there are neither teachers nor speech."""

    def forget():
        monkeypatch.setattr(find, "load_teacher", None)
        monkeypatch.setattr(speech, "waveforms", None)

    return forget


@pytest.mark.parametrize("similarity", ["cka", "cosine"])
@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
def test_equal_layers_are_groups(similarity, linkage, recipe):
    config = recipe({"clusters": 3, "similarity": similarity, "linkage": linkage, "utterances": 3})
    assert slots(calibrate(config).config) == [EQUAL]


def test_only_what_is_asked_for_changes(recipe):
    config = recipe({"clusters": 3}, [1, [2, 3], 5])
    found = calibrate(config)
    assert slots(found.config) == [EQUAL, (1, (2, 3), 5)]
    assert [one.teacher.name for one in found.found] == ["teacher0"]
    assert dataclasses.replace(found.config, teachers=config.teachers) == config
    plain = recipe([1, [2, 3]])
    assert calibrate(plain) == Calibration(plain)


def test_the_speech_depends_on_seed_and_data_alone(recipe):
    def heard(config, count=5):
        return [waveform.tolist() for waveform in speech.waveforms(config, count)]

    first = heard(recipe([1]))
    assert len(first) == 5
    assert heard(recipe([1], data={"batch_seconds": 1.0, "num_buckets": 1})) == first
    assert heard(recipe([1]), 3) == first[:3]
    other = heard(recipe([1], seed=1))
    assert other != first
    everything = heard(recipe([1]), 1000)
    assert sorted(map(len, everything)) == [min(16000, 4800 + 1501 * i) for i in range(12)]


def test_groups_are_the_same_again(recipe):
    config = recipe({"clusters": 2, "utterances": 4})
    one, two = calibrate(config), calibrate(dataclasses.replace(config, output="elsewhere"))
    assert one.found == two.found
    assert one.found[0].frames == sum((len(wave) - 400) // 320 + 1 for wave in speech.waveforms(config, 4))


def test_targets_that_are_normalised_are_compared_so(recipe):
    asked = {"clusters": 2, "utterances": 4}
    plain, normalised = (
        calibrate(recipe(asked, teacher={"layer_norm_targets": flag})).found[0] for flag in (False, True)
    )
    difference = torch.tensor(plain.similarity)[0] - torch.tensor(normalised.similarity)[0]
    assert difference[0].abs() < 1e-9
    assert difference[1].abs() > 1e-6


def corpus(folder, *, bad, good):
    (folder / "wav").mkdir()
    for i in range(bad + good):
        soundfile.write(folder / "wav" / f"{i}.wav", speech_like(8000, i).numpy(), 16000)
    write_manifest(folder / "cuts.jsonl.gz", folder_recordings(folder / "wav"))
    for i in range(bad):
        (folder / "wav" / f"{i}.wav").unlink()
    return [str(folder / "cuts.jsonl.gz")]


def test_bad_recordings_are_passed_over(recipe, tmp_path):
    config = recipe({"clusters": 3, "utterances": 5}, data={"cuts": corpus(tmp_path, bad=3, good=5)})
    assert len(list(speech.waveforms(config, 5))) == 5


def test_no_usable_recording_is_said(recipe, tmp_path):
    config = recipe({"clusters": 3}, data={"cuts": corpus(tmp_path, bad=2, good=0)})
    with pytest.raises(UserError, match="not one usable recording among 2"):
        calibrate(config)


def test_more_groups_than_layers_are_refused(recipe, tmp_path):
    config = recipe({"clusters": 7})
    with pytest.raises(UserError, match="asks for 7 clusters, and it has hidden states 0 to 5; ask for 6 at most"):
        calibrated(config, resume=False, first=True)
    assert not (tmp_path / "run").exists()


# ---- a run


def test_a_run_keeps_its_groups_and_a_resumed_one_reads_them(recipe, tmp_path, forget_teachers):
    config = recipe({"clusters": 3, "utterances": 3})
    resolved = calibrated(config, resume=False, first=True)
    forget_teachers()
    assert slots(resolved) == [EQUAL]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["layers-teacher0.json", "layers-teacher0.png"]
    assert calibrated(config, resume=True, first=True) == resolved
    assert calibrated(config, resume=True, first=False) == resolved
    assert calibrated(resolved, resume=True, first=True) == resolved


def test_the_resolved_recipe_needs_no_calibration_data(recipe, tmp_path, forget_teachers):
    config = recipe({"clusters": 3, "utterances": 3})
    resolved = calibrated(config, resume=False, first=True)
    forget_teachers()
    text = yaml.safe_dump(resolved.to_mapping())
    again = RunConfig.from_mapping(yaml.safe_load(text))
    assert again == resolved
    assert "clusters" not in text
    elsewhere = dataclasses.replace(again, output=str(tmp_path / "other"))
    assert calibrated(elsewhere, resume=False, first=True) == elsewhere


def test_other_settings_are_refused_when_a_run_is_resumed(recipe):
    calibrated(recipe({"clusters": 3, "utterances": 3}), resume=False, first=True)
    for other, said in (
        (recipe({"clusters": 2, "utterances": 3}), r"teacher\.layers\.clusters: 3 there, 2 here"),
        (recipe({"clusters": 3, "utterances": 3}, seed=1), r"speech\.seed: 0 there, 1 here"),
    ):
        with pytest.raises(UserError, match=f"cannot resume: .*layers-teacher0.json.*{said}"):
            calibrated(other, resume=True, first=True)


def test_other_processes_wait_for_the_first(recipe, monkeypatch):
    monkeypatch.setattr(find, "_POLL_SECONDS", 0.01)
    calibrated(recipe({"clusters": 2, "utterances": 3}), resume=False, first=True)  # of a run before
    config, found = recipe({"clusters": 3, "utterances": 3}), []
    waiting = threading.Thread(target=lambda: found.append(calibrated(config, resume=False, first=False)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    resolved = calibrated(config, resume=False, first=True)
    waiting.join(60)
    assert found == [resolved]


def test_waiting_ends(recipe, monkeypatch):
    monkeypatch.setattr(find, "_POLL_SECONDS", 0.01)
    config = recipe({"clusters": 3}, data={"timeout_seconds": 0.1})
    with pytest.raises(UserError, match=r"layers-teacher0\.json: the first process has not written it in 0\.1 s"):
        calibrated(config, resume=False, first=False)


def test_no_picture_without_matplotlib(recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(find.importlib.util, "find_spec", lambda name: None)
    calibrate(recipe({"clusters": 3, "utterances": 2})).write(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["layers-teacher0.json"]
    assert "matplotlib is not installed" in caplog.text


def test_a_folder_that_cannot_be_written_is_named(recipe, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out"):
        calibrate(recipe({"clusters": 3, "utterances": 2})).write(tmp_path / "out")


# ---- a cache


def test_a_cached_run_takes_the_caches_groups(recipe, tmp_path, forget_teachers):
    cached = {"targets": {"cache": str(tmp_path / "cache")}}
    asked = {"clusters": 3, "utterances": 3}
    with pytest.raises(UserError, match="keeps no groups of layers of teacher 'teacher0'"):
        calibrated(recipe(asked, **cached), resume=False, first=True)
    calibrate(recipe(asked)).write(tmp_path / "cache")
    forget_teachers()
    for seed in (0, 1):  # the targets are the same
        assert slots(calibrated(recipe(asked, seed=seed, **cached), resume=False, first=False)) == [EQUAL]
    with pytest.raises(UserError, match=r"found otherwise \(teacher\.layers\.clusters: 3 in the cache, 2 in the rec"):
        calibrated(recipe({**asked, "clusters": 2}, **cached), resume=False, first=True)


# ---- the command


def test_the_command_prints_lines_for_the_recipe(recipe, tmp_path, capsys):
    config = recipe({"clusters": 3, "utterances": 3}, [1, 3, 5])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.to_mapping()))
    assert main(["cluster-layers", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "out")]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "# teacher0: 3 groups of 6 hidden states"
    assert yaml.safe_load(second) == {"layers": [0, [1, 2], [3, 4, 5]]}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["layers-teacher0.json", "layers-teacher0.png"]
    stored = json.loads((tmp_path / "out" / "layers-teacher0.json").read_text())
    assert len(stored["similarity"]) == 6
    assert not (tmp_path / "run").exists()


def test_the_command_says_where_nothing_is_to_be_found(recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe([1, 3]).to_mapping()))
    assert main(["cluster-layers", str(tmp_path / "recipe.yaml")]) == 2
    assert "no teacher asks for groups of layers" in capsys.readouterr().err
