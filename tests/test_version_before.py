"""What version 0.1.0 wrote, in tests/data/v0_1_0: each kind of it is read, served or continued as it was there."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from helpers_models import TESTS
from helpers_train import checkpoint, logged
from safetensors.torch import load_file

from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.cuts.stream import BatchStream
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.s3prl_plugin.runners import pretrain
from s3prl_ekd.student.folder import load_student
from s3prl_ekd.target_cache.filling import Caching
from s3prl_ekd.target_cache.reading import TargetCache
from s3prl_ekd.teachers import load_teachers
from s3prl_ekd.teachers.cached import cached_teachers
from s3prl_ekd.training.run import train


@pytest.fixture
def before(tmp_path, monkeypatch) -> Path:
    """A copy, which is the working folder: all paths in it are relative to that."""
    folder = shutil.copytree(TESTS / "data" / "v0_1_0", tmp_path / "before")
    monkeypatch.chdir(folder)
    return folder


def expected(part: str) -> dict[str, torch.Tensor]:
    """What the version before gave, of ``features`` or of the weights of a continued run."""
    found = load_file("expected.safetensors")
    return {name.removeprefix(f"{part}/"): value for name, value in found.items() if name.startswith(f"{part}/")}


def assert_weights(where: str, part: str) -> None:
    weights, wanted = load_student(where).state_dict(), expected(part)
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_run_goes_on(before):
    """With the same steps: data, dropout and optimizer are where they were."""
    assert train(RunConfig.from_yaml("distill.yaml"), resume=True) == 0
    losses = {int(step): loss for step, loss in json.loads(Path("continued.json").read_text()).items()}
    assert logged("run") == pytest.approx(losses, rel=1e-4)
    assert list(losses) == [4, 5, 6]
    assert checkpoint("run")["optimizer_states"][0]["state"][0]["step"] == 6
    assert_weights("run/student", "distill")


def test_a_run_of_s3prl_s_runner_goes_on(before, monkeypatch):
    """Also after s3prl's distiller has left its own module under another's name, as it does when a file is damaged."""
    monkeypatch.setitem(sys.modules, "optimizers", importlib.import_module("s3prl.optimizers"))
    pretrain.run(["-e", "pretrain", "--device", "cpu", "-g", "config_model.yaml"])
    (last,) = before.glob("pretrain/states-epoch-*.ckpt")
    assert_weights(str(last), "pretrain")


def test_a_student_gives_the_same_features(before):
    wave, _ = soundfile.read("speech/0.flac", dtype="float32")
    with torch.no_grad():
        states = load_student("student").eval()(torch.from_numpy(wave)[None]).hidden_states
    wanted = expected("features")
    assert len(states) == len(wanted)
    for layer, state in enumerate(states):
        torch.testing.assert_close(state, wanted[str(layer)], rtol=1e-5, atol=1e-6)


def test_a_cache_serves_its_recipe(before):
    """Nothing of it is computed again, and a step with it is one with the teachers."""
    config = RunConfig.from_yaml("distill.yaml", ["targets.cache=cache", "data.max_crop_samples=null"])
    shards = {path.name: path.read_bytes() for path in before.glob("cache/targets-*")}
    Caching(config, "cache").run()
    assert {path.name: path.read_bytes() for path in before.glob("cache/targets-*")} == shards
    cache = TargetCache("cache").require(config)
    cached = Distiller(config.distill, cached_teachers(config, cache)).eval()
    online = Distiller(config.distill, load_teachers(config)).eval()
    online.load_state_dict(cached.state_dict())
    heard = 0
    with torch.no_grad():
        streams = (BatchStream(config.data, config.distortion, seed=0, targets_cache=one) for one in (cache, None))
        for batch, plain in zip(*(stream.loader(0) for stream in streams), strict=True):
            assert batch.utterances == plain.utterances
            heard += len(batch.utterances)
            torch.testing.assert_close(cached(batch).loss, online(plain).loss, rtol=1e-3, atol=0)
    assert heard == 6
