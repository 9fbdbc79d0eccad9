"""Reverberation by recorded or generated impulse responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_ekd.audio.distortions.base import Distortion, Transform

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class ReverberationConfig(Distortion):
    """Reverberation of the student's input; the direct path's delay is removed, so alignment stays."""

    folder: str | None = None
    """A folder or manifest of impulse responses; null: they are generated."""

    def build(self) -> Transform:
        from s3prl_ekd.audio.acoustics import usable_files

        return partial(_reverberate, usable_files(self.folder) if self.folder is not None else ())


def _reverberate(files: Sequence[Path], waveform: Tensor, generator: Generator) -> Tensor:
    from s3prl_ekd.audio.acoustics import draw_readable, generated_impulse_response, reverberate
    from s3prl_ekd.audio.read import read_channels

    if files:
        # The first channel: a mean over microphones would hear the direct path several times.
        response = draw_readable(files, generator, lambda path: read_channels(path)[0])
    else:
        response = generated_impulse_response(generator)
    return reverberate(waveform, response)
