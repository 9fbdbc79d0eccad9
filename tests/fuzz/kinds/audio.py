"""Recordings of every format that libsndfile writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import soundfile
import torch
from helpers_models import speech_like

from fuzz.change import Change
from s3prl_ekd.audio.read import audio_length, load_audio

ABOUT = "recordings (WAV, FLAC, MP3, Ogg, AIFF, AU, W64, NIST): bits of header and data flipped, cut short"

_FORMATS = {
    "a.wav": ("WAV", "PCM_16"), "b.wav": ("WAV", "FLOAT"), "c.wav": ("WAV", "IMA_ADPCM"), "d.wav": ("WAVEX", "PCM_24"),
    "a.flac": ("FLAC", "PCM_16"), "a.ogg": ("OGG", "VORBIS"), "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.aiff": ("AIFF", "PCM_16"), "a.au": ("AU", "PCM_16"), "a.w64": ("W64", "PCM_16"), "a.sph": ("NIST", "PCM_16"),
}  # fmt: skip
_SECONDS = 600  # that a file of one second may hold at most, whatever its header makes of it


def prepare(good: Path) -> None:
    wave = speech_like(16000).numpy()
    for name, (kind, subtype) in _FORMATS.items():
        soundfile.write(good / name, wave, 16000, subtype=subtype, format=kind)


def draw(good: Path, change: Change) -> Callable[[], object]:
    name = change.rng.choice(list(_FORMATS))
    change.note(name)
    Path(name).write_bytes(change.data((good / name).read_bytes(), header=64))
    start, samples = change.rng.choice(((0, None), (0, 8000), (4000, 8000)))
    return lambda: _load(name, start, samples)


def _load(name: str, start: int, samples: int | None) -> None:
    audio_length(name)
    wave = load_audio(name, start=start, samples=samples)
    assert wave.dtype == torch.float32
    assert wave.dim() == 1
    assert wave.isfinite().all(), "samples are not finite"
    assert 0 < len(wave) <= (_SECONDS * 16000 if samples is None else samples), f"{len(wave)} samples"
