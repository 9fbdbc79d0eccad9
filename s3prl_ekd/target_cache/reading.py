"""A complete cache, read in any order by the loaders' workers."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from s3prl_ekd import FRAME_SHIFT, MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import BAD_RECORDINGS, SourceError, listed
from s3prl_ekd.calibration import result as calibration
from s3prl_ekd.config.recipe import DistillConfig, StudentConfig
from s3prl_ekd.cuts.read import Cut, cut_key
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.network.config import Architecture
from s3prl_ekd.target_cache.files import CheckedFile, checksum, command
from s3prl_ekd.target_cache.initial_weights import Start, read_start
from s3prl_ekd.target_cache.settings import check_cacheable, read_description, require_same
from s3prl_ekd.target_cache.shards import Shard
from s3prl_ekd.targets import aggregator

_OPEN_SHARDS = 256  # mapped by one process at a time


class Place(NamedTuple):
    """Where the targets of a cut are."""

    shard: int
    row: int
    frames: int


class TargetCache:
    """A complete cache, by cut.

    Attributes:
        folder: where it is.
        widths: teacher -> its width.

    Raises:
        UserError: the folder holds no complete cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        stored = read_description(self.folder)
        if stored is None:
            raise UserError(f"targets.cache: {folder} holds no targets; {command(self.folder)} computes them")
        if not (self.folder / "index.safetensors").exists():
            raise UserError(f"targets.cache: {folder} is incomplete; {command(self.folder)} goes on where it stopped")
        self.widths: dict[str, int] = stored["widths"]
        self._stored = stored
        self._open: OrderedDict[int, Shard] = OrderedDict()
        index = CheckedFile(self.folder / "index.safetensors")
        names = ("keys", "shards", "rows", "frames", "checksums")
        self._index = dict(zip(names, index.columns(*names), strict=True))
        try:
            self._shards: list[str] = json.loads(index.metadata["shards"])
            known = all(re.fullmatch(r"targets-[\w-]+\.safetensors", name) for name in self._shards)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise index.damaged("it does not name its files") from error
        keys, shards, rows, frames = (self._index[name] for name in names[:-1])
        cuts = {len(column) for column in (keys, shards, rows, frames)}
        if not known or len(self._index["checksums"]) != len(self._shards) or len(cuts) != 1:
            raise index.damaged("its columns or the files that it names do not fit together")
        if len(keys) and (
            (keys.diff() <= 0).any() or shards.min() < 0 or shards.max() >= len(self._shards) or rows.min() < 0
        ):
            raise index.damaged("a cut is in no file, or not in its order")
        if len(frames) and frames.min() < 1:
            raise index.damaged("a cut of no frame")

    def __reduce__(self) -> tuple[type[TargetCache], tuple[Path]]:
        return TargetCache, (self.folder,)  # a loader's process maps the files itself

    def __len__(self) -> int:
        return len(self._index["keys"])

    def require(self, config: DistillConfig) -> TargetCache:
        """Check that it is the cache of a recipe; returns itself.

        Raises:
            UserError: the recipe's targets cannot be cached, or differ in a setting, which is named.
        """
        check_cacheable(config)
        require_same(self.folder, self._stored, config)
        if missing := [teacher.name for teacher in config.teachers if teacher.name not in self.widths]:
            raise self._damaged(f"it says no width of {', '.join(missing)}")
        width = sum(target.size for target in aggregator(config, self.widths).targets)
        if self._shards and self._shard(0).width != width:
            raise self._damaged(f"its widths make {width} values a frame, {self._shards[0]} has {self._shard(0).width}")
        return self

    def _damaged(self, problem: str) -> UserError:
        return UserError(
            f"{self.folder / 'cache.json'}: damaged ({problem}); delete it and run {command(self.folder)} with the"
            " recipe that the cache was made with"
        )

    @property
    def identity(self) -> str:
        """Equal for caches of the same targets."""
        text = json.dumps(self._stored["made_with"], sort_keys=True)
        found = calibration.read(self.folder)
        if found is not None and (fits := found.fits.state()):
            text += f" {checksum(tensor.reshape(-1) for _, tensor in sorted(fits.items()))}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def start(self, student: StudentConfig) -> dict[str, Tensor]:
        """The weights that a student starts from.

        Raises:
            UserError: the cache keeps those of another teacher, or fewer.
        """
        return self._start(student).weights

    def architecture(self, student: StudentConfig) -> Architecture:
        """That of the teacher that a student is a copy of.

        Raises:
            UserError: the cache keeps that of another teacher, or none.
        """
        architecture = self._start(student).architecture
        assert architecture is not None, "a copy starts with one"
        return architecture

    def _start(self, student: StudentConfig) -> Start:
        found = read_start(self.folder, student)
        if found is not None:
            return found
        if student.copy is not None:
            raise UserError(
                f"student.copy: {self.folder} does not keep the architecture and all weights of {student.copy!r} that a"
                f" copy needs; {command(self.folder)} with this recipe adds them"
            )
        raise UserError(
            f"student.initialize_from: {self.folder} does not keep the first {student.origin_layers} layers of"
            f" {student.origin!r}; {command(self.folder)} with this recipe adds them, or set it to null"
        )

    def find(self, key: int) -> Place | None:
        """Where a cut is (see :func:`~s3prl_ekd.cuts.read.cut_key`)."""
        keys = self._index["keys"]
        at = int(torch.searchsorted(keys, key))
        if at == len(keys) or int(keys[at]) != key:
            return None
        return Place(*(int(self._index[name][at]) for name in ("shards", "rows", "frames")))

    def read(self, cut: Cut, start: int, samples: int) -> Tensor:
        """The targets of a part of a cut.

        Args:
            cut: as in the manifest.
            start: first sample of the part, that of a frame.
            samples: how many samples it has.

        Returns:
            (F, D) in float16, all heads side by side: frame i of a part that starts at sample 320 k is frame k + i of
            the whole.

        Raises:
            UserError: the recording was bad when the targets were computed.
            SourceError: the cut is not in the cache, or a shard is damaged.
        """
        place = self.find(cut_key(cut.id, cut.start, round(cut.duration * SAMPLE_RATE)))
        if place is None:
            problems = self.folder / BAD_RECORDINGS
            if one_line(cut.id) in self._bad:
                raise UserError(f"{cut.id}: has no targets, since the recording was bad (listed in {problems})")
            raise SourceError(
                f"targets.cache: cut {cut.id} is not in {self.folder}; {command(self.folder)} adds what is missing"
            )
        first, left = divmod(start, FRAME_SHIFT)
        if left:
            raise ValueError(f"a part that starts at sample {start}, which is within a frame")
        frames = (samples - MIN_SAMPLES) // FRAME_SHIFT + 1
        if place.frames - first < frames - 1:
            raise SourceError(
                f"targets.cache: cut {cut.id} has {place.frames} frames in {self.folder} and needs {first + frames};"
                " its recording has changed, make the cache anew"
            )
        shard = self._shard(place.shard)
        if place.row + place.frames > shard.size:
            raise SourceError(
                f"{self.folder / 'index.safetensors'}: damaged, cut {cut.id} ends after {shard.path.name}; delete it"
                f" and run {command(self.folder)}, which makes it again"
            )
        return shard.read(place.row + first, min(frames, place.frames - first))

    @functools.cached_property
    def _bad(self) -> frozenset[str]:
        return listed(self.folder / BAD_RECORDINGS)

    def _shard(self, number: int) -> Shard:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)
            shard = Shard(self.folder / self._shards[number])
            if shard.checksum != int(self._index["checksums"][number]):
                raise SourceError(
                    f"{shard.path}: has changed since the index was made; {command(self.folder)} makes the index again"
                )
            self._open[number] = shard
        return self._open[number]
