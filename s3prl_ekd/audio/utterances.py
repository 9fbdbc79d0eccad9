"""A batch of utterances, read as an epoch hears them: each cropped, read and distorted, then all put side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.audio.batch import CachedTargets, Loaded, collate, empty_batch
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.randomness import integer, keyed_generator
from s3prl_ekd.errors import UserError


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording, or a part of one, that is read for a batch."""

    name: str
    """Its name in lists and messages, which its random draws depend on."""
    samples: int
    """Its length at 16 kHz, as its list or manifest says."""
    read: Callable[[int, int | None], tuple[Tensor, Tensor | None]]
    """From a first sample and a number of samples at most (None: all) to the waveform (S,) of that part, and its
    targets (F, D') if they were computed before. It raises a UserError where this recording cannot be used, a
    SourceError where what holds it and others cannot."""
    key: int | None = None
    """The number that finds it in a cache of targets, if it can be in one."""


def draw_start(samples: int, longest: int | None, key: tuple[int | str, ...], step: int = 1) -> int:
    """First sample of a random part of ``longest`` samples: a multiple of ``step`` that depends on ``key`` alone; 0
    where the whole is not longer than that, or ``longest`` is None."""
    if longest is None or samples <= longest:
        return 0
    return step * integer(keyed_generator(*key, "crop"), (samples - longest) // step + 1)


@dataclass(frozen=True)
class UtteranceReader:
    """Makes batches of utterances."""

    distorter: Distorter
    """What the student hears."""
    seed: int
    """Of the crops."""
    longest: int | None
    """Longer utterances are cropped to so many samples, elsewhere in each epoch; None: never."""
    step: int = 1
    """Crops start on a multiple of so many samples."""

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
        batch = replace(
            collate(clean, distorted, [one.name for one, _, _, _ in heard]),
            starts=torch.tensor([start for _, start, _, _ in heard]),
            keys=torch.tensor(keys) if keys else None,
            cached=CachedTargets(torch.cat(targets), torch.tensor(list(map(len, targets)))) if targets else None,
        )
        return Loaded(batch, len(heard) + len(bad), tuple(bad))
