"""Noise at a signal-to-noise ratio, and the sound of rooms."""

from __future__ import annotations

import torch
import torchaudio.functional

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.audio.randomness import integer

_ONSET = 0.1  # -20 dB re the maximum, ISO 3382-1's start of an impulse response


def add_noise(waveform: torch.Tensor, noise: torch.Tensor, snr_db: float) -> torch.Tensor:
    """``waveform`` (S,) plus ``noise`` (S,) scaled so that the power ratio over the utterance is ``snr_db``.

    Where either is silent no ratio exists, and the waveform stays as it is.
    """
    if min(waveform.square().sum(), noise.square().sum()) == 0:
        return waveform
    return torchaudio.functional.add_noise(waveform, noise, torch.tensor(snr_db))


def reverberate(waveform: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """``waveform`` (S,) convolved with an impulse ``response`` (R,): same length, power and alignment."""
    from lhotse.augmentation.utils import (
        convolve1d,  # unlike torchaudio's it pads to a length that is fast to transform
    )

    delay = direct_path(response)
    wet = convolve1d(waveform, response)[delay : delay + waveform.numel()]
    power = wet.square().mean()
    return wet * (waveform.square().mean() / power).sqrt() if power > 0 else waveform


def direct_path(response: torch.Tensor) -> int:
    """Samples until the direct sound arrives: the first one within 20 dB of the maximum (ISO 3382-1).

    The maximum itself can be a reflection: up to 20 ms, a whole frame, later in generated responses.
    """
    magnitude = response.abs()
    return int((magnitude >= _ONSET * magnitude.max()).nonzero()[0])


def generated_impulse_response(generator: torch.Generator) -> torch.Tensor:
    """A random room's impulse response (R,) at 16 kHz: FRA-RIR (arXiv 2208.04101) as Lhotse has it."""
    from lhotse.augmentation.utils import FastRandomRIRGenerator

    room, source, images = (integer(generator, 2**31) for _ in range(3))
    with torch.random.fork_rng(devices=[]):  # it draws the image sources from torch's global generator
        torch.manual_seed(images)
        response = FastRandomRIRGenerator(sr=SAMPLE_RATE, room_seed=room, source_seed=source)(nsource=1)
    return torch.from_numpy(response[0])
