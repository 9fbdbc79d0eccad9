"""The batches of a run: the same ones in the same order whatever the workers, and from any position of any epoch.

One plan of an epoch, a sequence of batches of manifest lines, is keyed on (seed, epoch) alone. Rank ``r`` of ``W``
takes its batches ``r``, ``r + W``, ``r + 2 W``, ... A position is therefore a number of batches per rank, and going
there means planning, without reading audio. Where the last batches of a plan do not suffice for all ranks, the others
get an empty batch: nothing is lost, nothing comes twice, and all ranks make the same number of steps.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from s3prl_ekd import FRAME_SHIFT, SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.audio.batch import Batch, Loaded
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.audio.manifests import Entry
from s3prl_ekd.audio.utterances import Utterance, UtteranceReader
from s3prl_ekd.audio.workers import make_loader, patient
from s3prl_ekd.config.base import differences, say_differences
from s3prl_ekd.config.data import HOW_TO_READ, DataConfig
from s3prl_ekd.cuts.bucketing import draw_batches, duration_bounds
from s3prl_ekd.cuts.read import Cut, cut_key, read_audio, read_cut
from s3prl_ekd.cuts.shar import TarReader
from s3prl_ekd.cuts.sources import CutSource, digest, mix_sources, resolve_sources
from s3prl_ekd.errors import UserError

FREE = HOW_TO_READ | {"cuts", "dev_cuts", "global_batch_seconds"}
"""The settings of data that a position in it does not depend on; cuts are compared by their content. It depends on all
others, new ones included."""

_BOUNDS_FROM = 10_000  # entries that the buckets' bounds are estimated from
_PLANNED_AHEAD = 32  # batches

Planned = tuple[int, list[Entry]]
"""An epoch and the entries of one of its batches."""


@dataclass(frozen=True)
class Rank:
    """One of the processes that train together."""

    index: int = 0
    world_size: int = 1


class Targets(Protocol):
    """Targets computed before, see :class:`s3prl_ekd.target_cache.reading.TargetCache`."""

    @property
    def identity(self) -> str:
        """Equal for equal targets."""

    def read(self, cut: Cut, start: int, samples: int) -> Tensor:
        """The targets (F, D) of a part of a cut that starts on a frame.

        Raises:
            UserError: this cut has none, since its recording is bad.
            SourceError: there are none for another reason.
        """


@dataclass(frozen=True)
class Plan:
    """Which entries make which batch of an epoch, for all ranks together."""

    config: DataConfig
    seed: int
    sources: Sequence[CutSource]
    only: Callable[[Entry], bool] | None = None
    """The entries to take, in the manifests' order; None: all, in another order in each epoch."""

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
        order = self._random(epoch, "order") if self.only is None else None
        entries = mix_sources(self.sources, self.config.max_crop_samples, order)
        return draw_batches(
            entries if self.only is None else filter(self.only, entries),
            self.bounds,
            budget=self.config.batch_samples,
            most=self.config.max_batch_utterances,
            buffer=self.config.buffer_cuts,
            rng=self._random(epoch, "batches"),
        )

    def _random(self, epoch: int, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {epoch} {purpose}")

    def rank_batches(self, epoch: int, consumed: int, rank: Rank) -> Iterator[Planned]:
        """Those of one rank, the first ``consumed`` left out; without entries where only other ranks have some left."""
        batches = itertools.islice(self.batches(epoch), consumed * rank.world_size, None)
        while group := list(itertools.islice(batches, rank.world_size)):
            yield epoch, group[rank.index] if rank.index < len(group) else []


class BatchReader(Dataset[Loaded | UserError]):
    """Reads a batch of entries as an epoch hears it: ``reader[epoch, entries]``."""

    def __init__(self, config: DataConfig, distortion: DistortionConfig, seed: int, targets: Targets | None) -> None:
        self.targets = targets
        self.tars = TarReader(config.shar_cache, config.shar_cache_gb)
        self.utterances = UtteranceReader(
            Distorter(distortion),
            seed=seed,
            longest=config.max_crop_samples,
            step=1 if targets is None else FRAME_SHIFT,  # a cached target starts with its frame
        )

    def __getitem__(self, item: Planned | UserError) -> Loaded | UserError:
        """A UserError is returned, see :func:`~s3prl_ekd.audio.workers.patient`."""
        if isinstance(item, UserError):
            return item
        epoch, entries = item
        try:
            return self.utterances.read(epoch, map(self._utterance, entries))
        except UserError as error:
            return error

    def _utterance(self, entry: Entry) -> Utterance:
        cut = read_cut(entry)
        samples = round(cut.duration * SAMPLE_RATE)

        def read(start: int, longest: int | None) -> tuple[Tensor, Tensor | None]:
            waveform = read_audio(cut, entry.manifest, self.tars, start, min(samples, longest or samples))
            if self.targets is None:
                return waveform, None
            return waveform, self.targets.read(cut, start, waveform.numel())

        return Utterance(cut.id, samples, read, cut_key(cut.id, cut.start, samples))


class _PlannedBatches(IterableDataset[Planned | UserError]):
    """The batches that a function plans; it is called for each pass. A UserError comes as the last item, so that it
    passes from process to process as batches do."""

    def __init__(self, plan: Callable[[], Iterable[Planned]]) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[Planned | UserError]:
        try:
            yield from self.plan()
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
        rank: Rank = Rank(),
        targets_cache: Targets | None = None,
        bad_recordings: str | Path | None = None,
        sources: Sequence[CutSource] | None = None,
        only: Callable[[Entry], bool] | None = None,
    ) -> None:
        """``seed``: of order and crops. ``targets_cache``: where batches get their targets from; crops then start on
        whole frames. ``bad_recordings``: the file that lists what was skipped. ``sources``: None: ``config.cuts``.
        ``only``: see :class:`Plan`.
        """
        self.config = config
        self.distortion = distortion
        self.rank = rank
        self.plan = Plan(config, seed, resolve_sources(config.cuts) if sources is None else sources, only)
        self.bad_recordings = BadRecordings(bad_recordings, alone=rank.world_size == 1)
        self.reader = BatchReader(config, distortion, seed, targets_cache)

    def loader(self, epoch: int, consumed: int = 0) -> EpochLoader:
        """The batches of ``epoch`` after the first ``consumed`` ones of this rank.

        Raises:
            UserError: there is something to leave out, but a source cannot be read the same way twice.
        """
        if consumed:
            self._require_resumable()
        _ = self.plan.bounds  # once here, not in every epoch's planning process
        return EpochLoader(self, epoch, consumed)

    def dev_loader(self) -> EpochLoader | None:
        """The dev data, with the same crops and distortions at each pass; None where the configuration names none."""
        if not self.config.dev_cuts:
            return None
        dev = BatchStream(
            self.config,
            self.distortion,
            seed=self.plan.seed,
            rank=self.rank,
            targets_cache=self.reader.targets,
            bad_recordings=self.bad_recordings.path,
            sources=resolve_sources(self.config.dev_cuts, "data.dev_cuts"),
        )
        return dev.loader(0)

    def identity(self) -> dict[str, str]:
        """What a position depends on, to be stored with it; see :meth:`require_identity`."""
        identity = _settings(self.config)
        identity |= {"seed": str(self.plan.seed), "number of processes": str(self.rank.world_size)}
        identity["targets.cache"] = self.reader.targets.identity if self.reader.targets is not None else "none"
        for index, source in enumerate(self.plan.sources):
            digests = " ".join(digest(manifest) for manifest in source.manifests)
            short = hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()
            identity[f"{source.key}[{index}]"] = f"{source.name} {len(source.manifests)} {short}"
        return identity

    def require_identity(self, stored: Mapping[str, str]) -> None:
        """Check that a position stored with ``stored`` still means the same.

        Raises:
            UserError: names the source that cannot be resumed exactly, or what has changed.
        """
        self._require_resumable()
        changed = differences(_settings(DataConfig(cuts=self.config.cuts)) | dict(stored), self.identity())
        if changed:
            said = say_differences(changed, "{name} was {before}, now it is {now}")
            raise UserError(f"cannot resume exactly: {said}; restore it, or start a new run")

    def _require_resumable(self) -> None:
        for source in self.plan.sources:
            if source.name.startswith("pipe:"):
                raise UserError(
                    f"{source.key}: {source.name!r} cannot be resumed exactly, since a command may print something else"
                    " the next time; name files or an object store's addresses, or start a new run"
                )


class EpochLoader:
    """Iterates batches from one position of one epoch; each pass starts there again."""

    def __init__(self, stream: BatchStream, epoch: int, consumed: int) -> None:
        self.stream = stream
        self.epoch = epoch
        self.consumed = consumed
        self.bad_recordings = stream.bad_recordings

    def __iter__(self) -> Iterator[Batch]:
        self.bad_recordings.begin_pass()
        for loaded in patient(self._loader(), self.stream.config.timeout_seconds):
            self.bad_recordings.note(loaded.read, loaded.bad)
            yield loaded.batch

    def _loader(self) -> DataLoader[Loaded | UserError]:
        """Of the batches; where there are workers, another process plans them.

        Each loader has a generator of its own, since the global one's state is part of what a resumed run restores.
        """
        stream, workers = self.stream, self.stream.config.num_workers
        planned = _PlannedBatches(functools.partial(stream.plan.rank_batches, self.epoch, self.consumed, stream.rank))
        if workers:
            planner = make_loader(
                planned, workers=1, prefetch=_PLANNED_AHEAD, generator=torch.Generator(), pin_memory=False
            )
            planned = _PlannedBatches(functools.partial(patient, planner, stream.config.timeout_seconds))
        return make_loader(
            stream.reader,
            sampler=planned,
            workers=workers,
            prefetch=stream.config.prefetch_batches,
            generator=torch.Generator(),
        )


def _settings(config: DataConfig) -> dict[str, str]:
    """What the order of the batches and the crops depend on."""
    return {f"data.{name}": str(value) for name, value in config.to_mapping().items() if name not in FREE}
