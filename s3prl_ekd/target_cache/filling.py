"""Fills a cache: the teachers hear all cuts of a recipe once, and the targets are stored.

These are what the prediction heads must predict: normalised if the recipe says so, and combined by its aggregation.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.serialization import decode_json_line
from torch import Tensor
from tqdm import tqdm

from s3prl_ekd import FRAME_SHIFT, MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import BAD_RECORDINGS
from s3prl_ekd.audio.batch import Batch
from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.audio.manifests import Entry
from s3prl_ekd.calibration.kept import calibration_of_cache
from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.config.training import Precision, RunConfig
from s3prl_ekd.cuts.read import cut_key
from s3prl_ekd.cuts.sources import CutSource, mix_sources, resolve_sources, tar_beside
from s3prl_ekd.cuts.stream import BatchStream
from s3prl_ekd.devices import check_device, default_device
from s3prl_ekd.distiller import common_frames, teacher_states
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import only_writer
from s3prl_ekd.target_cache.files import command
from s3prl_ekd.target_cache.initial_weights import read_start, write_start
from s3prl_ekd.target_cache.settings import check_cacheable, read_description, require_same, write_description
from s3prl_ekd.target_cache.shards import ShardWriter, shards, write_index
from s3prl_ekd.targets import Aggregator, aggregator
from s3prl_ekd.teachers import Teacher, load_teacher, load_teachers

logger = logging.getLogger(__name__)

_MEASURED_BATCHES = 8
_MEASURED_SECONDS = 30.0
_HALF_MAX = torch.finfo(torch.float16).max
_AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def entry_key(entry: Entry) -> int:
    """The number that finds the cut of a manifest's line in the index."""
    item = decode_json_line(entry.line)
    return cut_key(item["id"], item.get("start", 0.0), entry.samples)


def _sources(data: DataConfig) -> Iterator[list[CutSource]]:
    """Those of the training data, and those of the dev data if there are any."""
    yield resolve_sources(data.cuts)
    if data.dev_cuts:
        yield resolve_sources(data.dev_cuts, "data.dev_cuts")


def _entries(data: DataConfig) -> Iterator[Entry]:
    for sources in _sources(data):
        yield from mix_sources(sources, None, None)


@dataclass(frozen=True)
class Work:
    """Cuts: their keys (n,) and samples (n,), each cut once."""

    keys: np.ndarray
    samples: np.ndarray

    @property
    def hours(self) -> float:
        """Hours of speech."""
        return int(self.samples.sum()) / SAMPLE_RATE / 3600

    @property
    def frames(self) -> int:
        """Frames that the targets have."""
        return int(((self.samples - MIN_SAMPLES) // FRAME_SHIFT + 1).sum())

    def only(self, chosen: np.ndarray) -> Work:
        """The cuts where ``chosen`` (n,) is True."""
        return Work(self.keys[chosen], self.samples[chosen])


def survey(data: DataConfig) -> Work:
    """All cuts of training and dev data, from their manifests.

    Raises:
        UserError: two recordings cannot be told apart by name, start and length.
    """
    keys, samples = array("q"), array("q")
    for entry in tqdm(_entries(data), desc="reading manifests", unit="cut", delay=2, leave=False):
        keys.append(entry_key(entry))
        samples.append(entry.samples)
    unique, first, counts = np.unique(np.array(keys, dtype=np.int64), return_index=True, return_counts=True)
    if (counts > 1).any():
        _require_same_audio(data, set(unique[counts > 1].tolist()))
    return Work(unique, np.array(samples, dtype=np.int64)[first])


def _require_same_audio(data: DataConfig, repeated: set[int]) -> None:
    found: dict[int, tuple[Any, str]] = {}
    for entry in _entries(data):
        key = entry_key(entry)
        if key not in repeated:
            continue
        item = decode_json_line(entry.line)
        audio = [
            tar_beside(entry.manifest) if source["type"] == "shar" else source["source"]
            for source in item.get("recording", item)["sources"]
        ]
        other, manifest = found.setdefault(key, (audio, entry.manifest))
        if other != audio:
            raise UserError(
                f"cut {item['id']} of {entry.manifest} and that of {manifest} have one name and length, so that their"
                " targets would be confused; give the recordings of one of them other names"
            )


def _is_wanted(keys: np.ndarray, entry: Entry) -> bool:
    """Whether an entry's cut is one of those with the sorted ``keys``."""
    key = entry_key(entry)
    at = int(np.searchsorted(keys, np.int64(key)))
    return at < len(keys) and int(keys[at]) == key


class Caching:
    """The computation of one cache.

    Args:
        config: the recipe of ``s3prl-ekd distill``.
        folder: of the cache.
        part: (k, n): of n processes that share the work this is the k-th, from 0.
        device: where the teachers run; None: as the recipe's ``trainer.accelerator``.

    Raises:
        UserError: the targets cannot be cached, or the folder holds another recipe's.
    """

    def __init__(
        self, config: RunConfig, folder: str | Path, *, part: tuple[int, int] = (0, 1), device: str | None = None
    ) -> None:
        check_cacheable(config)
        self._batch_size = config.data.given_size
        self.folder = Path(folder)
        self.part = part
        self.device = torch.device(check_device(device) if device else default_device(config.trainer.accelerator))
        self._given = config.of_processes(max(config.trainer.devices or 1, 1) * config.trainer.num_nodes)
        self._take_over()
        self._warned: set[str] = set()

    def _take_over(self) -> None:
        """Go by what the folder keeps, which must be for this recipe, or by what is found now if it keeps nothing."""
        stored = read_description(self.folder)
        self._calibration = calibration_of_cache(self._given, self.folder, str(self.device), made=stored is not None)
        self.config = self._calibration.resolve(self._given)
        self._fits = self._calibration.fits.to(self.device)
        self._described = stored is not None
        if stored is not None:
            require_same(self.folder, stored, self.config)
        self._teachers: list[Teacher] = []  # with the layers that are needed now

    @property
    def teachers(self) -> list[Teacher]:
        """Loaded when first needed."""
        if not self._teachers:
            self._teachers = [teacher.to(self.device) for teacher in load_teachers(self.config)]
        return self._teachers

    def _work(self) -> tuple[Work, Work]:
        """All cuts of this part, and those that are still to be computed."""
        everything = survey(self.config.data)
        number, parts = self.part
        own = everything.only(everything.keys % parts == number)
        done = np.concatenate([np.empty(0, np.int64), *(shard.keys.numpy() for shard in shards(self.folder))])
        return own, own.only(~np.isin(own.keys, done))

    def estimate(self) -> str:
        """How much and how long, measured on a few utterances; nothing is written."""
        work, left = self._work()
        widths = [target.size for target in self._aggregator().targets]
        gigabytes = 2e-9 * sum(widths)
        speed = self._speed(work, left)
        duration = f"{left.hours / speed:,.2g} h ({speed:,.0f} h of speech an hour, {self.device})" if speed else "-"
        lines = [
            ("cuts", f"{len(work.keys):,} ({work.hours:,.3f} h of speech)"),
            ("to compute", f"{len(left.keys):,} ({left.hours:,.3f} h of speech)"),
            ("targets", f"{' + '.join(map(str, widths))} values a frame, 2 bytes each"),
            ("size", f"{gigabytes * left.frames:,.4g} GB ({gigabytes * work.frames:,.4g} GB with what is there)"),
            ("time", duration),
        ]
        return "\n".join(f"{name:12s}{value}" for name, value in lines)

    def _speed(self, work: Work, left: Work) -> float:
        """Hours of speech an hour; 0 where there is nothing to measure."""
        hours, start = 0.0, time.monotonic()
        batches = self._batches(work, left, list_bad=False) if len(left.keys) else ()
        for number, (_, batch) in enumerate(itertools.islice(batches, _MEASURED_BATCHES + 1)):
            self._compute(batch)
            if number == 0 and len(left.keys) > len(batch.utterances):  # the first one starts loader and device
                start = time.monotonic()
                continue
            hours += int(batch.lengths.sum()) / SAMPLE_RATE / 3600
            if time.monotonic() - start > _MEASURED_SECONDS:
                break
        return hours * 3600 / (time.monotonic() - start)

    def _aggregator(self) -> Aggregator:
        return aggregator(self.config, {teacher.name: teacher.hidden_size for teacher in self.teachers})

    def run(self, *, shard_bytes: float = 1e9, verify: bool = False) -> None:
        """Compute what is missing; the index is written when nothing is.

        Args:
            shard_bytes: size of a file of targets.
            verify: read all finished files first.

        Raises:
            UserError: the recipe or its data are wrong, a file is damaged, memory or disk are full.
        """
        if verify:
            self._verify()
        work, left = self._work()
        logger.info("%s: %d cuts to compute, %.2f h of speech", self.folder, len(left.keys), left.hours)
        self._describe()
        self._keep_start()
        if len(left.keys):
            _ = self.teachers  # loaded before the clock starts
        writer = ShardWriter(self.folder, self.part[0], shard_bytes)
        with tqdm(
            total=left.hours + 1e-6,  # more than the rounded sum of the batches
            desc="caching targets",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of speech [{elapsed}<{remaining}]",
            disable=not len(left.keys),
            mininterval=1 if sys.stderr.isatty() else 60,
        ) as bar:
            for stream, batch in self._batches(work, left) if len(left.keys) else ():
                self._store(stream, batch, writer)
                bar.update(int(batch.lengths.sum()) / SAMPLE_RATE / 3600)
        writer.flush()
        if self.part[1] > 1:
            logger.info("part %d of %d is done; after all parts, run %s", *self.part, command(self.folder))
            return
        logger.info("%s: targets of %d cuts", self.folder, write_index(self.folder))

    def _verify(self) -> None:
        damaged = []
        for shard in tqdm(list(shards(self.folder)), desc="checking files", unit="file", delay=2):
            try:
                shard.verify()
            except UserError as error:
                logger.error("%s", error)
                damaged.append(shard.path.name)
        if damaged:
            raise UserError(
                f"{self.folder}: damaged: {', '.join(damaged)}; delete them and run {command(self.folder)}, which makes"
                " them again"
            )

    def _describe(self) -> None:
        """Write down what the targets are made of, unless another part was faster; all parts go by what is written."""
        if self._described:
            return
        if read_description(self.folder) is None:
            self._aggregator()  # refuses teachers that do not fit together
            with only_writer(self.folder, wait=True):
                if read_description(self.folder) is None:
                    self._calibration.write(self.folder)
                    write_description(self.folder, self.config, {one.name: one.hidden_size for one in self.teachers})
                    return
        self._take_over()

    def _keep_start(self) -> None:
        student = self.config.student
        if student.origin is None or read_start(self.folder, student) is not None:
            return
        number = next(i for i, teacher in enumerate(self.config.teachers) if teacher.name == student.origin)
        loaded, entry = self._teachers, self.config.teachers[number]
        teacher = loaded[number] if loaded else load_teacher(entry, initializes=student.origin_layers)
        architecture = None if student.copy is None else teacher.architecture()
        write_start(self.folder, student, teacher.encoder_state(), architecture)

    def _batches(self, work: Work, left: Work, *, list_bad: bool = True) -> Iterator[tuple[BatchStream, Batch]]:
        """Batches of whole utterances of the training and dev data that are ``left`` of ``work``, each once."""
        wanted = left.keys
        seen: list[int] = []
        for sources in _sources(self.config.data):
            stream = BatchStream(
                dataclasses.replace(self.config.data, max_crop_samples=None),
                DistortionConfig(),
                seed=0,
                bad_recordings=self.folder / BAD_RECORDINGS if list_bad else None,
                sources=sources,
                only=functools.partial(_is_wanted, wanted),
            )
            # The cuts that have targets already were good, and count beside the bad ones, which are all read again.
            stream.bad_recordings.skip(len(work.keys) - len(left.keys))
            for batch in stream.loader(0):
                if batch.keys is not None:
                    seen += batch.keys.tolist()
                    yield stream, batch
            wanted = wanted[~np.isin(wanted, seen)]

    def _compute(self, batch: Batch) -> tuple[Tensor, list[int]]:
        """Targets (N, D') in float32 on the device, and the frames of each utterance."""
        precision = self.config.trainer.precision
        try:
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST),
            ):
                outputs = teacher_states(self.config, self.teachers, batch.to(self.device), self._fits)
                frames = common_frames([output.packing for output in outputs])
                combined = self._aggregator()([output.first(frames) for output in outputs])
                return torch.cat([value.float() for value in combined], dim=-1), frames.tolist()
        except torch.OutOfMemoryError as error:
            key, seconds = self._batch_size
            raise UserError(
                f"out of memory with a batch of {int(batch.lengths.sum()) / SAMPLE_RATE:.1f} s of speech (the longest"
                f" {int(batch.lengths.max()) / SAMPLE_RATE:.1f} s); lower data.{key} (now {seconds:g}),"
                " or cut long recordings: teachers hear whole cuts here"
            ) from error

    def _store(self, stream: BatchStream, batch: Batch, writer: ShardWriter) -> None:
        targets, frames = self._compute(batch)
        largest = targets.abs().amax(dim=-1).cpu()  # (N,), NaN and infinity included
        peaks = [float(part.max()) for part in largest.split(frames)]
        if any(_HALF_MAX < peak < math.inf for peak in peaks):
            self._warn_of_large(targets)
        assert batch.keys is not None, "cuts have keys"
        stored = targets.clamp(-_HALF_MAX, _HALF_MAX).half().cpu().split(frames)
        for name, key, peak, value in zip(batch.utterances, batch.keys.tolist(), peaks, stored, strict=True):
            if math.isfinite(peak):
                writer.add(key, value)
            else:
                stream.bad_recordings.note(0, [(name, f"{name}: the teachers give values that are not finite")])

    def _warn_of_large(self, targets: Tensor) -> None:
        plan = self._aggregator().targets
        for target, values in zip(plan, targets.split([target.size for target in plan], dim=-1), strict=True):
            largest = float(values[values.isfinite()].abs().max())
            if largest > _HALF_MAX and target.name not in self._warned:
                self._warned.add(target.name)
                logger.warning(
                    "target %s: values up to %.4g are stored as %.0f, where float16 ends. Use layer_norm_targets: true"
                    " for the teachers, or let them run in training (targets.cache: null)",
                    target.name, largest, _HALF_MAX,
                )  # fmt: skip
