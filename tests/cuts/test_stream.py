"""The batches of a run: exact positions whatever the workers and ranks, bad recordings."""

from __future__ import annotations

import gzip
import itertools
import json
import multiprocessing
import os
import random
import signal

import pytest
import torch
from helpers_cuts import (
    CLEAN,
    NOISY,
    RATE,
    FrameNumbers,
    assert_no_process_stays,
    assert_same,
    config,
    manifest,
    names,
    stream,
    write,
)
from helpers_models import speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from s3prl_ekd.audio.bad_recordings import Counts
from s3prl_ekd.audio.read import load_audio
from s3prl_ekd.cuts.sources import resolve_sources
from s3prl_ekd.cuts.stream import BatchStream, Plan, Rank
from s3prl_ekd.errors import UserError


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


@pytest.mark.parametrize("workers", [0, 1])
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


def test_a_planner_that_dies_is_noticed(corpus):
    iterator = iter(stream(corpus / "speech.jsonl.gz", num_workers=1, max_batch_utterances=1).loader(0))
    next(iterator)
    _, planner = sorted(multiprocessing.active_children(), key=lambda process: process.pid)  # by age
    os.kill(planner.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a process that reads has ended.*--shm-size"):
        list(iterator)
    assert_no_process_stays()


# --- for any corpus and any number of ranks (hypothesis) --------------------------------------------------------------


@pytest.fixture(scope="module")
def durations(tmp_path_factory):
    return tmp_path_factory.mktemp("durations") / "cuts.jsonl"


def rank_batches(plan, epoch, consumed, rank):
    return [entries for its_epoch, entries in plan.rank_batches(epoch, consumed, rank) if its_epoch == epoch]


@settings(derandomize=True, deadline=None, database=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(400, 40_000), min_size=1, max_size=40),
    world_size=st.integers(1, 5),
    most=st.none() | st.integers(1, 6),
    num_buckets=st.integers(1, 5),
    buffer_cuts=st.integers(1, 50),
    epoch=st.integers(0, 3),
)
def test_batches_of_all_ranks_are_all_cuts_once(durations, sizes, world_size, epoch, most, **extra):
    durations.write_text("".join(json.dumps({"id": i, "duration": n / RATE}) + "\n" for i, n in enumerate(sizes)))
    chosen = config(durations, max_batch_utterances=most, **extra)
    plan = Plan(chosen, 1, resolve_sources(chosen.cuts))
    ranks = [rank_batches(plan, epoch, 0, Rank(index, world_size)) for index in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1  # equally many steps, of which only the last may be empty
    assert all(batch for batches in ranks for batch in batches[:-1])
    drawn = [json.loads(entry.line)["id"] for batches in ranks for batch in batches for entry in batch]
    assert sorted(drawn) == list(range(len(sizes)))
    for batch in itertools.chain(*ranks):
        assert len(batch) <= (most or len(sizes))
        assert len(batch) <= 1 or len(batch) * max(entry.samples for entry in batch) <= chosen.batch_samples
    consumed = len(ranks[0]) // 2
    assert rank_batches(plan, epoch, consumed, Rank(0, world_size)) == ranks[0][consumed:]
