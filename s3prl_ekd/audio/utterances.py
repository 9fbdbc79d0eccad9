"""A batch of utterances, read as an epoch hears them: each cropped, read and distorted, then all put side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.audio.batch import CachedTargets, Loaded, collate, empty_batch
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.randomness import integer, keyed_generator
from s3prl_ekd.errors import UserError


class Utterance(Protocol):
    """A recording, or a part of one, that is read for a batch."""

    @property
    def name(self) -> str:
        """Its name in lists and messages, which its random draws depend on."""

    @property
    def samples(self) -> int:
        """Its length at 16 kHz, as its list or manifest says."""

    @property
    def key(self) -> int | None:
        """The number that finds it in a cache of targets, if it can be in one."""

    def read(self, start: int, longest: int | None) -> tuple[Tensor, Tensor | None]:
        """Its waveform (S,) from a sample on, at most ``longest`` samples of it; and the targets (F, D') of that part
        if they were computed before.

        Raises:
            UserError: this recording cannot be used.
            SourceError: what holds it and others cannot.
        """


def draw_start(samples: int, longest: int | None, key: tuple[int | str, ...], step: int = 1) -> int:
    """First sample of a random part of ``longest`` samples: a multiple of ``step`` that depends on ``key`` alone; 0
    where the whole is not longer than that, or ``longest`` is None."""
    if longest is None or samples <= longest:
        return 0
    return step * integer(keyed_generator(*key, "crop"), (samples - longest) // step + 1)


class UtteranceReader:
    """Makes batches of utterances.

    Args:
        distorter: what the student hears.
        seed: of the crops.
        longest: longer utterances are cropped to so many samples, elsewhere in each epoch; None: never.
        step: crops start on a multiple of so many samples.
    """

    def __init__(self, distorter: Distorter, *, seed: int, longest: int | None, step: int = 1) -> None:
        self.distorter = distorter
        self.seed = seed
        self.longest = longest
        self.step = step

    def read(self, epoch: int, utterances: Iterable[Utterance]) -> Loaded:
        """The batch as an epoch hears it, without the recordings that cannot be used; these are listed beside it.

        Raises:
            SourceError: what holds many recordings cannot be used.
            UserError: the files of a distortion cannot.
        """
        heard, bad = list[tuple[Utterance, int, Tensor, Tensor | None]](), list[tuple[str, str]]()
        for utterance in utterances:
            start = draw_start(utterance.samples, self.longest, (self.seed, epoch, utterance.name), self.step)
            try:
                heard.append((utterance, start, *utterance.read(start, self.longest)))
            except SourceError:
                raise
            except UserError as error:
                bad.append((utterance.name, str(error)))
        if not heard:
            return Loaded(empty_batch(), len(bad), tuple(bad))
        clean = [wave for _, _, wave, _ in heard]
        distorted = [self.distorter(wave, epoch=epoch, utterance=one.name) for one, _, wave, _ in heard]
        targets = [rows for _, _, _, rows in heard if rows is not None]
        keys = [one.key for one, _, _, _ in heard if one.key is not None]
        batch = dataclasses.replace(
            collate(clean, distorted, [one.name for one, _, _, _ in heard]),
            starts=torch.tensor([start for _, start, _, _ in heard]),
            keys=torch.tensor(keys) if keys else None,
            cached=CachedTargets(torch.cat(targets), torch.tensor(list(map(len, targets)))) if targets else None,
        )
        return Loaded(batch, len(heard) + len(bad), tuple(bad))
