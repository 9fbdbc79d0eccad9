"""Groups of layers, units and components of a recipe, found on its own data."""

from __future__ import annotations

import dataclasses

import pytest
import soundfile
import torch
from helpers_models import speech_like

from s3prl_ekd.calibration import speech
from s3prl_ekd.calibration.find import find
from s3prl_ekd.cuts.manifests import folder_recordings, write_manifest
from s3prl_ekd.errors import UserError

EQUAL = (0, (1, 2), (3, 4, 5))


def slots(config):
    return [teacher.slots for teacher in config.teachers]


@pytest.mark.parametrize("similarity", ["cka", "cosine"])
@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
def test_equal_layers_are_groups(similarity, linkage, recipe):
    config = recipe({"clusters": 3, "similarity": similarity, "linkage": linkage, "utterances": 3})
    assert slots(find(config).resolve(config)) == [EQUAL]


def test_only_what_is_asked_for_changes(recipe):
    config = recipe({"clusters": 3}, [1, [2, 3], 5])
    found = find(config)
    resolved = found.resolve(config)
    assert slots(resolved) == [EQUAL, (1, (2, 3), 5)]
    assert [one.teacher for one in found.groups] == ["teacher0"]
    assert found.fits.state() == {}
    assert dataclasses.replace(resolved, teachers=config.teachers) == config


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
    one, two = (find(config).groups[0] for _ in range(2))
    assert one.groups == two.groups
    assert torch.equal(one.similarity, two.similarity)


def test_targets_that_are_normalised_are_compared_so(recipe):
    asked = {"clusters": 2, "utterances": 4}
    plain, normalised = (
        find(recipe(asked, teacher={"layer_norm_targets": flag})).groups[0].similarity for flag in (False, True)
    )
    assert (plain - normalised)[0].abs().max() > 1e-6


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
        find(config)


def test_more_groups_than_layers_are_refused(recipe):
    with pytest.raises(UserError, match="asks for 7 clusters, and it has hidden states 0 to 5; ask for 6 at most"):
        find(recipe({"clusters": 7}))
