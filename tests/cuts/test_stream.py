"""The Lhotse data road: manifests, buckets, exact positions whatever the workers and ranks, bad recordings, Shar."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import tarfile
import time
from dataclasses import dataclass

import pytest
import soundfile
import torch
from helpers_models import speech_like

from s3prl_ekd import cli
from s3prl_ekd.audio.bad_recordings import BadRecordings, Counts, SourceError
from s3prl_ekd.audio.batch import Loaded
from s3prl_ekd.audio.manifests import read_entries
from s3prl_ekd.audio.read import audio_files, load_audio
from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.config.recipe import DistortionConfig
from s3prl_ekd.cuts.bucketing import draw_batches, duration_bounds
from s3prl_ekd.cuts.manifests import folder_recordings, write_manifest, write_shar
from s3prl_ekd.cuts.shar import TarCache, TarReader
from s3prl_ekd.cuts.sources import mix_sources, resolve_sources
from s3prl_ekd.cuts.stream import BatchReader, BatchStream, Rank
from s3prl_ekd.errors import UserError

RATE = 16000
CLEAN = DistortionConfig()
NOISY = DistortionConfig.from_mapping({"seed": 3, "gaussian_noise": {"probability": 0.6}})


def write(path, waveform, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform.numpy(), rate, **options)
    return path


def manifest(folder, out):
    return str(write_manifest(out, folder_recordings(folder)).path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """61 recordings of 0.1 to 1.9 s (``speech``), their manifest, a second one, and a Shar folder of both."""
    root = tmp_path_factory.mktemp("corpus")
    for i in range(61):
        write(root / "speech" / f"{i % 4}/{i}.flac", speech_like(1600 + 479 * (i * 23 % 61), seed=i))
    for i in range(9):
        write(root / "more" / f"more{i}.wav", speech_like(8000 + 1000 * i, seed=100 + i))
    manifest(root / "speech", root / "speech.jsonl.gz")
    manifest(root / "more", root / "more.jsonl.gz")
    write_shar([str(root / "speech.jsonl.gz")], root / "shar", shard_size=10)
    return root


def config(*cuts, **extra) -> DataConfig:
    settings = {"batch_seconds": 5, "num_buckets": 4, "buffer_cuts": 30, "max_crop_samples": 16000, "num_workers": 0}
    return DataConfig.from_mapping({"cuts": [str(name) for name in cuts], "prefetch_batches": 2} | settings | extra)


def stream(*cuts, distortion=NOISY, seed=1, rank=0, world_size=1, targets_cache=None, bad=None, **extra) -> BatchStream:
    return BatchStream(
        config(*cuts, **extra),
        distortion,
        seed=seed,
        rank=Rank(rank, world_size),
        targets_cache=targets_cache,
        bad_recordings=bad,
    )


class FrameNumbers:
    """Targets that say which frame of the cut they are of."""

    identity = "numbers"

    def read(self, cut, start, samples):
        first = start // 320
        return torch.arange(first, first + (samples - 400) // 320 + 1).unsqueeze(1)


def assert_same(a, b):
    assert [x.utterances for x in a] == [x.utterances for x in b]
    for x, y in zip(a, b, strict=True):
        for name in ("clean", "distorted", "lengths", "starts"):
            assert torch.equal(getattr(x, name), getattr(y, name)), name


def names(batches):
    return [name for batch in batches for name in batch.utterances]


# --- positions --------------------------------------------------------------------------------------------------------


def test_any_position_of_any_epoch_with_any_workers(corpus):
    plain = stream(corpus / "speech.jsonl.gz", corpus / "more.jsonl.gz")
    epochs = [list(plain.loader(epoch)) for epoch in (0, 1)]
    assert len(epochs[0]) > 8
    assert any(not torch.equal(b.clean, b.distorted) for b in epochs[0])
    assert any((b.starts > 0).any() for b in epochs[0])
    for consumed in (1, 5, len(epochs[1]) - 1, len(epochs[1]), len(epochs[1]) + 3):
        assert_same(list(plain.loader(1, consumed)), epochs[1][consumed:])

    # Two workers and a planner, all of them ahead of what is consumed: 3 batches, then another process's rest.
    workers = stream(corpus / "speech.jsonl.gz", corpus / "more.jsonl.gz", num_workers=2)
    iterator = iter(workers.loader(1))
    taken = [next(iterator) for _ in range(3)]
    del iterator
    assert_same(taken + list(workers.loader(1, 3)), epochs[1])


def test_epochs_and_seeds_differ(corpus):
    def hear(seed, epoch):
        return list(stream(corpus / "speech.jsonl.gz", seed=seed, distortion=CLEAN).loader(epoch))

    first, second, other = hear(1, 0), hear(1, 1), hear(2, 0)
    assert sorted(names(first)) == sorted(names(second)) == sorted(names(other))
    assert names(first) != names(second) != names(other) != names(first)

    def starts(batches):
        return {n: int(s) for b in batches for n, s, k in zip(b.utterances, b.starts, b.lengths, strict=True) if s}

    assert len(starts(first)) > 10
    assert starts(first) != starts(second)
    assert_same(first, hear(1, 0))


def test_the_global_generators_stay_as_they_were(corpus):
    before = torch.get_rng_state(), random.getstate()
    list(stream(corpus / "speech.jsonl.gz", num_workers=1).loader(0))
    list(stream(corpus / "speech.jsonl.gz").loader(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_an_epoch(corpus, world_size):
    cuts = corpus / "speech.jsonl.gz"
    whole = list(stream(cuts).loader(2))
    ranks = [list(stream(cuts, rank=r, world_size=world_size).loader(2)) for r in range(world_size)]
    steps = -(-len(whole) // world_size)
    assert [len(batches) for batches in ranks] == [steps] * world_size
    # In turn they are the epoch of one rank, then empty: nothing twice, nothing lost.
    dealt = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert_same(dealt[: len(whole)], whole)
    assert all(batch.lengths.numel() == 0 and batch.utterances == () for batch in dealt[len(whole) :])
    assert_same(list(stream(cuts, rank=1, world_size=world_size).loader(2, 2)), ranks[1][2:])


def test_crops_are_where_they_say(corpus):
    """And cached targets make them start on whole frames, and ride with them."""
    for cache, step in ((None, 1), (FrameNumbers(), 320)):
        cropped = stream(corpus / "speech.jsonl.gz", targets_cache=cache, distortion=CLEAN)
        starts = []
        for batch in cropped.loader(0):
            for name, start, length, wave in zip(
                batch.utterances, batch.starts, batch.lengths, batch.clean, strict=True
            ):
                whole = load_audio(corpus / "speech" / name)
                assert length == min(16000, whole.numel())
                assert torch.equal(wave[:length], whole[start : start + length])
                assert not wave[length:].any()
                starts.append(int(start))
            assert batch.distorted is batch.clean
            if cache is not None:
                targets = batch.cached.rows.split(batch.cached.frames.tolist())
                assert [320 * int(rows[0]) for rows in targets] == batch.starts.tolist()
                assert batch.cached.frames.tolist() == [len(rows) for rows in targets]
        assert all(start % step == 0 for start in starts)
        assert cache or any(start % 320 for start in starts)
    uncropped = stream(corpus / "speech.jsonl.gz", max_crop_samples=None).loader(0)
    assert max(int(batch.lengths.max()) for batch in uncropped) == 1600 + 479 * 60


def test_clean_and_distorted_stay_one_tensor_through_workers(corpus):
    loader = stream(corpus / "speech.jsonl.gz", distortion=CLEAN, num_workers=1).loader(0)
    assert all(batch.distorted is batch.clean for batch in loader)


def test_dev_data_is_the_same_each_time(corpus):
    both = config(corpus / "speech.jsonl.gz", dev_cuts=[str(corpus / "more.jsonl.gz")])
    dev = BatchStream(both, NOISY, seed=1).dev_loader()
    first = list(dev)
    assert sorted(names(first)) == [f"more{i}.wav" for i in range(9)]
    assert_same(list(dev), first)
    assert stream(corpus / "speech.jsonl.gz").dev_loader() is None
    with pytest.raises(UserError, match=r"data\.dev_cuts: no file"):
        stream(corpus / "speech.jsonl.gz", dev_cuts=["nowhere.jsonl"]).dev_loader()


def test_workers_outlive_a_scheduler_s_signals(corpus):
    iterator = iter(stream(corpus / "speech.jsonl.gz", num_workers=1).loader(0))
    batches = [next(iterator)]
    children = multiprocessing.active_children()
    assert len(children) == 2  # one reads, one plans
    for child in children:
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGUSR1)
    batches += iterator
    assert len(names(batches)) == 61


# --- buckets ----------------------------------------------------------------------------------------------------------


@dataclass
class Item:
    samples: int


@pytest.mark.parametrize("buffer", [1, 50, 5000])
@pytest.mark.parametrize("most", [None, 7])
def test_buckets(buffer, most):
    draw = random.Random(0)
    items = [Item(draw.randint(400, 16000)) for _ in range(3000)]
    bounds = duration_bounds((item.samples for item in items), 6)
    assert len(bounds) == 5
    assert bounds == sorted(set(bounds))
    batches = list(draw_batches(items, bounds, budget=64000, most=most, buffer=buffer, rng=random.Random(1)))
    drawn = [item for batch in batches for item in batch]
    assert len(drawn) == len({id(item) for item in drawn}) == len(items)
    padded = [len(batch) * max(item.samples for item in batch) for batch in batches]
    assert max(padded) <= 64000
    assert max(map(len, batches)) <= (most or 64000)
    assert sum(item.samples for item in items) / sum(padded) > 0.75  # little padding
    again = draw_batches(items, bounds, budget=64000, most=most, buffer=buffer, rng=random.Random(1))
    assert all(a == b for a, b in zip(batches, again, strict=True))


def test_buckets_of_hardly_anything():
    assert duration_bounds([500], 30) == []
    assert duration_bounds([500] * 100, 30) == []
    long = [Item(90000), Item(500)]
    batches = list(draw_batches(long, [], budget=64000, most=None, buffer=10, rng=random.Random(0)))
    assert sorted(len(batch) for batch in batches) == [1, 1]


def test_sources_are_mixed_and_shards_shuffled(corpus):
    sources = resolve_sources([str(corpus / "shar"), str(corpus / "more.jsonl.gz")])

    def order(rng):
        return [json.loads(entry.line)["id"] for entry in mix_sources(sources, None, rng)]

    plain, shuffled = order(None), order(random.Random(0))
    assert sorted(plain) == sorted(shuffled)
    for found in (plain, shuffled):
        places = [place for place, name in enumerate(found) if name.startswith("more")]
        assert places[0] < 25
        assert places[-1] > 35
    shards = [[name for name in found if not name.startswith("more")] for found in (plain, shuffled)]
    assert shards[0] != shards[1]
    first = {json.loads(entry.line)["id"] for entry in read_entries(sources[0].manifests[0], None)}
    assert set(shards[0][:10]) == first


# --- sources ----------------------------------------------------------------------------------------------------------


def test_shar_folder_tars_and_patterns_give_what_the_files_give(corpus, tmp_path):
    def by_name(*cuts, **extra):
        batches = list(stream(*cuts, **extra).loader(0))
        rows = ((b, i) for b in batches for i in range(len(b.utterances)))
        return {b.utterances[i]: (b.clean[i, : b.lengths[i]], b.distorted[i, : b.lengths[i]]) for b, i in rows}

    shar = corpus / "shar"
    assert len(list(shar.glob("recording.*.tar"))) == 7
    files = by_name(corpus / "speech.jsonl.gz")
    everything = by_name(shar)
    assert everything.keys() == files.keys()
    assert all(torch.equal(a, b) for name in files for a, b in zip(files[name], everything[name], strict=True))
    part = by_name(shar / "cuts.{000000..000001}.jsonl.gz", shar / "recording.000006.tar")
    assert len(part) == 10 + 10 + 1
    assert by_name(shar / "cuts.*.jsonl.gz").keys() == files.keys()

    one = stream(shar)
    epoch = list(one.loader(1))
    assert isinstance(pickle.loads(pickle.dumps(one.reader))[1, []], Loaded)  # where workers are not forked
    assert_same(list(stream(shar, num_workers=2).loader(1, 4)), epoch[4:])
    assert [b.utterances for b in one.loader(0)] != [b.utterances for b in epoch]

    # What a command prints: tars are copied to the cache, whose oldest go when it is full.
    piped = by_name(
        f"pipe:cat {shar}/cuts.{{000000..000002}}.jsonl.gz", shar_cache=str(tmp_path), shar_cache_gb=0.0, num_workers=1
    )
    assert len(piped) == 30
    assert all(torch.equal(files[name][1], piped[name][1]) for name in piped)
    assert len(list(tmp_path.glob("*.tar"))) == 1


def test_what_cannot_be_resumed_is_named(corpus):
    files = f"pipe:cat {corpus}/speech.jsonl.gz"
    piped = stream(corpus / "more.jsonl.gz", files)
    assert len(names(piped.loader(0))) == 70
    with pytest.raises(UserError, match=r"data\.cuts: 'pipe:cat .*speech.jsonl.gz' cannot be resumed exactly"):
        piped.loader(0, 1)
    with pytest.raises(UserError, match="'pipe:cat"):
        piped.require_identity(piped.identity())
    with pytest.raises(UserError, match="the command ended with status 3"):
        list(stream(f"pipe:cat {corpus}/speech.jsonl.gz; exit 3").loader(0))


def test_a_position_means_the_same_or_is_refused(corpus, tmp_path):
    cuts = tmp_path / "cuts.jsonl.gz"
    cuts.write_bytes((corpus / "speech.jsonl.gz").read_bytes())
    stored = json.loads(json.dumps(stream(cuts).identity()))
    stream(cuts, num_workers=3, prefetch_batches=9).require_identity(stored)
    for other, message in (
        (stream(cuts, batch_seconds=7), r"data\.batch_seconds was 5\.0, now it is 7\.0"),
        (stream(cuts, world_size=2), "number of processes was 1, now it is 2"),
        (stream(cuts, seed=2), "seed was 1"),
        (stream(cuts, targets_cache=FrameNumbers()), "targets.cache was none, now it is numbers"),
        (stream(cuts, corpus / "more.jsonl.gz"), r"data\.cuts\[1\] was absent, now it is .*more.jsonl.gz"),
    ):
        with pytest.raises(UserError, match=message):
            other.require_identity(stored)
    lines = gzip.decompress(cuts.read_bytes()).splitlines(keepends=True)
    cuts.write_bytes(gzip.compress(b"".join(lines[::-1])))
    with pytest.raises(UserError, match=r"data\.cuts\[0\] was .*cuts.jsonl.gz"):
        stream(cuts).require_identity(stored)


def test_sources_that_cannot_be_used(corpus, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "cuts.json").write_text("[]")
    os.mkfifo(tmp_path / "fifo.jsonl")
    for name, message in (
        ("absent.jsonl.gz", "no file .*absent.jsonl.gz; `s3prl-ekd data`"),
        ("folder", "holds or matches no manifest of cuts"),
        ("*.jsonl.gz", "holds or matches no manifest of cuts"),
        ("cuts.json", "no manifest that can be read lazily"),
        ("fifo.jsonl", "no regular file"),
        ("shar/recording.000000.tar", "the manifest of .*recording.000000.tar"),
    ):
        with pytest.raises(UserError, match=message):
            stream(tmp_path / name)
    with pytest.raises(UserError, match=r"speech\.jsonl\.gz is named twice"):
        stream(corpus / "speech.jsonl.gz", corpus / "*.jsonl.gz")
    (tmp_path / "link.jsonl.gz").symlink_to(corpus / "speech.jsonl.gz")
    for same in (f"{corpus}/../{corpus.name}/speech.jsonl.gz", tmp_path / "link.jsonl.gz"):
        with pytest.raises(UserError, match=r"is named twice"):
            stream(corpus / "speech.jsonl.gz", same)
    with pytest.raises(UserError, match="stands for more than 1000000 manifests"):
        stream(tmp_path / "cuts.{0..99999999999}.jsonl.gz")
    (tmp_path / "linked").symlink_to(corpus)
    with pytest.raises(UserError, match=r"linked/speech\.jsonl\.gz, also as .*/speech\.jsonl\.gz, is named twice"):
        stream(corpus / "*.jsonl.gz", tmp_path / "linked" / "sp*.jsonl.gz")
    with pytest.raises(UserError, match=r"data\.batch_seconds: 5\.0 s hold no utterance of max_crop_samples 250000"):
        config("a", max_crop_samples=250_000)


def _changed(corpus, path, change):
    with gzip.open(corpus / "more.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    change(rows[2])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_lines_that_are_no_plain_cuts_stop_the_run(corpus, tmp_path, workers):
    speed = {"name": "Speed", "kwargs": {"factor": 1.1}}
    for number, (change, message) in enumerate(
        (
            (lambda row: row.pop("duration"), "line 3 has no duration"),
            (lambda row: row.update(type="PaddingCut"), "not a cut: {"),
            (lambda row: row.pop("recording"), "where plain cuts with a recording are expected"),
            (lambda row: row["recording"].update(transforms=[speed]), "asks for Speed, which is not done here"),
            (lambda row: row["recording"]["sources"][0].update(type="command"), "of type 'command' are not read"),
            (
                lambda row: row["recording"]["sources"][0].update(type="url", source="pipe:true"),
                "manifests run no commands",
            ),
            (lambda row: row["recording"]["sources"][0].update(type="shar"), "must be named cuts"),
        )
    ):
        if workers and number:
            continue
        broken = _changed(corpus, tmp_path / f"{number}.jsonl", change)
        with pytest.raises(UserError, match=message) as caught:
            list(stream(broken, num_workers=workers).loader(0))
        assert "\n" not in str(caught.value)
    (tmp_path / "torn.jsonl").write_text('{"duration": 1.0}\n{"dur')
    with pytest.raises(UserError, match="cannot be read after line 1"):
        list(stream(tmp_path / "torn.jsonl").loader(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(id=7),
        lambda row: row.update(start=float("nan")),
        lambda row: row.update(start=-1.0),
        lambda row: row.update(start="0"),
        lambda row: row.update(duration=1e12),
        lambda row: row.update(channel=None),
        lambda row: row["recording"].update(sources=None),
        lambda row: row["recording"]["sources"][0].update(source=None),
        lambda row: row["recording"]["sources"][0].update(channels=0),
    ],
)
def test_forged_cuts_stop_the_run_in_one_line(corpus, tmp_path, change):
    forged = _changed(corpus, tmp_path / "forged.jsonl", change)
    with pytest.raises(UserError, match=r"forged\.jsonl: ") as caught:
        list(stream(forged, distortion=CLEAN).loader(0))
    assert "\n" not in str(caught.value)


def test_manifests_that_were_edited_or_are_empty(corpus, tmp_path, caplog):
    with gzip.open(corpus / "more.jsonl.gz", "rt") as lines:
        rows = list(lines)
    edited = tmp_path / "edited.jsonl"
    edited.write_text("\ufeff" + "\n \n".join(rows).replace("\n", "\r\n") + "\r\n\r\n", encoding="utf-8", newline="")
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(rows))
    expected = names(stream(plain, distortion=CLEAN).loader(0))
    assert names(stream(edited, distortion=CLEAN).loader(0)) == expected
    assert not caplog.messages

    (tmp_path / "zero.jsonl.gz").touch()
    with gzip.open(tmp_path / "nothing.jsonl.gz", "wt") as file:
        file.write("\n")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    empty = ["zero.jsonl.gz", "nothing.jsonl.gz", "blank.jsonl"]
    for name in empty:
        with caplog.at_level(logging.WARNING):
            assert sorted(names(stream(plain, tmp_path / name, distortion=CLEAN).loader(0))) == sorted(expected)
        assert caplog.messages == [f"data.cuts: {tmp_path / name} is empty, no utterance in it"]
        caplog.clear()
        with pytest.raises(UserError, match=f"{name}: no utterance of at least a frame"):
            stream(tmp_path / name).loader(0)
        caplog.clear()

    list(stream(plain, "pipe:true", distortion=CLEAN).loader(0))
    assert "pipe:true: empty, no utterance in it" in caplog.messages

    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps(json.loads(row) | {"duration": 0.01}) + "\n" for row in rows))
    list(stream(plain, short, distortion=CLEAN).loader(0))
    assert any(f"{short}: all 9 utterances are shorter than a frame" in message for message in caplog.messages)


def test_channels_rates_and_parts_of_recordings(tmp_path):
    left, right = speech_like(24000, 1), speech_like(24000, 2)
    write(tmp_path / "audio" / "stereo.wav", torch.stack([left, right], dim=1), subtype="FLOAT")
    write(tmp_path / "audio" / "slow.wav", speech_like(12000, 3), rate=8000)
    cuts = manifest(tmp_path / "audio", tmp_path / "all.jsonl.gz")
    (batch,) = stream(cuts, distortion=CLEAN, max_crop_samples=None).loader(0)
    rows = dict(zip(batch.utterances, batch.clean, strict=True))
    assert batch.lengths.tolist() == [24000, 24000]
    assert torch.allclose(rows["stereo.wav"], (left + right) / 2, atol=1e-7)

    row = next(json.loads(e.line) for e in read_entries(cuts, None) if "stereo" in e.line)
    part = row | {"id": "part", "start": 0.25, "duration": 0.5, "type": "MonoCut", "channel": 1}
    (tmp_path / "part.jsonl").write_text(json.dumps(part) + "\n" + json.dumps(row["recording"]) + "\n")
    (batch,) = stream(tmp_path / "part.jsonl", num_buckets=1, distortion=CLEAN, max_crop_samples=None).loader(0)
    index = batch.utterances.index("part")
    assert torch.equal(batch.clean[index, : batch.lengths[index]], right[4000:12000])
    assert sorted(batch.utterances) == ["part", "stereo.wav"]  # a recording is a cut of all of it


def test_channels_in_files_of_different_length(tmp_path):
    """A few samples are how recorders differ; more is a bad recording, not the end of the run."""
    sources = []
    for channel, samples in enumerate((8000, 7900)):
        path = write(tmp_path / f"{channel}.wav", speech_like(samples, channel), subtype="FLOAT")
        sources.append({"type": "file", "channels": [channel], "source": str(path)})
    recording = {"id": "two", "sources": sources, "sampling_rate": RATE, "num_samples": 8000, "duration": 0.5}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(recording | {"channel_ids": [0, 1]}) + "\n")
    (batch,) = stream(tmp_path / "cuts.jsonl", distortion=CLEAN).loader(0)
    expected = (speech_like(8000, 0)[:7900] + speech_like(7900, 1)) / 2
    torch.testing.assert_close(batch.clean[0], expected)
    write(tmp_path / "1.wav", speech_like(5000, 1))
    torn = stream(tmp_path / "cuts.jsonl", distortion=CLEAN, bad=tmp_path / "bad.tsv")
    assert names(torn.loader(0)) == []
    assert "two: ends 3000 samples before the manifest says" in (tmp_path / "bad.tsv").read_text()


# --- bad recordings ---------------------------------------------------------------------------------------------------


def spoil(folder, number, how):
    path = folder / f"{number}.wav"
    wave = speech_like(8000, number)
    if how == "nan":
        wave[100] = float("nan")
        write(path, wave, subtype="FLOAT")
    elif how == "short":
        write(path, wave[:4000])
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    return path.name


BAD = ("nan", "short", "truncated", "empty", "gone")


@pytest.fixture
def spoiled(tmp_path):
    """12 recordings, of which the first five are bad in five ways, and their manifest."""
    for i in range(12):
        write(tmp_path / "audio" / f"{i}.wav", speech_like(8000, seed=i))
    cuts = manifest(tmp_path / "audio", tmp_path / "cuts.jsonl.gz")
    for i, how in enumerate(BAD):
        spoil(tmp_path / "audio", i, how)
    return cuts


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_recordings_are_skipped_listed_and_counted(spoiled, tmp_path, caplog, workers):
    listed = tmp_path / "run" / "bad_recordings.tsv"
    ranks = [
        stream(spoiled, rank=r, world_size=2, bad=listed, num_workers=workers, max_batch_utterances=1) for r in (0, 1)
    ]
    batches = [list(rank.loader(0)) for rank in ranks]
    assert [len(b) for b in batches] == [6, 6]
    assert sorted(names(batches[0] + batches[1])) == sorted(f"{i}.wav" for i in range(5, 12))
    assert sum(batch.lengths.numel() == 0 for batch in batches[0] + batches[1]) == 5
    assert [rank.bad_recordings.read for rank in ranks] == [6, 6]
    assert sum(rank.bad_recordings.bad for rank in ranks) == 5

    header, *rows = [line.split("\t") for line in listed.read_text().splitlines()]
    assert header == ["utterance", "problem"]
    problems = dict(rows)
    assert sorted(problems) == [f"{i}.wav" for i in range(5)]
    for i, message in enumerate(
        ("NaN or infinite", "ends 4000 samples before", "truncated", "empty file", "no such file")
    ):
        assert message in problems[f"{i}.wav"]
    assert sum(record.message.startswith("skipped: ") for record in caplog.records) == 5

    # Of several ranks none stops alone, however many are bad: they must stop together.
    ranks[0].bad_recordings.note(500, [(f"{i}.wav", "bad") for i in range(5)])
    message = ranks[1].bad_recordings.judge(Counts(503, 10))
    assert message == f"10 of 503 recordings read cannot be used (listed in {listed})"
    assert ranks[1].bad_recordings.judge(Counts(1000, 10)) is ranks[1].bad_recordings.judge(Counts(199, 199)) is None

    # The next epoch and a resumed run list nothing twice.
    list(ranks[0].loader(1))
    list(stream(spoiled, bad=listed).loader(1))
    assert len(listed.read_text().splitlines()) == 6


def test_too_many_bad_recordings_stop_the_run(tmp_path):
    bad = BadRecordings(tmp_path / "bad.tsv")
    for number in range(199):  # before 200, anything goes
        bad.note(1, [(f"a{number}", f"a{number}: no good")] if number < 3 else [])
    with pytest.raises(UserError, match=r"3 of 200 recordings read cannot be used \(listed in .*bad.tsv\)"):
        bad.note(1, [])
    fine = BadRecordings()
    fine.note(300, [("a", "a"), ("b", "b"), ("c", "c")])  # 1 %
    with pytest.raises(UserError, match=r"4 of 301 .*; the last one: d: torn"):
        fine.note(1, [("d", "d: torn")])


def test_storage_that_goes_is_noticed_however_long_it_was_there():
    for good in (0, 2000, 6_400_000):
        recordings = BadRecordings()
        recordings.note(good, [])
        with pytest.raises(UserError, match=r"recordings read cannot be used"):
            lose(recordings, 7 * 32)


def lose(recordings, count):
    for number in range(0, count, 32):
        recordings.note(32, [(f"{number + i}", "no such file") for i in range(32)])


def test_a_bad_recording_of_a_small_corpus_counts_once(tmp_path):
    """Whatever the number of epochs; and a resumed run knows it already."""
    for _ in range(2):
        recordings = BadRecordings(tmp_path / "bad.tsv")
        for _ in range(100):
            recordings.begin_pass()
            recordings.note(60, [("gone", "no such file")])
        assert (recordings.read, recordings.bad) == (6000, 100)
        assert recordings.counts == (60, 1, 1000, 0, 17)
    with pytest.raises(UserError, match=r"1\d\d of the last 1000 recordings read cannot .*; see whether their storage"):
        lose(recordings, 128)


def test_a_pass_goes_on_from_the_one_before():
    """Two bad ones at the beginning of the second pass are no share of anything yet."""
    recordings = BadRecordings()
    recordings.note(1000, [(f"{i}", "bad") for i in range(8)])
    recordings.begin_pass()
    recordings.note(250, [(f"{i}", "bad") for i in range(4)])
    assert recordings.counts[:2] == (1000, 4 + 8 * 0.75)
    with pytest.raises(UserError, match="11 of 1000 recordings read"):
        recordings.note(0, [("new", "new: bad")])


def test_a_pass_that_an_earlier_process_has_begun():
    """What it found to be good counts with what is read now: 80 of 4960 are more than 1 %, of 9960 they are not."""
    recordings = BadRecordings()
    recordings.skip(5000)
    recordings.begin_pass()
    recordings.note(4960, [(f"{i}", "bad") for i in range(80)])
    assert recordings.counts[:2] == (9960, 80)
    recordings.begin_pass()
    assert recordings.counts[0] == 9960


# --- workers that do not go on ----------------------------------------------------------------------------------------


def test_a_worker_or_planner_that_dies_is_noticed(corpus):
    for number in (0, 1):  # of processes by age: what reads, what plans
        iterator = iter(stream(corpus / "speech.jsonl.gz", num_workers=1, max_batch_utterances=1).loader(0))
        next(iterator)
        child = sorted(multiprocessing.active_children(), key=lambda process: process.pid)[number]
        os.kill(child.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"a process that reads has ended.*--shm-size.*--ipc=host.*num_workers=0"):
            list(iterator)
        assert time.monotonic() - start < 30
        assert multiprocessing.active_children() == []


def test_a_batch_that_cannot_be_handed_over_is_named(corpus, monkeypatch):
    """As torch fails where shared memory is full; the batch is not waited for."""

    class NoRoom(Loaded):
        def __reduce__(self):
            raise RuntimeError("unable to write to file </torch_1>:\nNo space left on device (28)")

    monkeypatch.setattr("s3prl_ekd.audio.utterances.Loaded", NoRoom)
    loader = stream(corpus / "speech.jsonl.gz", num_workers=2).loader(0)
    with pytest.raises(UserError, match=r"hand over a batch \(unable to .*: No space .*/dev/shm \(\d+ MiB in all\)"):
        list(loader)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from torch's unfinished iterator
def test_workers_that_cannot_be_started_are_named(corpus, monkeypatch):
    """The queues' semaphores are in shared memory too; the worker that has started does not stay."""
    made, queue = itertools.count(), torch.multiprocessing.Queue

    def full():
        if next(made) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return queue()

    monkeypatch.setattr(torch.multiprocessing, "Queue", full)
    with pytest.raises(UserError, match=r"workers cannot be started or heard \(No space left on device\).*--shm-size"):
        list(stream(corpus / "speech.jsonl.gz", num_workers=2).loader(0))
    assert not any(child.is_alive() for child in multiprocessing.active_children())


def test_a_wait_has_an_end(corpus, monkeypatch):
    monkeypatch.setattr(BatchReader, "__getitem__", lambda *_: time.sleep(600))
    loader = stream(corpus / "speech.jsonl.gz", num_workers=1, timeout_seconds=0.5).loader(0)
    with pytest.raises(UserError, match=r"no batch has come for [12] s \(timeout_seconds"):
        list(loader)
    assert multiprocessing.active_children() == []


def _append(path, rank):
    bad = BadRecordings(path)
    for number in range(40):
        bad.note(500, [(f"shared{number}", "x" * 300), (f"own{rank}-{number}", f"line\tof {rank}\n" + "y" * 300)])


def test_ranks_write_one_list(tmp_path):
    path = tmp_path / "bad.tsv"
    context = multiprocessing.get_context("fork")
    with path.open("ab") as file:  # another rank at work: it is waited for, and what it lists is not listed again
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = context.Process(target=_append, args=(path, 9))
        waiting.start()
        waiting.join(0.7)
        assert waiting.is_alive()
        file.write(b"utterance\tproblem\nshared0\t" + b"z" * 300 + b"\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)  # closing does not release it: the forked process has the same open file
    waiting.join(60)
    assert waiting.exitcode == 0
    processes = [context.Process(target=_append, args=(path, rank)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert rows[0] == ["utterance", "problem"]
    assert all(len(row) == 2 and len(row[1]) >= 300 for row in rows[1:])
    assert len(rows) - 1 == len({row[0] for row in rows[1:]}) == 40 + 5 * 40


def test_a_tar_that_lost_its_end_or_all(corpus, tmp_path, caplog):
    for number in ("000000", "000001"):
        for name in (f"cuts.{number}.jsonl.gz", f"recording.{number}.tar"):
            (tmp_path / name).write_bytes((corpus / "shar" / name).read_bytes())
    torn = tmp_path / "recording.000001.tar"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    broken = stream(tmp_path, bad=tmp_path / "bad.tsv")
    heard = names(broken.loader(0))
    assert 10 < len(heard) < 20
    assert len(heard) + broken.bad_recordings.bad == 20
    assert "recording.000001.tar" in (tmp_path / "bad.tsv").read_text()
    torn.unlink()
    with pytest.raises(UserError, match=r"recording\.000001\.tar: No such file.*needs this tar"):
        list(stream(tmp_path).loader(0))


def test_damaged_headers_of_a_tar_take_no_memory(corpus, tmp_path):
    """Every recording of it is heard or bad; or the tar as a whole is named."""
    cuts, tar = tmp_path / "cuts.000000.jsonl.gz", tmp_path / "recording.000000.tar"
    cuts.write_bytes((corpus / "shar" / cuts.name).read_bytes())
    whole = (corpus / "shar" / tar.name).read_bytes()
    places = random.Random(0)
    for number in range(40):
        damaged = bytearray(whole)
        damaged[places.choice((0, 1, 100, 124, 126, 135, 148, 156, 257, places.randrange(512)))] ^= 1 << number % 8
        tar.write_bytes(damaged)
        damaged_stream = stream(tmp_path)
        with contextlib.suppress(SourceError):
            assert len(names(damaged_stream.loader(0))) + damaged_stream.bad_recordings.bad == 10
    # A member of 8 GB, with a checksum that fits.
    member = tarfile.TarInfo(name="0/0.flac")
    member.size = 8 << 30
    tar.write_bytes(member.tobuf() + bytes(512))
    reader = TarReader(TarCache(None, 1))
    with pytest.raises(UserError, match="truncated within 0/0"):
        reader.read(str(tar), "0/0")


# --- the command ------------------------------------------------------------------------------------------------------


def heard(path):
    return sorted(names(stream(path, distortion=CLEAN, max_crop_samples=None).loader(0)))


def test_command_folder_and_tsv(corpus, tmp_path, capsys, caplog):
    (tmp_path / "speech").mkdir()
    for i in range(4):
        write(tmp_path / "speech" / f"{i}.wav", speech_like(8000 + i, i))
    (tmp_path / "speech" / "junk.wav").write_text("no audio")
    out = tmp_path / "out" / "speech.jsonl.gz"
    assert cli.main(["data", "folder", str(tmp_path / "speech"), str(out)]) == 0
    assert "speech.jsonl.gz: 4 cuts, 0.00 h, 1 bad recordings left out" in capsys.readouterr().out
    assert "junk.wav\t" in (tmp_path / "out" / "speech.bad_recordings.tsv").read_text()
    assert heard(out) == [f"{i}.wav" for i in range(4)]
    before = out.read_bytes()
    cli.main(["data", "folder", str(tmp_path / "speech"), str(out)])
    assert out.read_bytes() == before

    tsv = tmp_path / "train.tsv"
    tsv.write_text(f"{tmp_path}/speech\n" + "".join(f"{i}.wav\t{8000 + i}\n" for i in range(4)))
    assert cli.main(["data", "tsv", str(tsv), str(tmp_path / "tsv.jsonl.gz")]) == 0
    assert heard(tmp_path / "tsv.jsonl.gz") == [f"{i}.wav" for i in range(4)]

    capsys.readouterr()
    for text, message in (
        (f"{tmp_path}/speech\n0.wav\t7000\n", "says 7000 samples (at 16000 Hz) of 0.wav, the file has 8000"),
        (f"{tmp_path}/speech\n0.wav 7000\n", "expected a root folder, then lines of path<tab>number"),
        ("", "expected a root folder"),
    ):
        tsv.write_text(text)
        assert cli.main(["data", "tsv", str(tsv), str(tmp_path / "wrong.jsonl.gz")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong.jsonl.gz").exists()
    assert cli.main(["data", "folder", str(tmp_path), str(tmp_path / "cuts.json")]) == 2
    assert "ends in .jsonl.gz" in capsys.readouterr().err


def test_command_corpora_of_lhotse(tmp_path, capsys):
    for part, speaker in (("dev-clean", 84), ("own-part", 7)):
        chapter = tmp_path / "LibriSpeech" / part / str(speaker) / "1"
        for i in range(2):
            write(chapter / f"{speaker}-1-000{i}.flac", speech_like(6000, i))
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(f"{speaker}-1-000{i} HELLO\n" for i in range(2)))
    for part in ("noise", "music"):
        write(tmp_path / "musan" / part / "free" / f"{part}-1.wav", speech_like(9000, 5))
    (tmp_path / "musan" / "music" / "free" / "ANNOTATIONS").write_text("music-1 pop Y someone\n")
    rirs = tmp_path / "RIRS_NOISES"
    write(rirs / "real_rirs_isotropic_noises" / "air_type1_rir_1.wav", speech_like(4000, 6))
    write(rirs / "simulated_rirs" / "smallroom" / "Room001" / "a.wav", speech_like(4000, 7))

    out = tmp_path / "out"
    assert cli.main(["data", "librispeech", str(tmp_path), str(out)]) == 0
    assert cli.main(["data", "musan", str(tmp_path / "musan"), str(out), "--parts", "noise"]) == 0
    assert cli.main(["data", "rirs", str(rirs), str(out), "--parts", "real_rir", "sim_rir"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "librispeech_cuts_dev-clean.jsonl.gz", "librispeech_cuts_own-part.jsonl.gz", "musan_cuts_noise.jsonl.gz",
        "rirs_cuts_real_rir.jsonl.gz", "rirs_cuts_sim_rir.jsonl.gz",
    ]  # fmt: skip
    assert "librispeech_cuts_own-part.jsonl.gz: 2 cuts" in capsys.readouterr().out
    assert heard(out / "librispeech_cuts_dev-clean.jsonl.gz") == ["84-1-0000", "84-1-0001"]
    assert audio_files(out / "musan_cuts_noise.jsonl.gz") == [tmp_path / "musan/noise/free/noise-1.wav"]

    shar = tmp_path / "shar"
    assert cli.main(["data", "shar", str(out / "librispeech_cuts_*.jsonl.gz"), str(shar), "--shard-size", "3"]) == 0
    assert heard(shar) == ["7-1-0000", "7-1-0001", "84-1-0000", "84-1-0001"]

    capsys.readouterr()
    for arguments, message in (
        (["librispeech", str(tmp_path), str(out), "--parts", "train"], "no train in it; found dev-clean, own-part"),
        (["musan", str(rirs), str(out)], "no part of musan in it"),
        (["rirs", str(tmp_path / "nowhere"), str(out)], "no such folder"),
        (["shar", str(out / "musan_cuts_noise.jsonl.gz"), str(shar)], "exists already"),
    ):
        assert cli.main(["data", *arguments]) == 2
        assert message in capsys.readouterr().err
