"""Files of tensors with a checksum, mapped into memory."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import atomic_path


def command(folder: Path) -> str:
    """The command that fills a cache, for messages."""
    return f"`s3prl-ekd cache-targets RECIPE {folder}`"


def checksum(tensors: Iterable[Tensor]) -> int:
    """CRC-32 of all of them together."""
    return functools.reduce(lambda value, tensor: zlib.crc32(tensor.contiguous().numpy().data, value), tensors, 0)


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
            raise self.damaged(one_line(error)) from error
        self.checksum = checksum(self.tensors.values())
        if self.metadata.get("checksum") != str(self.checksum):
            raise self.damaged("its checksum is another")

    def columns(self, *names: str) -> tuple[Tensor, ...]:
        """Tensors (n,) of int64.

        Raises:
            SourceError: one is missing or something else.
        """
        found = []
        for name in names:
            tensor = self.tensors.get(name)
            if tensor is None or tensor.dim() != 1 or tensor.dtype is not torch.int64:
                raise self.damaged(f"no column of numbers {name!r}")
            found.append(tensor)
        return tuple(found)

    def damaged(self, problem: str) -> SourceError:
        """An error that says what is wrong with the file, and what to do."""
        remedy = f"delete it and run {command(self.path.parent)}, which makes it again"
        return SourceError(f"{self.path}: damaged or incomplete ({problem}); {remedy}")
