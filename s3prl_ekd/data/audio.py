"""Reading recordings: every file becomes finite mono samples at 16 kHz, or one clear line of error."""

from __future__ import annotations

import functools
import io
import logging
import os
import re
from pathlib import Path

import soundfile
import torch
import torchaudio.functional
from tqdm import tqdm

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = frozenset({".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".sph", ".w64", ".wav"})
"""What libsndfile reads and corpora come in."""

# libsndfile corrects a WAV header that promises more than the file holds and says so only in its log. Programs that
# write to a pipe cannot know the size and put one near the largest possible; those files are whole.
_SHORTENED_DATA = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFF_F000


def audio_files(folder: str | Path) -> list[Path]:
    """All recordings below ``folder``, however deeply nested, sorted; or those of a manifest of ``s3prl-ekd data``.

    Raises:
        UserError: the folder is missing or holds no recording.
    """
    folder = Path(folder)
    if folder.name.endswith((".jsonl", ".jsonl.gz")):
        from s3prl_ekd.data.sources import recording_paths

        return recording_paths(str(folder))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a folder of audio files")
    found = [
        Path(root, name)
        for root, _, names in tqdm(os.walk(folder, followlinks=True), desc=f"files in {folder}", delay=2, leave=False)
        for name in names
        if Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith(".")
    ]
    if not found:
        raise UserError(f"{folder}: no audio file in it ({', '.join(sorted(AUDIO_SUFFIXES))})")
    return sorted(found)


def audio_length(path: str | Path) -> int:
    """Number of samples that :func:`load_audio` gives for the whole file, from its header alone.

    Raises:
        UserError: the file is missing or not audio.
    """
    with _open(Path(path)) as file:
        return -(-file.frames * SAMPLE_RATE // file.samplerate)


def load_audio(path: str | Path, *, start: int = 0, samples: int | None = None) -> torch.Tensor:
    """Read a recording as 16 kHz mono.

    Other rates are resampled and channels averaged; each is logged once per process.

    Args:
        path: any file that libsndfile reads.
        start: first sample to read, counted at 16 kHz.
        samples: how many to read at most, counted at 16 kHz; None: up to the end.

    Returns:
        float32 of shape (S,).

    Raises:
        UserError: the file is missing, not audio, truncated, empty (from ``start`` on), or holds NaN or infinity.
    """
    waveform = read_channels(path, start=start, samples=samples)  # (C, S)
    if waveform.size(0) > 1:
        _say_once("%s has %d channels: the channels of such recordings are averaged", str(path), waveform.size(0))
    return waveform.mean(dim=0)


def read_channels(path: str | Path, *, start: int = 0, samples: int | None = None) -> torch.Tensor:
    """As :func:`load_audio`, with the channels apart: float32 of shape (C, S)."""
    with _open(Path(path)) as file:
        return _read(str(path), file, start, samples)


def decode_channels(data: bytes, name: str, *, start: int = 0, samples: int | None = None) -> torch.Tensor:
    """As :func:`read_channels`, of a file's bytes; messages call it ``name``."""
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip(". ") if data else "empty file"
        raise UserError(f"{name}: not a readable audio file ({reason})") from error
    with file:
        return _read(name, file, start, samples)


def _read(name: str, file: soundfile.SoundFile, start: int, samples: int | None) -> torch.Tensor:
    rate = file.samplerate
    _check_whole(name, file)
    first = start * rate // SAMPLE_RATE
    count = file.frames - first
    if count <= 0:
        what = "is empty" if file.frames == 0 else f"ends before sample {start}"
        raise UserError(f"{name}: {what}; remove it from the corpus or its list")
    if samples is not None:
        count = min(count, -(-samples * rate // SAMPLE_RATE))
    try:
        file.seek(first)
        values = torch.from_numpy(file.read(count, dtype="float32", always_2d=True)).T  # (C, S)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name}: truncated or damaged ({error.error_string.strip('. ')}); replace it") from error
    if values.size(1) < count:
        raise UserError(f"{name}: truncated ({values.size(1)} of {count} samples); replace it")
    if not torch.isfinite(values).all():
        raise UserError(f"{name}: holds NaN or infinite samples; replace it")
    if rate != SAMPLE_RATE:
        _say_once("%s is at %d Hz: such recordings are resampled to 16000 Hz", name, rate)
        values = torchaudio.functional.resample(values, rate, SAMPLE_RATE)
    return values[:, :samples].contiguous()


def _open(path: Path) -> soundfile.SoundFile:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        reason = "empty file" if path.stat().st_size == 0 else error.error_string.strip(". ")
        raise UserError(f"{path}: not a readable audio file ({reason})") from error


def _check_whole(name: str, file: soundfile.SoundFile) -> None:
    shortened = _SHORTENED_DATA.search(file.extra_info)
    if shortened and int(shortened[2]) < int(shortened[1]) < _UNKNOWN_SIZE:
        raise UserError(f"{name}: truncated ({shortened[2]} of {shortened[1]} bytes of audio); replace it")


def _say_once(message: str, path: str, value: int) -> None:
    if message not in _said():
        _said().add(message)
        logger.warning(message, path, value)


@functools.cache
def _said() -> set[str]:
    return set()
