"""Random recordings of a folder, for distortions that use recordings."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Generator, Tensor

from s3prl_ekd.audio.randomness import integer
from s3prl_ekd.audio.read import audio_files, audio_length, is_readable, load_audio
from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

_ATTEMPTS = 8  # unreadable files drawn in a row before giving up


def usable_files(folder: str | Path) -> list[Path]:
    """The recordings of a folder (or manifest) in a format that is read; the others are counted and named.

    Raises:
        UserError: see :func:`~s3prl_ekd.audio.read.audio_files`.
    """
    found = audio_files(folder)
    usable = [path for path in found if is_readable(path)]
    if len(usable) < len(found):
        first = next(path for path in found if not is_readable(path))
        logger.warning(
            "%s: %d of %d recordings are in a format that is not read and left out, the first: %s",
            folder, len(found) - len(usable), len(found), first,
        )  # fmt: skip
    return usable


def draw_readable(files: Sequence[Path], generator: Generator, read: Callable[[Path], Tensor]) -> Tensor:
    """What ``read`` gives for a random file; an unreadable one is logged and another drawn.

    Raises:
        UserError: several in a row are unreadable.
    """
    problem = None
    for _ in range(_ATTEMPTS):
        path = files[integer(generator, len(files))]
        try:
            return read(path)
        except UserError as error:
            _warn_once(str(error))
            problem = error
    raise UserError(f"distortion: {_ATTEMPTS} files in a row could not be used, the last one: {problem}")


def stretch(path: Path, samples: int, generator: Generator) -> Tensor:
    """A random stretch (S,) of a recording; one that is shorter starts anywhere and is repeated."""
    available = _length(path)
    if available > samples:
        return load_audio(path, start=integer(generator, available - samples + 1), samples=samples)
    whole = load_audio(path)
    whole = whole.roll(integer(generator, whole.numel()))
    return whole.repeat(-(-samples // whole.numel()))[:samples]


@functools.lru_cache(maxsize=100_000)
def _length(path: Path) -> int:
    return audio_length(path)


@functools.lru_cache(maxsize=1000)
def _warn_once(message: str) -> None:
    logger.warning("skipped for distortion: %s", message)
