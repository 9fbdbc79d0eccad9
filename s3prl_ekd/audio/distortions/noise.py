"""Recorded noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_ekd.audio.distortions.base import Distortion, SnrRange, Transform
from s3prl_ekd.config.base import require

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(Distortion):
    """Recorded noise added to the student's input: a stretch of a recording, or short ones repeated."""

    folder: str | None = None
    """A folder of audio files, searched through all its subfolders (MUSAN's layout), or a manifest of them."""
    snr_db: SnrRange = (0.0, 20.0)
    """Range of the signal-to-noise ratio in dB, drawn uniformly (RobustDistiller: 0 to 20)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.probability == 0 or self.folder is not None,
            "distortion.noise: probability is set, so folder must name a folder of noise recordings",
        )

    def build(self) -> Transform:
        from s3prl_ekd.audio.acoustics import usable_files

        assert self.folder is not None  # __post_init__
        return partial(self._add, usable_files(self.folder))

    def _add(self, files: Sequence[Path], waveform: Tensor, generator: Generator) -> Tensor:
        from s3prl_ekd.audio.acoustics import add_noise, draw_readable, stretch
        from s3prl_ekd.audio.randomness import uniform

        snr_db = uniform(generator, *self.snr_db)
        noise = draw_readable(files, generator, lambda path: stretch(path, waveform.numel(), generator))
        return add_noise(waveform, noise, snr_db)
