"""What happens to speech between mouth and file: microphones, noise, rooms, telephones.

All functions are pure: the same arguments (generators included) give the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torchaudio.functional as F
from torch import Generator, Tensor

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.audio.acoustics import add_noise, generated_impulse_response, reverberate
from s3prl_ekd.audio.randomness import integer, uniform

_PEAK = 0.95


def at_level(wave: Tensor, decibel: float) -> Tensor:
    """``wave`` (S,) scaled to a root mean square of ``decibel`` re full scale, lowered if it would clip."""
    return unclipped(wave * (10 ** (decibel / 20) / wave.square().mean().sqrt().clamp_min(1e-8)))


def unclipped(wave: Tensor) -> Tensor:
    """``wave`` (S,) lowered, if need be, to a peak of 0.95."""
    return wave * min(1.0, _PEAK / max(wave.abs().max().item(), 1e-8))


def at_peak(wave: Tensor) -> Tensor:
    """``wave`` (S,) scaled to a peak of 0.95."""
    return wave * (_PEAK / wave.abs().max().clamp_min(1e-8))


def microphone(wave: Tensor, tilt: float) -> Tensor:
    """``wave`` (S,) with a tilted frequency response: ``tilt`` > 0 is dull, < 0 thin, 0 flat."""
    return torch.cat([wave[:1], wave[1:] + tilt * wave[:-1]])


# ---------------------------------------------------------------------------------------------------- noise

Noise = Callable[[int, Generator], Tensor]
"""(number of samples, generator) -> noise (S,) of any level."""


def pink(samples: int, rng: Generator, exponent: float = 1.0) -> Tensor:
    """Noise whose power is one over the frequency, raised to ``exponent``; pink noise unless that is given."""
    spectrum = torch.fft.rfft(torch.randn(samples, generator=rng))
    frequency = torch.arange(len(spectrum)) * (SAMPLE_RATE / samples)
    return torch.fft.irfft(spectrum * frequency.clamp_min(20.0) ** (-exponent / 2), samples)


def hum(samples: int, rng: Generator) -> Tensor:
    """A machine: mains hum with harmonics and a little hiss."""
    time = torch.arange(samples) / SAMPLE_RATE
    base = uniform(rng, 48, 62)
    wave = torch.zeros(samples)
    for harmonic in range(1, 24):
        phase = uniform(rng, 0, 2 * math.pi)
        wave += uniform(rng, 0.2, 1.0) / harmonic**0.7 * torch.sin(2 * math.pi * base * harmonic * time + phase)
    wobble = 1.0 + 0.3 * torch.sin(2 * math.pi * uniform(rng, 0.5, 3.0) * time)
    return wave * wobble + 0.1 * torch.randn(samples, generator=rng)


def wind(samples: int, rng: Generator) -> Tensor:
    """Low rumble in gusts of about half a second."""
    strength = torch.rand(1, 1, 2 * samples // SAMPLE_RATE + 2, generator=rng)
    gusts = torch.nn.functional.interpolate(strength, samples, mode="linear").flatten()
    return pink(samples, rng, exponent=1.6) * (0.2 + gusts)


def tones(samples: int, rng: Generator) -> Tensor:
    """Something like music: overlapping plucked notes of a pentatonic scale."""
    wave = torch.zeros(samples)
    start = 0
    while start < samples:
        length = min(int(1.2 * SAMPLE_RATE), samples - start)
        time = torch.arange(length) / SAMPLE_RATE
        pitch = 196.0 * 2 ** (_SCALE[integer(rng, len(_SCALE))] / 12)
        note = sum(torch.sin(2 * math.pi * pitch * k * time) / k for k in range(1, 7))
        wave[start : start + length] += note * (time / 0.01).clamp_max(1.0) * torch.exp(-3.0 * time)
        start += int(SAMPLE_RATE * uniform(rng, 0.12, 0.35))
    return wave


_SCALE = (0, 2, 4, 7, 9, 12, 14, 16)  # semitones


def babble(voices: list[Tensor], samples: int, rng: Generator) -> Tensor:
    """Several people at once (S,): ``voices`` repeated from a random place, at equal levels."""
    wave = torch.zeros(samples)
    for voice in voices:
        rolled = voice.roll(integer(rng, len(voice)))
        wave += at_level(rolled.repeat(samples // len(voice) + 1)[:samples], -30)
    return wave


# ----------------------------------------------------------------------------------------- rooms and channels


def hall(rng: Generator, seconds: float) -> Tensor:
    """Impulse response (R,) of a hall with that reverberation time: the direct sound, then decaying noise.

    Unlike the rooms that training hears (:func:`~s3prl_ekd.audio.acoustics.generated_impulse_response`) it has no
    early reflections.
    """
    time = torch.arange(int(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    response = torch.randn(len(time), generator=rng) * 10 ** (-3 * time / seconds)  # -60 dB at the end
    response[: int(SAMPLE_RATE * 0.005)] = 0.0
    response /= response.square().sum().sqrt() * 10 ** (uniform(rng, -1, 5) / 20)  # direct over reverberant sound
    response[0] = 1.0
    return response


def telephone(wave: Tensor) -> Tensor:
    """``wave`` (S,) through a telephone: 300-3400 Hz, eight bits."""
    for _ in range(2):
        wave = F.lowpass_biquad(F.highpass_biquad(wave, SAMPLE_RATE, 300), SAMPLE_RATE, 3400)
    level = wave.abs().max().clamp_min(1e-8)
    return F.mu_law_decoding(F.mu_law_encoding(wave / level, 256), 256) * level


# ------------------------------------------------------------------------------------- what the test sets hear

Distortion = Callable[[Tensor, list[Tensor], Generator], Tensor]
"""(speech (S,), other people's speech, generator) -> distorted speech (S,), aligned with the clean one."""


def _in_babble(wave: Tensor, others: list[Tensor], rng: Generator) -> Tensor:
    return add_noise(_perhaps_in_room(wave, rng), babble(others, len(wave), rng), uniform(rng, 2, 12))


def _in_pink_noise(wave: Tensor, others: list[Tensor], rng: Generator) -> Tensor:
    return add_noise(_perhaps_in_room(wave, rng), pink(len(wave), rng), uniform(rng, 0, 10))


def _near_machine(wave: Tensor, others: list[Tensor], rng: Generator) -> Tensor:
    return add_noise(_perhaps_in_room(wave, rng), hum(len(wave), rng), uniform(rng, -2, 8))


def _perhaps_in_room(wave: Tensor, rng: Generator) -> Tensor:
    return reverberate(wave, generated_impulse_response(rng)) if uniform(rng, 0, 1) < 0.5 else wave


def _by_telephone(wave: Tensor, others: list[Tensor], rng: Generator) -> Tensor:
    return telephone(add_noise(wave, wind(len(wave), rng), uniform(rng, 0, 10)))


def _with_music(wave: Tensor, others: list[Tensor], rng: Generator) -> Tensor:
    return add_noise(wave, tones(len(wave), rng), uniform(rng, 0, 10))


def _in_hall(wave: Tensor, others: list[Tensor], rng: Generator) -> Tensor:
    return add_noise(reverberate(wave, hall(rng, uniform(rng, 0.6, 0.9))), wind(len(wave), rng), uniform(rng, 5, 15))


PUBLIC: tuple[Distortion, ...] = (_in_babble, _in_pink_noise, _near_machine)
"""test-noisy has these in turn."""
HIDDEN: tuple[Distortion, ...] = (_by_telephone, _with_music, _in_hall)
"""hidden-noisy has these in turn."""

NOISES: dict[str, Noise] = {"pink": pink, "hum": hum}
"""Recorded in noise/, besides babble, for training on distorted speech."""
HIDDEN_NOISES: dict[str, Noise] = {"tones": tones, "wind": wind}
"""Recorded in noise-hidden/."""
