"""Streams of batches from small corpora."""

from __future__ import annotations

import multiprocessing
import time

import soundfile
import torch

from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.config.recipe import DistortionConfig
from s3prl_ekd.cuts.manifests import folder_recordings, write_manifest
from s3prl_ekd.cuts.stream import BatchStream, Rank

RATE = 16000
CLEAN = DistortionConfig()
NOISY = DistortionConfig.from_mapping({"seed": 3, "gaussian_noise": {"probability": 0.6}})


def write(path, waveform, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform.numpy(), rate, **options)
    return path


def manifest(folder, out):
    return str(write_manifest(out, folder_recordings(folder)).path)


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


def assert_no_process_stays():
    """Within seconds: a process that was killed takes a moment to end."""
    end = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []
