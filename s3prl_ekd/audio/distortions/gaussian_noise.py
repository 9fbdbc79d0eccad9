"""White Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3prl_ekd.audio.distortions.base import Distortion, SnrRange, Transform

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class GaussianNoiseConfig(Distortion):
    """White Gaussian noise added to the student's input."""

    snr_db: SnrRange = (5.0, 30.0)
    """Range of the signal-to-noise ratio in dB, drawn uniformly."""

    def build(self) -> Transform:
        return self._add

    def _add(self, waveform: Tensor, generator: Generator) -> Tensor:
        import torch

        from s3prl_ekd.audio.acoustics import add_noise
        from s3prl_ekd.audio.randomness import uniform

        snr_db = uniform(generator, *self.snr_db)
        return add_noise(waveform, torch.randn(waveform.shape, generator=generator), snr_db)
