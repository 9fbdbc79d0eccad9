"""`s3prl-ekd cache-targets`, and runs of `distill` that take their targets from a cache: real tiny teachers."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import shutil
import signal
import traceback
import types
from pathlib import Path

import helpers_train as h
import pytest
import soundfile
import torch
import yaml
from helpers_models import TESTS, speech_like
from helpers_teachers import SIZES, tiny_model
from helpers_train import assert_same_run
from safetensors import safe_open

from s3prl_ekd.cli import main
from s3prl_ekd.config.recipe import DistillConfig, StudentConfig
from s3prl_ekd.config.training import RunConfig, TargetsConfig
from s3prl_ekd.cuts.manifests import folder_recordings, write_manifest
from s3prl_ekd.cuts.read import cut_key
from s3prl_ekd.cuts.sources import SourceError, read_entries
from s3prl_ekd.cuts.stream import BatchStream
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.network.config import Architecture, EncoderConfig
from s3prl_ekd.student.folder import load_student
from s3prl_ekd.student.model import Student
from s3prl_ekd.target_cache import files, filling, settings
from s3prl_ekd.target_cache.filling import Caching, entry_key, survey
from s3prl_ekd.target_cache.initial_weights import read_start, write_start
from s3prl_ekd.target_cache.reading import TargetCache
from s3prl_ekd.target_cache.shards import Shard
from s3prl_ekd.teachers import base, load_teachers
from s3prl_ekd.teachers.cached import cached_teachers
from s3prl_ekd.training.module import DistillModule
from s3prl_ekd.training.run import open_inputs, train

AGGREGATIONS = ("layerwise-average", "layerwise-concatenation", "separate-heads")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """16 recordings of 0.3 to 1.8 s to train on, 3 dev ones, their manifests, and two teachers."""
    root = tmp_path_factory.mktemp("root")
    for part, count, shift in (("train", 16, 0), ("dev", 3, 50)):
        for i in range(count):
            path = root / part / f"{part}{i}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, speech_like(4800 + 1501 * i, shift + i).numpy(), 16000)
        write_manifest(root / f"{part}.jsonl.gz", folder_recordings(root / part))
    for kind, seed in (("hubert", 1), ("wavlm", 2)):
        tiny_model(kind, seed=seed).save_pretrained(root / kind)
    return root


def recipe(root: Path, output: Path | str = "unused", **changes) -> RunConfig:
    """Six steps of an epoch and a half; ``changes``: ``a__b=value``."""
    teachers = [{"name": name, "transformers": str(root / name), "layers": [1, 3]} for name in ("hubert", "wavlm")]
    mapping = {
        "student": {**SIZES, "num_hidden_layers": 2, "initialize_from": "hubert"},
        "teachers": teachers,
        "objective": {"aggregation": "separate-heads"},
        "distortion": {"gaussian_noise": {"probability": 0.5}},
        "data": {
            "cuts": [str(root / "train.jsonl.gz")],
            "dev_cuts": [str(root / "dev.jsonl.gz")],
            "batch_seconds": 4.0,
            "max_crop_samples": 16000,
            "num_buckets": 2,
            "num_workers": 0,
        },
        "optimizer": {"lr": 3e-3},
        "trainer": {
            "max_steps": 8, "precision": "32", "accelerator": "cpu", "devices": 1, "log_every": 1, "dev_every": 4,
            "checkpoint_every": 2, "wandb_project": None,
        },
        "output": str(output),
    }  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = mapping
        for key in parents:
            place = place[int(key)] if key.isdigit() else place.setdefault(key, {})
        place[last] = value
    return RunConfig.from_mapping(mapping)


def fill(config: RunConfig, folder: Path, **options) -> TargetCache:
    Caching(config, folder).run(**options)
    return TargetCache(folder)


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory):
    """Of :func:`recipe`, in several shards."""
    return fill(recipe(root), tmp_path_factory.mktemp("cache") / "out", shard_bytes=30_000)


def stream(config: RunConfig, cache: TargetCache | None) -> BatchStream:
    return BatchStream(config.data, config.distortion, seed=config.seed, targets_cache=cache)


def cuts(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Cut -> key and samples."""
    entries = (entry for name in (*config.data.cuts, *config.data.dev_cuts) for entry in read_entries(name, None))
    return {json.loads(entry.line)["id"]: (entry_key(entry), entry.samples) for entry in entries}


def whole(cache: TargetCache, config: RunConfig, name: str) -> torch.Tensor:
    place = cache.find(cuts(config)[name][0])
    return cache._shard(place.shard).read(place.row, place.frames)


# ---- the same numbers


class Rounded:
    """An aggregator whose targets are rounded as the cache rounds them."""

    def __init__(self, exactly):
        self.exactly = exactly

    def __getattr__(self, name):
        return getattr(self.exactly, name)

    def __call__(self, states):
        return [value.half().float() for value in self.exactly(states)]


@pytest.mark.parametrize(
    ("aggregation", "layers"), [*((name, [1, 3]) for name in AGGREGATIONS), ("teacher-differences", [[1, 2], 3])]
)
def test_a_cached_step_is_an_online_step(aggregation, layers, root, tmp_path):
    """Without crops: the loss up to float16's rounding, and the loss of rounded targets nearly exactly."""
    layer_norm = aggregation == "layerwise-concatenation"
    config = recipe(
        root,
        objective__aggregation=aggregation,
        data__max_crop_samples=None,
        teachers__0__layers=layers,
        teachers__1__layers=layers,
        teachers__1__layer_norm_targets=layer_norm,
        **{"teachers__1__weight": 3.0} if not layer_norm else {},
    )
    cache = fill(config, tmp_path / "cache")
    torch.manual_seed(0)
    online = Distiller(config.distill, load_teachers(config)).eval()
    cached = Distiller(config.distill, cached_teachers(config, cache)).eval()
    for name, tensor in cached.student.state_dict().items():
        if "encoder.layer_norm" not in name:
            assert torch.equal(tensor, online.student.state_dict()[name]), f"{name} does not start from the teacher"
    cached.load_state_dict(online.state_dict())
    exactly = online.aggregator
    for batch in stream(config, cache).loader(0):
        assert batch.cached.rows.dtype == torch.float16
        plain = dataclasses.replace(batch, cached=None)
        ours, exact = cached(batch, details=True), online(plain, details=True)
        online.aggregator = Rounded(exactly)
        rounded = online(plain).loss
        online.aggregator = exactly
        assert ours.frames == exact.frames
        torch.testing.assert_close(ours.loss, exact.loss, rtol=1e-3, atol=0)
        torch.testing.assert_close(ours.loss, rounded, rtol=1e-5, atol=0)
        assert not torch.equal(ours.loss, exact.loss), "were the targets computed again?"
        unknown = {n for n in exact.metrics if "/hubert/" in n or "/wavlm/" in n} if "average" in aggregation else set()
        assert exact.metrics.keys() - ours.metrics.keys() == unknown
        for name, value in ours.metrics.items():
            torch.testing.assert_close(value, exact.metrics[name], rtol=2e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("workers", [0, 1])
def test_crops_take_matching_frames(workers, root, cache):
    """Frame i of a crop that starts at sample 320 k is frame k + i of the whole utterance, to the crop's end."""
    config = recipe(root, data__num_workers=workers)
    student = Student(config.student)
    cropped = 0
    for batch in stream(config, cache).loader(0):
        assert torch.equal(batch.cached.frames, student.frame_lengths(batch.lengths))
        rows = batch.cached.rows.split(batch.cached.frames.tolist())
        for name, start, targets in zip(batch.utterances, batch.starts.tolist(), rows, strict=True):
            assert start % 320 == 0
            cropped += start > 0
            assert torch.equal(targets, whole(cache, config, name)[start // 320 :][: len(targets)])
    assert cropped > 2


def test_a_cropped_step_is_an_online_step(root, tmp_path, monkeypatch):
    """With a teacher whose frames depend on their own samples alone, it does not matter that it heard all of them."""
    monkeypatch.setattr(filling, "load_teachers", lambda configs: [h.TinyTeacher()])
    one = [{"name": "fake", "transformers": "unused", "layers": [1, 2]}]
    config = recipe(root, teachers=one, student__initialize_from=None)
    cache = fill(config, tmp_path / "cache")
    online = Distiller(config.distill, [h.TinyTeacher()]).eval()
    cached = Distiller(config.distill, cached_teachers(config, cache)).eval()
    cached.load_state_dict(online.state_dict())
    starts = []
    for epoch in (0, 1):
        for batch in stream(config, cache).loader(epoch):
            starts += batch.starts.tolist()
            exact = online(dataclasses.replace(batch, cached=None))
            torch.testing.assert_close(cached(batch).loss, exact.loss, rtol=1e-4, atol=0)
    assert len({start for start in starts if start}) > 5


def test_crops_to_the_last_sample(root, cache):
    """Every crop of every length that ends with the recording has exactly its frames; within a frame none starts."""
    config = recipe(root)
    name, (_, samples) = max(cuts(config).items(), key=lambda item: item[1][1])
    cut = types.SimpleNamespace(id=name, start=0.0, duration=samples / 16000)
    everything = whole(cache, config, name)
    for start in range(0, samples - 400 + 1, 320):
        for missing in (0, 1, 79, 80, 81, 240):  # at the end
            length = samples - start - missing
            if length >= 400:
                found = cache.read(cut, start, length)
                count = (length - 400) // 320 + 1
                assert torch.equal(found, everything[start // 320 :][:count])
                assert len(found) == count
    with pytest.raises(ValueError, match="within a frame"):
        cache.read(cut, 100, 1000)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_teachers_run_in_the_recipe_s_precision(precision, root, cache, tmp_path):
    """As they do in training; and a run in that precision takes the targets."""
    config = recipe(root, tmp_path / "run", trainer__precision=precision, trainer__max_steps=2)
    rounded = fill(config, tmp_path / "cache")
    exact, found = (whole(one, config, "train9.wav") for one in (cache, rounded))
    assert 1e-4 < (found - exact).abs().mean() < 0.05
    assert train(dataclasses.replace(config, targets=TargetsConfig(cache=str(tmp_path / "cache")))) == 0
    assert len(h.logged(tmp_path / "run")) == 2


# ---- what is written


def test_what_a_cache_holds(root, cache):
    config = recipe(root)
    every = cuts(config)
    assert len(cache) == len(every) == 19
    paths = sorted(cache.folder.glob("targets-*.safetensors"))
    assert len(paths) > 4
    assert {path.name for path in cache.folder.iterdir()} - {path.name for path in paths} == {
        "cache.json", "index.safetensors", "initial.safetensors",
    }  # fmt: skip
    for name, (key, samples) in every.items():
        assert cache.find(key).frames == (samples - 400) // 320 + 1
        assert whole(cache, config, name).shape == (cache.find(key).frames, 4 * 24)
    for path in paths[:-1]:
        assert 30_000 <= Shard(path).size * 96 * 2 < 30_000 + 2 * 96 * 90, "a shard is closed by the cut that fills it"
    start = cache.start(config.student)
    assert "encoder.layers.1.attention.q_proj.weight" in start
    assert not any(name.startswith("encoder.layers.2") for name in start), "the student has two layers"
    # Nothing is missing: nothing is computed, and no teacher is loaded.
    shutil.copytree(cache.folder, root / "again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "load_teachers", None)
        Caching(config, root / "again").run()
    assert sorted(os.listdir(root / "again")) == sorted(os.listdir(cache.folder))


def write_recipe(path: Path, config: RunConfig) -> str:
    path.write_text(yaml.safe_dump(config.to_mapping()))
    return str(path)


def test_estimate_writes_nothing(root, tmp_path, capsys):
    file = write_recipe(tmp_path / "recipe.yaml", recipe(root))
    before = sorted(tmp_path.rglob("*")), sorted(root.rglob("*"))
    assert main(["cache-targets", file, str(tmp_path / "out"), "--estimate"]) == 0
    assert (sorted(tmp_path.rglob("*")), sorted(root.rglob("*"))) == before
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    every = cuts(recipe(root))
    frames = sum((samples - 400) // 320 + 1 for _, samples in every.values())
    assert printed["cuts"].startswith("19 (0.005 h")
    assert printed["targets"].startswith("24 + 24 + 24 + 24 values")
    assert float(printed["size"].split()[0]) == pytest.approx(frames * 96 * 2e-9, rel=1e-3)
    assert "h of speech an hour, cpu)" in printed["time"]


def test_parts_share_the_work(root, cache, tmp_path):
    """Two processes do about half each; the next one puts it together."""
    config, folder = recipe(root), tmp_path / "out"
    for part in (0, 1):
        Caching(config, folder, part=(part, 2)).run()
    sizes = [len(Shard(folder / f"targets-00{part}-00000.safetensors").keys) for part in (0, 1)]
    assert sum(sizes) == 19
    assert min(sizes) > 4
    with pytest.raises(UserError, match=r"is incomplete; `s3prl-ekd cache-targets RECIPE .*` goes on"):
        TargetCache(folder)
    together = fill(config, folder)
    for name in cuts(config):
        torch.testing.assert_close(whole(together, config, name), whole(cache, config, name), rtol=2e-3, atol=1e-3)


def test_values_that_float16_cannot_hold(root, tmp_path, caplog, monkeypatch):
    """Large ones are stored as its largest, with a warning; a recording that gives NaN is a bad one."""
    monkeypatch.setattr(logging.getLogger("s3prl_ekd"), "propagate", True)
    original = base.ModelTeacher.hidden_states

    def odd(self, waveforms, lengths, **kwargs):
        output = original(self, waveforms, lengths, **kwargs)
        first, second = output.rows
        if self.name == "wavlm":
            second = second * 1e6
        starts = output.packing.frames.cumsum(0) - output.packing.frames
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            if length == 4800 + 1501 * 5:
                first[start + 3, 2] = torch.nan
        return dataclasses.replace(output, rows=(first, second))

    monkeypatch.setattr(base.ModelTeacher, "hidden_states", odd)
    config = recipe(root)
    cache = fill(config, tmp_path / "out")
    assert caplog.text.count("Use layer_norm_targets: true") == 1
    assert "target wavlm/3: values up to" in caplog.text
    values = whole(cache, config, "train3.wav")
    assert torch.isfinite(values).all()
    assert values.abs().max() == 65504
    assert (tmp_path / "out" / "bad_recordings.tsv").read_text().splitlines()[1].startswith("train5.wav\t")
    assert len(cache) == 18
    # In training it is skipped like other bad recordings.
    trained = stream(config, cache)
    names = {name for batch in trained.loader(0) for name in batch.utterances}
    assert names == {f"train{i}.wav" for i in range(16)} - {"train5.wav"}
    assert trained.bad_recordings.bad == 1


# ---- processes that are killed


def _killed_at_file(config: RunConfig, folder: Path, count: int) -> None:
    """Before the ``count``-th file of targets has its name."""
    calls = iter(range(1, 1000))
    fsync = os.fsync

    def die_at(handle):
        if "targets-" in os.readlink(f"/proc/self/fd/{handle}") and next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    files.os.fsync = die_at
    torch.set_num_threads(1)
    Caching(config, folder).run(shard_bytes=30_000)


def test_killed_while_caching(root, cache, tmp_path, monkeypatch):
    """Finished files are kept, nothing is computed twice, the result is that of an uninterrupted run."""
    config, folder = recipe(root), tmp_path / "out"
    process = h._context.Process(target=_killed_at_file, args=(config, folder, 4))
    process.start()
    assert h.finish(process) == -signal.SIGKILL
    kept = {path.name: path.read_bytes() for path in folder.glob("targets-*.safetensors")}
    assert len(kept) == 3
    assert list(folder.glob(".targets-*.part.safetensors"))
    with pytest.raises(UserError, match="is incomplete"):
        TargetCache(folder)
    done = sum(len(Shard(folder / name).keys) for name in kept)
    heard, compute = [], Caching._compute
    monkeypatch.setattr(Caching, "_compute", lambda self, b: heard.extend(b.utterances) or compute(self, b))
    resumed = fill(config, folder, shard_bytes=30_000)
    assert len(heard) == len(set(heard)) == 19 - done
    assert all((folder / name).read_bytes() == contents for name, contents in kept.items())
    assert not list(folder.glob(".*"))
    for name in cuts(config):
        torch.testing.assert_close(whole(resumed, config, name), whole(cache, config, name), rtol=2e-3, atol=1e-3)


def _on_a_full_disk(config: RunConfig, folder: Path) -> None:
    torch.set_num_threads(1)
    h.fill_disk()
    with pytest.raises(UserError) as error:
        Caching(config, folder).run()
    folder.with_suffix(".error").write_text(str(error.value))


def test_full_disk(root, tmp_path):
    """No file may exceed 100 kB here: one line says so, and nothing is left of the attempt."""
    process = h._context.Process(target=_on_a_full_disk, args=(recipe(root), tmp_path / "out"))
    process.start()
    assert h.finish(process) == 0
    assert "targets-000-00000.safetensors: cannot be written" in (tmp_path / "out.error").read_text()
    assert sorted(os.listdir(tmp_path / "out")) == ["cache.json", "initial.safetensors"]


def _train(config: RunConfig, resume: bool, die_at: int | None) -> None:
    """A run that is killed when it has been fed so many batches; its exit status is the command line's."""
    torch.set_num_threads(1)
    calls, step = iter(range(1, 1000)), DistillModule.training_step

    def training_step(self, *args):
        if next(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    DistillModule.training_step = training_step
    try:
        status = train(config, resume=resume)
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)


def run_in_process(config: RunConfig, *, resume: bool = False, die_at: int | None = None) -> int:
    process = h._context.Process(target=_train, args=(config, resume, die_at))
    process.start()
    return h.finish(process)


def test_distill_without_teachers_killed_and_resumed(root, cache, tmp_path):
    """The teachers' names cannot be loaded; the losses are those of the uninterrupted run, bit for bit."""
    copy = tmp_path / "cache"
    shutil.copytree(cache.folder, copy)
    made_with = json.loads((copy / "cache.json").read_text())
    for name in ("hubert", "wavlm"):
        made_with["made_with"][f"teachers.{name}.transformers"] = "/nowhere/" + name
    (copy / "cache.json").write_text(json.dumps(made_with))
    config = functools.partial(
        recipe,
        root,
        teachers__0__transformers="/nowhere/hubert",
        teachers__1__transformers="/nowhere/wavlm",
        targets__cache=str(copy),
    )
    with pytest.raises(UserError, match="nowhere"):
        load_teachers(config())
    whole, output = config(tmp_path / "whole"), tmp_path / "run"
    assert run_in_process(whole) == 0
    losses = h.logged(whole.output)
    assert sorted(losses) == list(range(1, 9))
    assert len(h.logged(whole.output, "train/l1/wavlm/3")) == 8
    assert sorted(h.logged(whole.output, "dev/loss")) == [4, 8]
    load_student(tmp_path / "whole" / "student")

    assert run_in_process(config(output), die_at=4) == -signal.SIGKILL
    moved = tmp_path / "moved"
    copy.rename(moved)  # the same targets elsewhere
    assert run_in_process(config(output, targets__cache=str(moved)), resume=True, die_at=4) == -signal.SIGKILL
    assert run_in_process(config(output, targets__cache=str(moved)), resume=True) == 0
    for folder in (output, whole.output):
        path = Path(folder, "checkpoints", "last.ckpt")
        states = torch.load(path, weights_only=True)
        states["EKD_Run"]["recipe"].pop("targets")
        torch.save(states, path.resolve())
    assert_same_run(output, whole.output)

    with pytest.raises(UserError, match=r"targets\.cache was .*, now it is none"):
        stream(config(output, targets__cache=None), None).require_identity(h.checkpoint(output)["EKD_Run"]["data"])


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers__0__layers": [1, 2]}, r"teachers\.hubert\.layers: \[1, 3\] in the cache, \[1, 2\] in the recipe"),
        ({"teachers__0__layer_norm_targets": True}, r"teachers\.hubert\.layer_norm_targets: False in the cache, True"),
        ({"teachers__1__normalize_waveform": True}, r"teachers\.wavlm\.normalize_waveform: None in the cache, True"),
        ({"teachers__1__transformers": "elsewhere"}, r"teachers\.wavlm\.transformers: '.*wavlm' in the cache, 'else"),
        ({"objective__aggregation": "layerwise-average"}, r"objective\.aggregation: 'separate-heads' in the cache"),
        ({"teachers__1__name": "other"}, r"teachers: \['hubert', 'wavlm'\] in the cache, \['hubert', 'other'\]"),
        ({"distortion__teacher_input": "distorted"}, "distorted speech cannot be cached, since .* in every epoch"),
        ({"objective__loss_on_padding": True}, "padding cannot be cached, since it depends on the other utterances"),
        ({"student__initialize_from": "wavlm"}, "does not keep the first 2 layers of 'wavlm'"),
        ({"student__num_hidden_layers": 3}, "does not keep the first 3 layers of 'hubert'"),
    ],
)
def test_another_recipe_is_refused(change, message, root, cache, tmp_path):
    config = recipe(root, tmp_path / "run", targets__cache=str(cache.folder), **change)
    with pytest.raises(UserError, match=message):
        open_inputs(config, 0, 1)
    if "student" not in next(iter(change)):
        with pytest.raises(UserError, match=message):
            Caching(config, cache.folder)


def test_what_targets_do_not_depend_on_is_free(root, cache):
    changed = recipe(
        root,
        teachers__0__weight=5.0,  # of the loss
        objective__cosine_weight=2.0,
        data__batch_seconds=9.0,
        student__num_hidden_layers=1,
        targets__cache=str(cache.folder),
    )
    distiller = open_inputs(changed, 0, 1).distiller
    assert [target.weight for target in distiller.targets] == pytest.approx([5 / 12, 5 / 12, 1 / 12, 1 / 12])


def test_the_average_depends_on_weights(root):
    plain, weighted = (recipe(root, objective__aggregation=AGGREGATIONS[0], teachers__0__weight=w) for w in (1.0, 2.0))
    with pytest.raises(UserError, match=r"teachers\.hubert\.weight: 1\.0 in the cache, 2\.0 in the recipe"):
        settings.require_same(Path("out"), {"made_with": settings.describe(plain)}, weighted)


def test_a_setting_that_is_new_makes_another_cache(root, monkeypatch):
    """And a cache from before it has the default."""
    config = recipe(root)
    stored = {"made_with": settings.describe(config)}
    new = {"teachers.own_forward", "teachers.weight"}  # as if these two had not been there
    monkeypatch.setattr(settings, "FREE", settings.FREE - new)
    settings.require_same(Path("out"), stored, config)
    for change in ({"teachers__0__own_forward": True}, {"teachers__1__weight": 2.0}):
        with pytest.raises(
            UserError, match=r"teachers\.\w+\.(own_forward: False|weight: 1\.0) in the cache, (True|2\.0)"
        ):
            settings.require_same(Path("out"), stored, recipe(root, **change))


def test_a_cache_of_an_earlier_version_is_read():
    """It was written before settings were described by exclusion."""
    teachers = [{"name": name, "transformers": name, "layers": [1, 3]} for name in ("hubert", "wavlm")]
    teachers[1] |= {"layer_norm_targets": True, "weight": 2.0}
    average = {"aggregation": AGGREGATIONS[0]}
    config = DistillConfig.from_mapping({"teachers": teachers, "objective": average})
    cache = TargetCache(TESTS / "data" / "cache_format_1").require(config)
    described, stored = settings.describe(config), cache._stored["made_with"]
    keys = ("student", "units", "principal_components")
    new = {f"teachers.{name}.{key}" for name in ("hubert", "wavlm") for key in keys}
    assert described == stored | dict.fromkeys(new)
    cut = types.SimpleNamespace(id="1.wav", start=0.0, duration=1920 / 16000)
    targets = cache.read(cut, 320, 1600)
    assert targets.shape == (4, 48)
    assert torch.equal(targets, cache.read(cut, 0, 1920)[1:])
    assert 0.1 < targets.float().std() < 10


@pytest.mark.parametrize("name", ["objective.mse_weight", "teachers.hubert.codebook", "taps"])
def test_a_cache_of_a_later_version_is_refused(name, root):
    stored = {"made_with": settings.describe(recipe(root)) | {name: 1}}
    with pytest.raises(UserError, match=rf"cache\.json: unknown key .*{name.rpartition('.')[2]}.*; another version"):
        settings.require_same(Path("out"), stored, recipe(root))


def test_start_of_another_student_is_added(root, cache, tmp_path):
    """Without computing a target again."""
    shutil.copytree(cache.folder, tmp_path / "out")
    config = recipe(root, student__initialize_from="wavlm", targets__cache=str(tmp_path / "out"))
    Caching(config, tmp_path / "out").run()
    state = load_teachers(config)[1].encoder_state()
    start = TargetCache(tmp_path / "out").start(config.student)
    assert all(torch.equal(state[name], tensor) for name, tensor in start.items())
    open_inputs(config, 0, 1)


@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_a_copy_starts_from_the_cache(root, cache, tmp_path, layers):
    """What it needs is added to a cache that lacks it: final LayerNorm, all layers asked for, architecture."""
    shutil.copytree(cache.folder, tmp_path / "out")
    student = {"copy": "hubert", "copy_layers": layers}
    config = recipe(root, student=student, targets__cache=str(tmp_path / "out"))
    stored = TargetCache(tmp_path / "out")
    with pytest.raises(UserError, match=r"student.copy: .*out does not keep the architecture and all weights of 'hub"):
        Distiller(config.distill, cached_teachers(config, stored))
    Caching(config, tmp_path / "out").run()
    copies = [
        Distiller(config.distill, teachers).student
        for teachers in (cached_teachers(config, stored), load_teachers(config))
    ]
    assert copies[0].config == copies[1].config
    assert copies[0].config.num_hidden_layers == (3 if layers is None else 2)
    weights = [one.state_dict() for one in copies]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_an_architecture_that_was_kept_before_it_said_what_is_added_to_variances(tmp_path):
    student = StudentConfig(copy="hubert", copy_layers=(0,))
    architecture = Architecture.of(EncoderConfig(), 1e-5)
    write_start(tmp_path, student, {"weight": torch.ones(1)}, architecture)
    start = read_start(tmp_path, student)
    assert start is not None
    assert start.architecture == architecture
    older = architecture.to_mapping()
    del older["normalization_eps"]
    assert Architecture.from_saved(older, "a cache").normalization_eps == 1e-7


def test_no_cache_and_unknown_cuts(root, cache, tmp_path):
    with pytest.raises(UserError, match=r"holds no targets; `s3prl-ekd cache-targets RECIPE .*` computes them"):
        TargetCache(tmp_path)
    soundfile.write(tmp_path / "new.wav", speech_like(9000).numpy(), 16000)
    soundfile.write(tmp_path / "train0.wav", speech_like(4900).numpy(), 16000)  # a known name, another length
    manifest = write_manifest(tmp_path / "new.jsonl.gz", folder_recordings(tmp_path)).path
    config = recipe(root, data__cuts=[str(manifest)])
    for workers in (0, 1):
        config = recipe(root, data__cuts=[str(manifest)], data__num_workers=workers)
        with pytest.raises(UserError, match=r"cut (new|train0)\.wav is not in .*; `s3prl-ekd cache-tar.*` adds"):
            list(stream(config, cache).loader(0))
    shutil.copytree(cache.folder, tmp_path / "out")
    larger = fill(config, tmp_path / "out")
    assert len(larger) == 21
    assert sum(len(batch.utterances) for batch in stream(config, larger).loader(0)) == 2


def test_recordings_that_cannot_be_told_apart(root, tmp_path):
    """One name and length, two files; the same file in two manifests is one cut."""
    (tmp_path / "more").mkdir()
    shutil.copy(root / "train" / "train4.wav", tmp_path / "more" / "train4.wav")
    other = write_manifest(tmp_path / "more.jsonl.gz", folder_recordings(tmp_path / "more")).path
    with pytest.raises(UserError, match=r"cut train4\.wav of .*more.json.* and that of .*train.json.* have one name"):
        survey(recipe(root, data__dev_cuts=[str(other)]).data)
    same = survey(recipe(root, data__dev_cuts=[str(root / "train.jsonl.gz")]).data)
    assert len(same.keys) == 16
    assert cut_key("a", 0.0, 5) != cut_key("a", 0.0, 6) != cut_key("a", 1.0, 6) != cut_key("b", 1.0, 6)


# ---- damage


@pytest.fixture
def damaged(cache, tmp_path):
    """A copy of the cache with a flipped bit in the targets of its second file; that file."""
    folder = tmp_path / "damaged"
    shutil.copytree(cache.folder, folder)
    path = sorted(folder.glob("targets-*.safetensors"))[1]
    shard = Shard(path)
    row = int(shard.frames[0]) + 2
    contents = bytearray(path.read_bytes())
    at = contents.index(shard.read(row, 1).numpy().tobytes())
    contents[at + 5] ^= 4
    path.write_bytes(contents)
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_found_when_it_is_read(workers, root, damaged):
    both = [str(root / name) for name in ("train.jsonl.gz", "dev.jsonl.gz")]
    config = recipe(root, data__num_workers=workers, data__cuts=both)
    with pytest.raises(UserError, match=rf"{damaged.name}: damaged .*; delete it and run"):
        list(stream(config, TargetCache(damaged.parent)).loader(0))


def test_damaged_files_are_made_again(root, damaged, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("s3prl_ekd"), "propagate", True)
    caplog.set_level(logging.INFO)
    config, folder = recipe(root), damaged.parent
    with pytest.raises(UserError, match=rf"damaged: {damaged.name}; delete them"):
        Caching(config, folder).run(verify=True)
    held = len(Shard(damaged).keys)
    damaged.unlink()
    with pytest.raises(SourceError, match=rf"{damaged.name}: missing; run"):
        list(stream(config, TargetCache(folder)).loader(0))
    caplog.clear()
    cache = fill(config, folder, verify=True)
    assert f"{held} cuts to compute" in caplog.text
    assert len(cache) == 19
    assert sum(len(batch.utterances) for batch in stream(config, cache).loader(0)) == 16


def test_files_that_are_short_or_of_another_run(root, cache, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(cache.folder, folder)
    paths = sorted(folder.glob("targets-*.safetensors"))
    shutil.copy(paths[1], paths[2])
    with pytest.raises(SourceError, match=rf"{paths[2].name}: has changed since the index was made"):
        list(stream(recipe(root), TargetCache(folder)).loader(0))
    for name in (paths[0].name, "index.safetensors", "initial.safetensors"):
        contents = (folder / name).read_bytes()
        (folder / name).write_bytes(contents[:-10])
        with pytest.raises(SourceError, match=rf"{name}: damaged or incomplete .*; delete it and run `s3prl-ekd"):
            files.CheckedFile(folder / name)
        (folder / name).write_bytes(contents)
    contents = bytearray((folder / "index.safetensors").read_bytes())
    contents[-3] ^= 1
    (folder / "index.safetensors").write_bytes(contents)
    with pytest.raises(SourceError, match="its checksum is another"):
        TargetCache(folder)


def forge(path: Path, metadata: dict | None = None, **tensors) -> None:
    """Change a file so that its checksum fits."""
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118
        metadata = {**file.metadata(), **(metadata or {})}
    held = {name: tensor for name, tensor in held.items() if tensor is not None}
    path.unlink()
    files.save_checked(path, held, metadata)


FORGED = {
    "an entry is missing": {"rows": None},
    "another kind": {"rows": torch.zeros(19)},
    "frames of no cut": {"frames": torch.full((20,), 3)},
    "negative frames": {"frames": torch.full((19,), -3)},
    "absurd frames": {"frames": torch.full((19,), 2**40)},
    "no such file": {"shards": torch.full((19,), 10**6)},
    "a negative file": {"shards": torch.full((19,), -1)},
    "a negative row": {"rows": torch.full((19,), -(2**40))},
    "a row past the end": {"rows": torch.full((19,), 2**40)},
    "not in order": {"keys": torch.arange(19).flip(0)},
    "fewer checksums than files": {"checksums": torch.zeros(1, dtype=torch.long)},
    "a name that leads elsewhere": {"metadata": {"shards": json.dumps(["../../etc/passwd"] * 6)}},
    "no list": {"metadata": {"shards": "7"}},
    "no JSON": {"metadata": {"shards": "["}},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_forged_index_is_named(change, root, cache, tmp_path):
    folder = shutil.copytree(cache.folder, tmp_path / "out")
    forge(folder / "index.safetensors", **change)
    with pytest.raises(UserError, match=r"index\.safetensors: damaged.*; delete it and run `s3prl-ekd") as error:
        list(stream(recipe(root), TargetCache(folder).require(recipe(root))).loader(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": None},
        {"frames": torch.tensor([-5, 10**9])},
        {"checksums": torch.zeros(1, dtype=torch.long)},
        {"targets": torch.zeros(7, dtype=torch.half)},
        {"targets": None},
    ],
)
def test_a_forged_file_of_targets_is_named(change, root, cache, tmp_path):
    folder = shutil.copytree(cache.folder, tmp_path / "out")
    name = min(folder.glob("targets-*")).name
    forge(folder / name, **change)
    for use in (lambda: TargetCache(folder).require(recipe(root)), lambda: Caching(recipe(root), folder).run()):
        with pytest.raises(UserError, match=rf"{name}: damaged or incomplete .*; delete it and run"):
            use()


@pytest.mark.parametrize("key", ["batch_seconds", "global_batch_seconds"])
def test_out_of_memory_the_key_that_was_given_is_named(key, root, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(filling, "load_teachers", lambda config: [h.TinyTeacher()])
    monkeypatch.setattr(filling, "teacher_states", full)
    one = [{"name": "fake", "transformers": "unused", "layers": [1, 2]}]
    sizes = {"data__batch_seconds": None, f"data__{key}": 8.0}
    config = recipe(root, teachers=one, student__initialize_from=None, trainer__accumulate=2, **sizes)
    with pytest.raises(UserError, match=rf"out of memory .*; lower data\.{key} \(now 8\), or cut long recordings"):
        Caching(config, tmp_path / "out").run()


@pytest.mark.parametrize(
    "text",
    [
        "[]", "[" * 100_000, '{"format": 1}', '{"format": 1, "made_with": [], "widths": {}}', "{\xff}",
        '{"format": 1, "made_with": {}, "widths": {"hubert": -1}}', '{"format": 1, "made_with": {}, "widths": 3}',
    ],
)  # fmt: skip
def test_a_damaged_description_is_named(text, cache, tmp_path):
    folder = shutil.copytree(cache.folder, tmp_path / "out")
    (folder / "cache.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"cache\.json: cannot be read .*; delete it and run"):
        TargetCache(folder)


@pytest.mark.parametrize("widths", [{"hubert": 24}, {"hubert": 24, "wavlm": 10**12}])
def test_widths_that_do_not_fit_are_named(widths, root, cache, tmp_path):
    """Before memory for such heads is taken."""
    folder = shutil.copytree(cache.folder, tmp_path / "out")
    stored = json.loads((folder / "cache.json").read_text()) | {"widths": widths}
    (folder / "cache.json").write_text(json.dumps(stored))
    with pytest.raises(
        UserError, match=r"cache\.json: damaged \((it says no width of wavlm|its widths make 20+48 val)"
    ):
        open_inputs(recipe(root, targets__cache=str(folder)), 0, 1)


def test_no_usable_recording_makes_no_cache(root, tmp_path):
    """One line, and no index that a run would take."""
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "a.wav", speech_like(9000).numpy(), 16000)
    manifest = write_manifest(tmp_path / "cuts.jsonl.gz", folder_recordings(tmp_path / "speech")).path
    (tmp_path / "speech" / "a.wav").unlink()
    config = recipe(root, data__cuts=[str(manifest)], data__dev_cuts=[])
    with pytest.raises(UserError, match=r"not one usable recording, so there are no targets \(listed in .*bad_rec"):
        Caching(config, tmp_path / "out").run()
    assert not (tmp_path / "out" / "index.safetensors").exists()


def test_command_line_mistakes(root, tmp_path, capsys):
    file = write_recipe(tmp_path / "recipe.yaml", recipe(root))
    for arguments, message in (
        (["--part", "2/2"], "expected K/N"),
        (["--shard-gb", "0"], "--shard-gb: must be positive"),
        (["--device", "quantum"], "--device quantum: unknown; expected cpu, cuda"),
        (["distortion.teacher_input=distorted"], "cannot be cached"),
    ):
        assert main(["cache-targets", file, str(tmp_path / "out"), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
