"""Batches of utterances, for all of them (hypothesis): crops, padding, what is bad, and what depends on what."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.audio.utterances import UtteranceReader, draw_start
from s3prl_ekd.errors import UserError

law = settings(derandomize=True, deadline=None, database=None, max_examples=40)
NOISY = DistortionConfig.from_mapping({"seed": 3, "gaussian_noise": {"probability": 0.5}})
CLEAN = DistortionConfig()


@dataclass(frozen=True)
class Counting:
    """Samples that say where they are; and targets, one a frame, that say it too."""

    name: str
    samples: int
    problem: Exception | None = None
    cached: bool = False
    key: int | None = None

    def read(self, start, longest):
        if self.problem is not None:
            raise self.problem
        wave = torch.arange(1.0, self.samples + 1)[start:][:longest]
        return wave, torch.arange(start // 320, (start + len(wave)) // 320).unsqueeze(1) if self.cached else None


KEYS = st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["", "a", "b.flac"]))
SIZES = st.integers(400, 4000)
BATCHES = st.lists(SIZES, min_size=1, max_size=5).map(lambda sizes: [Counting(f"u{i}", n) for i, n in enumerate(sizes)])


@law
@given(st.integers(1, 10**6), st.none() | st.integers(1, 10**6), KEYS, st.sampled_from([1, 320]))
def test_a_crop_lies_within_its_recording_and_depends_on_its_key_alone(samples, longest, key, step):
    start = draw_start(samples, longest, key, step)
    if longest is None or longest >= samples:
        assert start == 0
    else:
        assert 0 <= start <= samples - longest
        assert start % step == 0
    torch.manual_seed(samples)
    draw_start(7 * samples, longest, key, step)
    assert draw_start(samples, longest, key, step) == start


def test_crops_are_anywhere_and_differ_with_each_part_of_the_key():
    drawn = {key: draw_start(1100, 1000, key) for key in [(s, e, u) for s in "ab" for e in range(50) for u in "xy"]}
    assert {min(drawn.values()), max(drawn.values())} == {0, 100}
    for index in range(3):
        others = [key[:index] + key[index + 1 :] for key in drawn]
        assert len({(other, start) for other, start in zip(others, drawn.values(), strict=True)}) > len(set(others))


@law
@given(BATCHES, st.none() | SIZES, st.integers(0, 3), st.integers(0, 3))
def test_an_utterance_is_the_same_with_any_batch_mates(batch, longest, seed, epoch):
    reader = UtteranceReader(Distorter(NOISY), seed=seed, longest=longest)
    together = reader.read(epoch, batch).batch
    assert together.utterances == tuple(one.name for one in batch)
    assert together.clean.shape == together.distorted.shape == (len(batch), int(together.lengths.max()))
    for row, utterance in enumerate(batch):
        alone = reader.read(epoch, [utterance]).batch
        length = int(alone.lengths)
        assert (length, int(alone.starts)) == (int(together.lengths[row]), int(together.starts[row]))
        assert length == min(utterance.samples, longest or utterance.samples)
        for whole, part in ((together.clean, alone.clean), (together.distorted, alone.distorted)):
            assert torch.equal(whole[row, :length], part[0])
            assert not whole[row, length:].any()
        assert alone.clean[0].tolist() == list(range(int(alone.starts) + 1, int(alone.starts) + length + 1))


@law
@given(BATCHES, st.data())
def test_bad_recordings_leave_the_others_as_they_are(batch, data):
    bad = data.draw(st.sets(st.integers(0, len(batch) - 1)))
    mixed = [Counting(u.name, u.samples, UserError(f"{i}")) if i in bad else u for i, u in enumerate(batch)]
    reader = UtteranceReader(Distorter(CLEAN), seed=0, longest=1000)
    loaded, good = reader.read(0, mixed), [one for i, one in enumerate(batch) if i not in bad]
    assert (loaded.read, loaded.bad) == (len(batch), tuple((f"u{i}", f"{i}") for i in sorted(bad)))
    assert loaded.batch.utterances == tuple(one.name for one in good)
    assert torch.equal(loaded.batch.clean, reader.read(0, good).batch.clean)
    assert loaded.batch.distorted is loaded.batch.clean
    with pytest.raises(SourceError):
        reader.read(0, [*mixed, Counting("last", 400, SourceError("the manifest"))])


@law
@given(BATCHES)
def test_crops_with_targets_start_on_frames(batch):
    reader = UtteranceReader(Distorter(CLEAN), seed=0, longest=1000, step=320)
    for epoch in range(2):
        starts = reader.read(epoch, [Counting(one.name, one.samples, cached=True) for one in batch]).batch.starts
        assert not (starts % 320).any()
