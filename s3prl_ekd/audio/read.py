"""Reading recordings: every file becomes finite mono samples at 16 kHz, or one clear line of error."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio.functional

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.audio.containers import problem_of
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import files_below

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga",
    ".ogg", ".opus", ".rf64", ".snd", ".sph", ".voc", ".w64", ".wav", ".wave"
}  # fmt: skip
"""What libsndfile reads and corpora come in."""
UNREADABLE_SUFFIXES = {
    ".aac", ".ac3", ".amr", ".ape", ".dff", ".dsf", ".m4a", ".m4b",
    ".mka", ".mpc", ".ra", ".spx", ".tta", ".wma", ".wv"
}  # fmt: skip
"""Recordings that libsndfile does not read."""

_CONVERT = "convert it, for instance by: ffmpeg -i IN OUT.flac"
_OTHER_FILES = (  # offset, bytes there, what it is
    (4, b"ftyp", f"MPEG-4 audio (.m4a), which is not read; {_CONVERT}"),
    (0, b"\xff\xf1", f"AAC, which is not read; {_CONVERT}"),
    (0, b"\x30\x26\xb2\x75", f"Windows Media audio, which is not read; {_CONVERT}"),
    (0, b"\x1a\x45\xdf\xa3", f"Matroska or WebM, which is not read; {_CONVERT}"),
    (0, b"#!AMR", f"AMR, which is not read; {_CONVERT}"),
    (0, b"\x00\x05\x16\x07", "what macOS keeps beside a file (._NAME), no recording; leave it out of the list"),
    (0, b"version https://git-lfs", "a git-lfs pointer, not the recording itself; run: git lfs pull"),
    (0, b"<", "a web page or XML, no recording; fetch the recording again"),
)
_RATES = (4_000, 768_000)  # Hz; in between lies every rate that speech is recorded at
_BLOCK = 2**26  # samples of all channels that memory is taken for at once, whatever a header promises
_said: set[str] = set()  # what this process has warned about
_LARGEST_KERNEL = 2**22  # weights of torchaudio's filter, which has one row for each of the ratio's phases


def audio_files(folder: str | Path) -> list[Path]:
    """All recordings below ``folder``, however deeply nested, sorted; or those of a manifest of ``s3prl-ekd data``.

    Recordings in a format that is not read, such as ``.m4a``, are among them, so that whoever reads them finds them bad
    and counts them; but not where the same recording lies beside it in a format that is read.

    Raises:
        UserError: the folder is missing or holds no recording that may be read.
    """
    folder = Path(folder)
    if folder.name.endswith((".jsonl", ".jsonl.gz")):
        from s3prl_ekd.audio.manifests import recording_paths  # imports lhotse

        return recording_paths(str(folder))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a folder of audio files")
    found = files_below(folder, AUDIO_SUFFIXES | UNREADABLE_SUFFIXES)
    readable = {path.with_suffix("") for path in found if is_readable(path)}
    if not readable:
        what = f"no audio file in it ({', '.join(sorted(AUDIO_SUFFIXES))})"
        if found:
            what = f"its recordings are in no format that is read, such as {found[0].name}; {_CONVERT}"
        raise UserError(f"{folder}: {what}")
    return [path for path in found if is_readable(path) or path.with_suffix("") not in readable]


def is_readable(path: Path) -> bool:
    """Whether a recording's name is that of a format that is read."""
    return path.suffix.lower() not in UNREADABLE_SUFFIXES


class Header(NamedTuple):
    """What a file's header says: its rate in Hz, the samples of one channel at that rate, and how many channels."""

    rate: int
    samples: int
    channels: int


def read_header(path: str | Path) -> Header:
    """What a file's header says, checked against the file's size as far as that can be done without decoding it.

    Raises:
        UserError: the file is missing, not audio or truncated, or its rate is not one of speech.
    """
    with _open(str(path), Path(path)) as file:
        return Header(file.samplerate, file.frames, file.channels)


def audio_length(path: str | Path) -> int:
    """Number of samples that :func:`load_audio` gives for the whole file, from its header alone.

    Raises:
        UserError: as :func:`read_header`.
    """
    header = read_header(path)
    return _resampled_length(header.samples, header.rate)


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
        UserError: the file is missing, not audio, truncated, empty (from ``start`` on), holds NaN or infinity, has a
            rate that is not one of speech, or fails in any other way: one recording is never more than a bad one.
    """
    waveform = read_channels(path, start=start, samples=samples)  # (C, S)
    if waveform.size(0) > 1:
        _say_once("%s has %d channels: the channels of such recordings are averaged", str(path), waveform.size(0))
    return waveform.mean(dim=0)


def read_channels(
    source: str | Path | bytes, name: str | None = None, *, start: int = 0, samples: int | None = None
) -> torch.Tensor:
    """As :func:`load_audio`, with the channels apart: float32 of shape (C, S).

    ``source`` may also be a file's bytes; messages call it ``name``.
    """
    name = str(source) if name is None else name
    with _open(name, source if isinstance(source, bytes) else Path(source)) as file:
        rate = file.samplerate
        first = start * rate // SAMPLE_RATE
        count = file.frames - first
        if count <= 0:
            what = "is empty" if file.frames == 0 else f"ends before sample {start}"
            raise UserError(f"{name}: {what}; remove it from the corpus or its list")
        if samples is not None:
            count = min(count, -(-samples * rate // SAMPLE_RATE))
        with _one_line(name, "truncated or damaged", "; replace it"):
            values = torch.from_numpy(_decode(file, first, count)).T  # (C, S)
    if values.size(1) < count:
        raise UserError(f"{name}: truncated ({values.size(1)} of {count} samples); replace it")
    if not torch.isfinite(values).all():
        raise UserError(f"{name}: holds NaN or infinite samples; replace it")
    if rate != SAMPLE_RATE:
        _say_once("%s is at %d Hz: such recordings are resampled to 16000 Hz", name, rate)
        with _one_line(name, "cannot be resampled"):
            values = resample(values, rate)
    return values[:, :samples].contiguous()


def _decode(file: soundfile.SoundFile, first: int, count: int) -> np.ndarray:
    """``count`` frames from ``first`` on, or as many as there are: (S, C)."""
    if file.seekable():
        file.seek(first)
        skipped = 0
    else:  # GSM 6.10, of which each frame follows from the one before
        skipped, count = first, first + count
    size, blocks = max(1, _BLOCK // file.channels), []
    while count > 0:
        blocks.append(file.read(min(count, size), dtype="float32", always_2d=True))
        count = count - len(blocks[-1]) if len(blocks[-1]) else 0
    return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[skipped:]


def resample(values: torch.Tensor, rate: int) -> torch.Tensor:
    """From ``rate`` to 16 kHz: (..., S) to (..., ceil(S * 16000 / rate)).

    By torchaudio's windowed sinc where the ratio of the rates has small terms. Its filter grows with their product (2
    GB for 16001 Hz); other ratios, which come of odd clocks and damaged headers, are for soxr, which needs none.
    """
    common = math.gcd(rate, SAMPLE_RATE)
    phases, step = SAMPLE_RATE // common, rate // common
    if phases * (step + 12 * max(1, step // phases)) <= _LARGEST_KERNEL:
        return torchaudio.functional.resample(values, rate, SAMPLE_RATE)
    import soxr

    samples = _resampled_length(values.size(-1), rate)
    rest = -(-rate // SAMPLE_RATE)  # of silence, since soxr rounds the length down
    rows = torch.nn.functional.pad(values.reshape(-1, values.size(-1)), (0, rest)).T.numpy()
    resampled = torch.from_numpy(soxr.resample(rows, rate, SAMPLE_RATE)).T[:, :samples]
    return resampled.reshape(*values.shape[:-1], samples)


def _resampled_length(samples: int, rate: int) -> int:
    return -(-samples * SAMPLE_RATE // rate)


@contextlib.contextmanager
def _open(name: str, source: Path | bytes) -> Iterator[soundfile.SoundFile]:
    """Open a file and check its header."""
    with _one_line(name, "not a readable audio file"):
        if isinstance(source, Path) and not source.is_file():
            raise UserError(f"{name}: no such file")
        try:
            file = soundfile.SoundFile(_Bytes(source) if isinstance(source, bytes) else source)
        except soundfile.LibsndfileError as error:
            _refuse_known(name, source, error)
            raise
    with file:
        with _one_line(name, "not a readable audio file"):
            problem = problem_of(file, source)
        if problem is None and not _RATES[0] <= file.samplerate <= _RATES[1]:
            problem = f"at {file.samplerate} Hz, which is no rate of speech (damaged header?); replace it"
        if problem is not None:
            raise UserError(f"{name}: {problem}")
        yield file


class _Bytes(io.BytesIO):
    """A file in memory, in which libsndfile may seek to impossible places that a damaged header names.

    An exception in here would be printed, not raised, since libsndfile calls it from C.
    """

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _refuse_known(name: str, source: Path | bytes, error: Exception) -> None:
    """Raise a UserError that says what kind of file it is that libsndfile cannot open, where its first bytes tell."""
    if isinstance(source, bytes):
        head = source[:32]
    else:
        with source.open("rb") as file:
            head = file.read(32)
    if not head:
        raise UserError(f"{name}: not a readable audio file (empty file)") from error
    for offset, magic, what in _OTHER_FILES:
        if head.startswith(magic, offset):
            raise UserError(f"{name}: {what}") from error
    if isinstance(source, Path) and not is_readable(source):
        raise UserError(f"{name}: {source.suffix} files are not read; {_CONVERT}") from error


@contextlib.contextmanager
def _one_line(name: str, problem: str, advice: str = "") -> Iterator[None]:
    """Turn whatever a library raises for one file into a UserError of one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name}: {problem} ({error.error_string.strip('. ')}){advice}") from error
    except Exception as error:
        reason = one_line(f"{type(error).__name__} {error}", 300)
        raise UserError(f"{name}: cannot be read ({reason}){advice}") from error


def _say_once(message: str, path: str, value: int) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message, path, value)
