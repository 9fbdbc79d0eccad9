"""What distortions are made of: noise at a signal-to-noise ratio, rooms, and random recordings of a folder."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchaudio.functional

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.audio.randomness import integer
from s3prl_ekd.audio.read import audio_files, audio_length, is_readable, load_audio
from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

_ATTEMPTS = 8  # unreadable files drawn in a row before giving up
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
    from lhotse.augmentation.utils import convolve1d

    delay = direct_path(response)
    # Unlike torchaudio's, this convolution pads to a length that is fast to transform.
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # it writes to places that can be the same; with several threads any of them may be last
    try:
        with torch.random.fork_rng(devices=[]):  # it draws the image sources from torch's global generator
            torch.manual_seed(images)
            response = FastRandomRIRGenerator(sr=SAMPLE_RATE, room_seed=room, source_seed=source)(nsource=1)
    finally:
        torch.set_num_threads(threads)
    return torch.from_numpy(response[0])


def usable_files(folder: str | Path) -> list[Path]:
    """The recordings of a folder (or manifest) in a format that is read; the others are counted and named.

    Raises:
        UserError: see :func:`~s3prl_ekd.audio.read.audio_files`.
    """
    found = audio_files(folder)
    left_out = [path for path in found if not is_readable(path)]
    if left_out:
        logger.warning(
            "%s: %d of %d recordings are in a format that is not read and left out, the first: %s",
            folder, len(left_out), len(found), left_out[0],
        )  # fmt: skip
    return [path for path in found if is_readable(path)]


def draw_readable(
    files: Sequence[Path], generator: torch.Generator, read: Callable[[Path], torch.Tensor]
) -> torch.Tensor:
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


def stretch(path: Path, samples: int, generator: torch.Generator) -> torch.Tensor:
    """A random stretch (S,) of a recording; one that is shorter starts anywhere and is repeated."""
    available = _length_of(path)
    if available > samples:
        return load_audio(path, start=integer(generator, available - samples + 1), samples=samples)
    whole = load_audio(path)
    whole = whole.roll(integer(generator, whole.numel()))
    return whole.repeat(-(-samples // whole.numel()))[:samples]


_length_of = functools.lru_cache(maxsize=100_000)(audio_length)


@functools.lru_cache(maxsize=1000)
def _warn_once(message: str) -> None:
    logger.warning("skipped for distortion: %s", message)
