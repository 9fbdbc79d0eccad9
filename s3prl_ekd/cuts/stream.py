"""The batches of a run: the same ones in the same order whatever the workers, and from any position of any epoch.

One plan of an epoch, a sequence of batches of manifest lines, is keyed on (seed, epoch) alone. Rank ``r`` of ``W``
takes its batches ``r``, ``r + W``, ``r + 2 W``, ... A position is therefore a number of batches per rank, and going
there means planning, without reading audio. Where the last batches of a plan do not suffice for all ranks, the others
get an empty batch: nothing is lost, nothing comes twice, and all ranks make the same number of steps.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.audio.batch import Batch, CachedTargets, Loaded, collate, empty_batch
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.workers import POLL_SECONDS, patient, prepare_worker
from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.config.recipe import DistortionConfig
from s3prl_ekd.cuts.bucketing import draw_batches, duration_bounds
from s3prl_ekd.cuts.read import Cut, CutReader, draw_crop, read_cut
from s3prl_ekd.cuts.shar import TarCache, TarReader
from s3prl_ekd.cuts.sources import Entry, SourceError, digest, mix_sources, resolve_sources
from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

_BOUNDS_FROM = 10_000  # utterances that the buckets' bounds are estimated from
_PLANNED_AHEAD = 32  # batches


class Targets(Protocol):
    """Targets computed before, see :class:`s3prl_ekd.target_cache.reading.TargetCache`."""

    identity: str
    """Equal where the targets are."""

    def read(self, cut: Cut, start: int, samples: int) -> torch.Tensor:
        """The targets (F, D) of a part of a cut that starts on a frame.

        Raises:
            UserError: this cut has none, since its recording is bad.
            SourceError: there is another reason.
        """


class Plan:
    """Which utterances make which batch of an epoch, for all ranks together."""

    def __init__(self, config: DataConfig, seed: int, key: str = "data.cuts") -> None:
        self.config = config
        self.seed = seed
        self.sources = resolve_sources(config.cuts, key)

    @functools.cached_property
    def bounds(self) -> list[int]:
        """Durations in samples between the buckets, the same for all epochs."""
        first = itertools.islice(mix_sources(self.sources, self.config.max_crop_samples, None), _BOUNDS_FROM)
        samples = [entry.samples for entry in first]
        if not samples:
            raise UserError(f"{', '.join(source.name for source in self.sources)}: no utterance of at least a frame")
        return duration_bounds(samples, self.config.num_buckets)

    def batches(self, epoch: int) -> Iterator[list[Entry]]:
        """All batches of an epoch in order."""
        return draw_batches(
            self.entries(epoch),
            self.bounds,
            budget=self.config.batch_samples,
            most=self.config.max_batch_utterances,
            buffer=self.config.buffer_cuts,
            rng=self._random(epoch, "batches"),
        )

    def entries(self, epoch: int) -> Iterator[Entry]:
        """The utterances of an epoch in the order in which batches are drawn from them."""
        return mix_sources(self.sources, self.config.max_crop_samples, self._random(epoch, "order"))

    def _random(self, epoch: int, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {epoch} {purpose}")

    def rank_batches(self, epoch: int, consumed: int, rank: int, world_size: int) -> Iterator[list[Entry]]:
        """Those of one rank, the first ``consumed`` left out; an empty list where only other ranks still have one."""
        batches = itertools.islice(self.batches(epoch), consumed * world_size, None)
        while group := list(itertools.islice(batches, world_size)):
            yield group[rank] if rank < len(group) else []


class BatchReader(Dataset):
    """Reads a batch of entries as an epoch hears it: ``reader[epoch, entries]``."""

    def __init__(self, config: DataConfig, distortion: DistortionConfig, seed: int, targets: Targets | None) -> None:
        self.config = config
        self.seed = seed
        self.targets = targets
        self.distorter = Distorter(distortion)
        self.read_audio = CutReader(TarReader(TarCache(config.shar_cache, config.shar_cache_gb)))

    def __getitem__(self, item: tuple[int, Sequence[Entry]] | UserError) -> Loaded | UserError:
        """A UserError is returned, not raised: a worker's exception would reach the user wrapped in its traceback."""
        if isinstance(item, UserError):
            return item
        try:
            return self._read(*item)
        except UserError as error:
            return error

    def _read(self, epoch: int, entries: Sequence[Entry]) -> Loaded:
        names, starts, clean, targets, bad = [], [], [], [], []
        for entry in entries:
            cut = read_cut(entry)
            crop = draw_crop(
                cut,
                longest=self.config.max_crop_samples,
                whole_frames=self.targets is not None,
                key=(self.seed, epoch),
            )
            try:
                wave = self.read_audio(cut, crop, entry.manifest)
                if self.targets is not None:
                    targets.append(self.targets.read(cut, crop.start, wave.numel()))
            except SourceError:
                raise
            except UserError as error:
                bad.append((cut.id, str(error)))
            else:
                clean.append(wave)
                names.append(cut.id)
                starts.append(crop.start)
        if not names:
            return Loaded(empty_batch(), len(entries), tuple(bad))
        distorted = [self.distorter(wave, epoch=epoch, utterance=name) for wave, name in zip(clean, names, strict=True)]
        batch = dataclasses.replace(collate(clean, distorted, names), starts=torch.tensor(starts))
        if targets:
            frames = torch.tensor([len(one) for one in targets])
            batch = dataclasses.replace(batch, cached=CachedTargets(torch.cat(targets), frames))
        return Loaded(batch, len(entries), tuple(bad))


class _PlannedBatches(IterableDataset):
    """A rank's batches from a position on, for the process that plans."""

    def __init__(self, plan: Plan, epoch: int, consumed: int, rank: int, world_size: int) -> None:
        self.plan = plan
        self.epoch = epoch
        self.place = (consumed, rank, world_size)

    def __iter__(self) -> Iterator[tuple[int, list[Entry]] | UserError]:
        try:
            for entries in self.plan.rank_batches(self.epoch, *self.place):
                yield self.epoch, entries
        except UserError as error:
            yield error


class _FromAnotherProcess:
    """What a loader of one worker gives, for another loader to ask for its items."""

    def __init__(self, planned: DataLoader, limit: float) -> None:
        self.planned = planned
        self.limit = limit

    def __iter__(self) -> Iterator[tuple[int, list[Entry]] | UserError]:
        try:
            yield from patient(self.planned, self.limit)
        except UserError as error:
            yield error


class BatchStream:
    """The batches that one rank hears.

    >>> stream = BatchStream(config, distortion, seed=0)
    >>> for batch in stream.loader(epoch=3, consumed=120):  # batches that this rank has trained on in epoch 3
    ...     distiller(batch)

    Attributes:
        bad_recordings: counts of recordings read and skipped by this rank. Where there are several ranks, too many of
            them are not an error here: all ranks must stop together, so whoever knows all counts decides.

    Raises:
        UserError: a source is missing or of a kind that cannot be read.
    """

    def __init__(
        self,
        config: DataConfig,
        distortion: DistortionConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        targets_cache: Targets | None = None,
        bad_recordings: str | Path | None = None,
        key: str = "data.cuts",
    ) -> None:
        """``bad_recordings``: the file that lists what was skipped. ``targets_cache``: where batches get their targets
        from; crops then start on whole frames. ``key``: what messages call ``config.cuts``.
        """
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.plan = Plan(config, seed, key)
        self.bad_recordings = BadRecordings(bad_recordings, alone=world_size == 1)
        self.reader = BatchReader(config, distortion, seed, targets_cache)
        self._key = key

    def loader(self, epoch: int, consumed: int = 0) -> EpochLoader:
        """The batches of ``epoch`` after the first ``consumed`` ones of this rank.

        Raises:
            UserError: there is something to leave out, but a source cannot be read the same way twice.
        """
        if consumed:
            self._require_resumable()
        _ = self.plan.bounds  # once here, not in every epoch's planning process
        return EpochLoader(self, epoch, consumed)

    def steps(self, epoch: int) -> int:
        """Number of batches of each rank in an epoch; takes a pass over the manifests."""
        return -(-sum(1 for _ in self.plan.batches(epoch)) // self.world_size)

    def identity(self) -> dict[str, str]:
        """What a position depends on, to be stored with it; see :meth:`require_identity`."""
        settings = ("batch_seconds", "max_batch_utterances", "num_buckets", "buffer_cuts", "max_crop_samples")
        identity = {f"data.{name}": str(getattr(self.config, name)) for name in settings}
        identity |= {"seed": str(self.plan.seed), "number of processes": str(self.world_size)}
        identity["targets.cache"] = self.reader.targets.identity if self.reader.targets is not None else "none"
        for index, source in enumerate(self.plan.sources):
            digests = " ".join(digest(manifest) for manifest in source.manifests)
            identity[f"{self._key}[{index}]"] = f"{source.name} {len(source.manifests)} {_short(digests)}"
        return identity

    def require_identity(self, stored: Mapping[str, str]) -> None:
        """Check that a position stored with ``stored`` still means the same.

        Raises:
            UserError: names the source that cannot be resumed exactly, or what has changed.
        """
        self._require_resumable()
        now = self.identity()
        for name in {**stored, **now}:
            if stored.get(name) != now.get(name):
                raise UserError(
                    f"cannot resume exactly: {name} was {stored.get(name, 'absent')}, now it is"
                    f" {now.get(name, 'absent')}; restore it, or start a new run"
                )

    def _require_resumable(self) -> None:
        for source in self.plan.sources:
            if not source.resumable:
                raise UserError(
                    f"{self._key}: {source.name!r} cannot be resumed exactly, since a command may print something else"
                    " the next time; name files or an object store's addresses, or start a new run"
                )


class EpochLoader:
    """Iterates batches from one position of one epoch; each pass starts there again."""

    def __init__(self, stream: BatchStream, epoch: int, consumed: int) -> None:
        self.stream = stream
        self.epoch = epoch
        self.consumed = consumed

    @property
    def bad_recordings(self) -> BadRecordings:
        """The stream's."""
        return self.stream.bad_recordings

    def __iter__(self) -> Iterator[Batch]:
        self.bad_recordings.begin_pass()
        for loaded in patient(self._loaders(), self.stream.config.timeout_seconds):
            if isinstance(loaded, UserError):
                raise loaded
            self.bad_recordings.note(loaded.read, loaded.bad)
            yield loaded.batch

    def _loaders(self) -> DataLoader:
        stream, workers = self.stream, self.stream.config.num_workers
        planned = _PlannedBatches(stream.plan, self.epoch, self.consumed, stream.rank, stream.world_size)
        options = {
            "batch_size": None,
            "worker_init_fn": prepare_worker if workers else None,
            "timeout": POLL_SECONDS if workers else 0,
        }
        if workers:
            planner = DataLoader(
                planned, num_workers=1, prefetch_factor=_PLANNED_AHEAD, generator=torch.Generator(), **options
            )
            planned = _FromAnotherProcess(planner, stream.config.timeout_seconds)
        return DataLoader(
            stream.reader,
            sampler=planned,
            num_workers=workers,
            prefetch_factor=stream.config.prefetch_batches if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # not the global one: its state is part of what a resumed run restores
            **options,
        )


def dev_loader(
    config: DataConfig,
    distortion: DistortionConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    targets_cache: Targets | None = None,
    bad_recordings: str | Path | None = None,
) -> EpochLoader | None:
    """The dev data, with the same crops and distortions at each pass; None where the configuration names none."""
    if not config.dev_cuts:
        return None
    stream = BatchStream(
        dataclasses.replace(config, cuts=config.dev_cuts, dev_cuts=()),
        distortion,
        seed=seed,
        rank=rank,
        world_size=world_size,
        targets_cache=targets_cache,
        bad_recordings=bad_recordings,
        key="data.dev_cuts",
    )
    return stream.loader(0)


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
