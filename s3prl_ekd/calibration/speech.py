"""The utterances that something is found on: the first ones of a random order of the run's training data.

They depend on the recipe's seed and data alone, not on devices, processes, workers or the size of batches.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.cuts.sources import digest, mix_sources, resolve_sources
from s3prl_ekd.cuts.stream import BatchReader
from s3prl_ekd.errors import UserError
from s3prl_ekd.teachers import Teacher


def identity(config: RunConfig) -> dict[str, Any]:
    """What the choice of utterances depends on; equal for equal utterances."""
    manifests = [name for source in resolve_sources(config.data.cuts) for name in source.manifests]
    digests = " ".join(map(digest, manifests))
    return {
        "seed": config.seed,
        "max_crop_samples": config.data.max_crop_samples,
        "buffer_cuts": config.data.buffer_cuts,
        "cuts": f"{len(manifests)} {hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()}",
    }


def waveforms(config: RunConfig, utterances: int) -> Iterator[Tensor]:
    """So many clean utterances (S,), or all where there are fewer; recordings that cannot be used are passed over.

    The random order reaches as far as ``data.buffer_cuts``; utterances are cropped as in the first epoch.

    Raises:
        UserError: there is not one usable recording, or there are too many bad ones.
    """
    order = random.Random(f"{config.seed} calibration")
    sources = resolve_sources(config.data.cuts)
    entries = list(itertools.islice(mix_sources(sources, config.data.max_crop_samples, order), config.data.buffer_cuts))
    order.shuffle(entries)
    reader = BatchReader(config.data, DistortionConfig(), config.seed, targets=None)
    recordings, given = BadRecordings(), 0
    for entry in entries:
        loaded = reader[0, [entry]]
        if isinstance(loaded, UserError):
            raise loaded
        recordings.note(loaded.read, loaded.bad)
        if loaded.batch.lengths.numel() == 0:
            continue
        yield loaded.batch.clean[0]
        given += 1
        if given == utterances:
            return
    if not given:
        raise UserError(f"data.cuts: not one usable recording among {len(entries)}; see the messages above")


def hidden_states(config: RunConfig, teacher: Teacher, utterances: int, doing: str) -> Iterator[dict[int, Tensor]]:
    """What a teacher makes of each of so many utterances: (F, D) on the CPU by layer.

    ``doing`` is what the progress bar says before the teacher's name.
    """
    heard = waveforms(config, utterances)
    doing = f"{doing} {teacher.name}"
    for waveform in tqdm(heard, desc=doing, unit=" utterances", total=utterances, delay=2, leave=False):
        rows = teacher.hidden_states(waveform.unsqueeze(0), torch.tensor([waveform.numel()])).rows
        yield {layer: states.cpu() for layer, states in zip(teacher.layers, rows, strict=True)}
