"""Targets on disk: the teachers write them once, the loaders' workers read them in any order.

A cache is a folder of

- ``cache.json``: what the targets depend on, and the teachers' widths;
- ``targets-PPP-NNNNN.safetensors``: shards, each complete in itself. ``targets`` (N, D) are the frames of some cuts one
  after another in float16, all heads side by side; ``keys`` and ``frames`` (cuts,) say whose they are; ``checksums``
  are those of every :data:`BLOCK` rows, so that whatever is read is checked, and nothing else;
- ``index.safetensors``: where each cut is, made of the shards when all are there;
- ``initial.safetensors``: the weights that the student starts from;
- ``bad_recordings.tsv``: cuts that have no targets.

Files are mapped into memory and read where they are needed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s3prl_ekd import FRAME_SHIFT, SAMPLE_RATE
from s3prl_ekd.config import Aggregation, DistillConfig, TeacherInput
from s3prl_ekd.data.bad_recordings import listed, one_line
from s3prl_ekd.data.pretrain import MIN_SAMPLES
from s3prl_ekd.data.sources import SourceError
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path, write_json

FORMAT = 1
BLOCK = 64
"""Rows that share a checksum."""
HALF_MAX = 65504.0
"""The largest float16."""

_OPEN_SHARDS = 256  # mapped by one process at a time
_DEPENDS_ON = ("s3prl", "transformers", "mini", "ckpt", "layers", "layer_norm_targets", "normalize_waveform")


# ---- what a cache holds


def check_cacheable(config: DistillConfig) -> None:
    """That the targets of a recipe are the same in every epoch and every batch.

    Raises:
        UserError: they are not.
    """
    instead = "or let the teachers run in training (targets.cache: null)"
    if config.distortion.teacher_input is TeacherInput.DISTORTED:
        raise UserError(
            "distortion.teacher_input: the targets of distorted speech cannot be cached, since it is distorted"
            f" otherwise in every epoch; use clean, {instead}"
        )
    if config.objective.loss_on_padding:
        raise UserError(
            "objective.loss_on_padding: what teachers make of padding cannot be cached, since it depends on the other"
            f" utterances of a batch; use false, {instead}"
        )


def describe(config: DistillConfig) -> dict[str, Any]:
    """The settings that targets depend on, as plain values by their names in messages."""
    description: dict[str, Any] = {
        "objective.aggregation": str(config.objective.aggregation),
        "teachers": [teacher.name for teacher in config.teachers],
    }
    average = config.objective.aggregation is Aggregation.LAYERWISE_AVERAGE
    for teacher in config.teachers:
        values = teacher.to_mapping()
        for key in (*_DEPENDS_ON, "weight") if average else _DEPENDS_ON:
            description[f"teachers.{teacher.name}.{key}"] = values[key]
    return description


def cut_key(name: str, start: float, samples: int) -> int:
    """What finds a cut in the index: 64 bits that depend on its name, its start in seconds and its length."""
    text = f"{name}\t{round(start * SAMPLE_RATE)}\t{samples}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def command(folder: Path) -> str:
    """What to run, for messages."""
    return f"`s3prl-ekd cache-targets RECIPE {folder}`"


# ---- files


def checksum(tensors: Iterable[Tensor]) -> int:
    """CRC-32 of all of them together."""
    return functools.reduce(lambda value, tensor: zlib.crc32(tensor.contiguous().numpy(), value), tensors, 0)


def save_checked(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors with a checksum over all of them (for a shard: over all but ``targets``).

    Raises:
        UserError: the disk is full or fails; nothing is left of the attempt.
    """
    tensors = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    value = checksum(tensor for name, tensor in tensors.items() if name != "targets")
    try:
        with atomic_path(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # what save_file writes is for its owner alone
            save_file(tensors, temporary, {**(metadata or {}), "checksum": str(value)})
            temporary.chmod(mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be written ({error}); make room and run the command again, finished files stay"
        ) from error


class CheckedFile:
    """A file of :func:`save_checked`, mapped.

    Attributes:
        path: where it is.
        metadata: as written.
        tensors: all but ``targets``.

    Raises:
        SourceError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self.metadata: Mapping[str, str] = self._file.metadata() or {}
            names = sorted(set(self._file.keys()) - {"targets"})
            self.tensors = {name: self._file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            if not path.exists():
                raise SourceError(f"{path}: missing; run {command(path.parent)}, which makes it again") from error
            raise self.damaged(" ".join(str(error).split())) from error
        self.checksum = checksum(self.tensors.values())
        if self.metadata.get("checksum") != str(self.checksum):
            raise self.damaged("its checksum is another")

    def damaged(self, problem: str) -> SourceError:
        """The error to raise."""
        remedy = f"delete it and run {command(self.path.parent)}, which makes it again"
        return SourceError(f"{self.path}: damaged or incomplete ({problem}); {remedy}")


class Shard(CheckedFile):
    """Targets of some cuts.

    Attributes:
        keys: (cuts,) int64.
        frames: (cuts,) int64.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.keys, self.frames, self._sums = (self.tensors[name] for name in ("keys", "frames", "checksums"))
        self._targets = self._file.get_slice("targets")
        self.size = self._targets.get_shape()[0]

    def read(self, first: int, rows: int) -> Tensor:
        """Rows (rows, D) in float16, checked.

        Raises:
            SourceError: they are damaged.
        """
        start, end = first // BLOCK * BLOCK, min(self.size, -(-(first + rows) // BLOCK) * BLOCK)
        values = self._targets[start:end]
        for place, block in enumerate(values.split(BLOCK), start // BLOCK):
            if zlib.crc32(block.numpy()) != self._sums[place]:
                raise self.damaged(f"the checksum of block {place} is another")
        return values[first - start : first - start + rows].clone()

    def verify(self) -> None:
        """Read all of it.

        Raises:
            SourceError: it is damaged.
        """
        for first in range(0, self.size, BLOCK):
            self.read(first, min(BLOCK, self.size - first))


class ShardWriter:
    """Collects targets and writes them when there are enough for a shard.

    Args:
        folder: of the cache.
        part: number of the process among those that share the work; shards of different parts have different names.
        shard_bytes: size at which a shard is complete.
    """

    def __init__(self, folder: Path, part: int, shard_bytes: float) -> None:
        self.folder = folder
        self.part = part
        self.shard_bytes = shard_bytes
        numbers = (int(path.stem.rpartition("-")[2]) for path in folder.glob(f"targets-{part:03d}-*.safetensors"))
        self._number = max(numbers, default=-1) + 1
        self._keys: list[int] = []
        self._targets: list[Tensor] = []
        self._bytes = 0
        for leftover in folder.glob(f".targets-{part:03d}-*.part.safetensors"):
            leftover.unlink(missing_ok=True)

    def add(self, key: int, targets: Tensor) -> None:
        """Take the targets (F, D) of a cut, float16 on the CPU."""
        self._keys.append(key)
        self._targets.append(targets)
        self._bytes += targets.nbytes
        if self._bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is there."""
        if not self._keys:
            return
        targets = torch.cat(self._targets)
        tensors = {
            "targets": targets,
            "keys": torch.tensor(self._keys),
            "frames": torch.tensor([len(one) for one in self._targets]),
            "checksums": torch.tensor([zlib.crc32(block.numpy()) for block in targets.split(BLOCK)]),
        }
        save_checked(self.folder / f"targets-{self.part:03d}-{self._number:05d}.safetensors", tensors)
        self._number += 1
        self._keys, self._targets, self._bytes = [], [], 0


def shards(folder: Path) -> Iterator[Shard]:
    """All finished shards of a folder.

    Raises:
        SourceError: one is damaged.
    """
    for path in sorted(folder.glob("targets-*.safetensors")):
        yield Shard(path)


def write_index(folder: Path) -> int:
    """Write where each cut is; how many there are."""
    names, checksums, columns = [], [], []
    for number, shard in enumerate(shards(folder)):
        rows = shard.frames.cumsum(0) - shard.frames
        columns.append(torch.stack([shard.keys, torch.full_like(rows, number), rows, shard.frames]))
        names.append(shard.path.name)
        checksums.append(shard.checksum)
    table = torch.cat(columns, dim=1) if columns else torch.zeros(4, 0, dtype=torch.long)
    order = table[0].argsort(stable=True)
    table = table[:, order]
    new = torch.ones(table.shape[1], dtype=torch.bool)
    new[1:] = table[0, 1:] != table[0, :-1]  # a cut may have been computed by two processes
    table = table[:, new]
    tensors = dict(zip(("keys", "shards", "rows", "frames"), table, strict=True))
    save_checked(
        folder / "index.safetensors",
        {**tensors, "checksums": torch.tensor(checksums, dtype=torch.long)},
        {"shards": json.dumps(names)},
    )
    return table.shape[1]


def write_description(folder: Path, config: DistillConfig, widths: Mapping[str, int]) -> None:
    """Write ``cache.json``."""
    write_json(folder / "cache.json", {"format": FORMAT, "widths": dict(widths), "made_with": describe(config)})


def read_description(folder: Path) -> dict[str, Any] | None:
    """What :func:`write_description` wrote; None where there is nothing.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / "cache.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise UserError(f"{folder}: of format {stored['format']}, this version reads {FORMAT}; make it anew")
        return stored
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and run {command(folder)}") from error


def require_same(folder: Path, stored: Mapping[str, Any], config: DistillConfig) -> None:
    """Check that the targets in a folder are those of a recipe.

    Raises:
        UserError: names the settings that differ.
    """
    there, here = stored["made_with"], describe(config)
    changed = [
        f"{name}: {there.get(name)!r} in the cache, {here.get(name)!r} in the recipe"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder}: holds the targets of another recipe ({'; '.join(changed)}); correct the recipe, or make a cache"
            " of its own with `s3prl-ekd cache-targets`"
        )


# ---- the student's start


def needed_at_start(name: str, layers: int) -> bool:
    """Whether a student of so many layers starts from a teacher's weight of this name (transformers' names)."""
    if name.startswith("encoder.layers."):
        return int(name.split(".")[2]) < layers
    return not name.startswith("encoder.layer_norm.")


def write_start(folder: Path, teacher: str, layers: int, state: Mapping[str, Tensor]) -> None:
    """Keep what a student needs of its teacher's weights (transformers' names)."""
    kept = {name: value for name, value in state.items() if needed_at_start(name, layers)}
    save_checked(folder / "initial.safetensors", kept, {"teacher": teacher, "layers": str(layers)})


def read_start(folder: Path, teacher: str, layers: int) -> dict[str, Tensor] | None:
    """What :func:`write_start` wrote; None if it was for no student, another teacher or fewer layers."""
    path = folder / "initial.safetensors"
    if not path.exists():
        return None
    file = CheckedFile(path)
    fits = file.metadata["teacher"] == teacher and int(file.metadata["layers"]) >= layers
    return dict(file.tensors) if fits else None


# ---- reading


class CutLike(Protocol):
    """What of a cut matters here; seconds."""

    id: str
    start: float
    duration: float


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
        self._open_index()

    def _open_index(self) -> None:
        index = CheckedFile(self.folder / "index.safetensors")
        self._shards: list[str] = json.loads(index.metadata["shards"])
        self._index = index.tensors
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "widths": self.widths, "_stored": self._stored}  # maps stay in their process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_index()

    def __len__(self) -> int:
        return len(self._index["keys"])

    def require(self, config: DistillConfig) -> TargetCache:
        """Check that it is the cache of a recipe; returns itself.

        Raises:
            UserError: the recipe's targets cannot be cached, or differ in a setting, which is named.
        """
        check_cacheable(config)
        require_same(self.folder, self._stored, config)
        return self

    @property
    def identity(self) -> str:
        """Equal for caches of the same targets."""
        text = json.dumps(self._stored["made_with"], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def start(self, teacher: str, layers: int) -> dict[str, Tensor]:
        """The weights of a teacher that a student of so many layers starts from.

        Raises:
            UserError: the cache keeps those of another teacher, or fewer layers.
        """
        state = read_start(self.folder, teacher, layers)
        if state is None:
            raise UserError(
                f"student.initialize_from: {self.folder} does not keep the first {layers} layers of {teacher!r};"
                f" {command(self.folder)} with this recipe adds them, or set it to null"
            )
        return state

    def find(self, key: int) -> Place | None:
        """Where a cut is (see :func:`cut_key`)."""
        keys = self._index["keys"]
        at = int(torch.searchsorted(keys, key))
        if at == len(keys) or int(keys[at]) != key:
            return None
        return Place(*(int(self._index[name][at]) for name in ("shards", "rows", "frames")))

    def read(self, cut: CutLike, start: int, samples: int) -> Tensor:
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
            problems = self.folder / "bad_recordings.tsv"
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
        return self._shard(place.shard).read(place.row + first, min(frames, place.frames - first))

    @functools.cached_property
    def _bad(self) -> frozenset[str]:
        return listed(self.folder / "bad_recordings.tsv")

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
