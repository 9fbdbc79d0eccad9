"""Shards of targets, and the index that says where each cut is."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from s3prl_ekd.audio.bad_recordings import BAD_RECORDINGS
from s3prl_ekd.errors import UserError
from s3prl_ekd.target_cache.files import CheckedFile, save_checked

BLOCK = 64
"""Rows that share a checksum."""


class Shard(CheckedFile):
    """Targets of some cuts.

    Attributes:
        keys: (cuts,) int64.
        frames: (cuts,) int64.
        size, width: rows N and columns D of the targets.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.keys, self.frames, self._sums = self.columns("keys", "frames", "checksums")
        try:
            self._targets = self._file.get_slice("targets")
        except SafetensorError as error:
            raise self.damaged("no targets") from error
        shape = self._targets.get_shape()
        if len(shape) != 2 or self._targets.get_dtype() != "F16":
            raise self.damaged(f"targets of {self._targets.get_dtype()} {shape}")
        self.size, self.width = shape
        if len(self.frames) != len(self.keys) or (self.frames < 0).any() or int(self.frames.sum()) != self.size:
            raise self.damaged(f"the frames of its cuts are not those of {self.size} rows")
        if len(self._sums) != -(-self.size // BLOCK):
            raise self.damaged(f"{len(self._sums)} checksums of {self.size} rows")

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
        """Read all of it, as :meth:`read` does."""
        for first in range(0, self.size, BLOCK):
            self.read(first, min(BLOCK, self.size - first))


class ShardWriter:
    """Collects targets and writes a shard once they have ``shard_bytes``.

    Of several processes that fill one cache, each has another ``part``, which is in the names of its shards.
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
        """Write what has been added since the last shard."""
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
    """All complete shards of a folder, in order.

    Raises:
        SourceError: one is damaged.
    """
    for path in sorted(folder.glob("targets-*.safetensors")):
        yield Shard(path)


def write_index(folder: Path) -> int:
    """Write where each cut is; returns how many there are.

    Raises:
        UserError: there are none.
    """
    names, checksums, columns = [], [], []
    for number, shard in enumerate(shards(folder)):
        rows = shard.frames.cumsum(0) - shard.frames
        columns.append(torch.stack([shard.keys, torch.full_like(rows, number), rows, shard.frames]))
        names.append(shard.path.name)
        checksums.append(shard.checksum)
    if not columns:
        problems = folder / BAD_RECORDINGS
        listed = f" (listed in {problems})" if problems.exists() else ""
        raise UserError(f"{folder}: not one usable recording, so there are no targets{listed}")
    table = torch.cat(columns, dim=1)
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
