"""From a manifest's line to samples: the cut it describes, the crop an epoch takes of it, and its audio."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from lhotse import AudioSource, MonoCut, MultiCut, Recording
from lhotse.serialization import decode_json_line, deserialize_item

from s3prl_ekd import FRAME_SHIFT, MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.audio.randomness import integer, keyed_generator
from s3prl_ekd.audio.read import decode_channels, read_channels
from s3prl_ekd.cuts.shar import TarReader
from s3prl_ekd.cuts.sources import Entry, SourceError, open_bytes, tar_beside
from s3prl_ekd.errors import UserError, one_line

logger = logging.getLogger(__name__)

_LONGEST = 1e7  # seconds, months
_SHORTFALL = 400  # samples that a recording may lack: Lhotse's tolerance, and durations are rounded

Cut = MonoCut | MultiCut


class Crop(NamedTuple):
    """Which part of a cut an epoch hears, in samples at 16 kHz from the cut's start."""

    start: int
    samples: int


def read_cut(entry: Entry) -> Cut:
    """The cut in a manifest's line; a recording counts as the cut of all of it.

    Raises:
        SourceError: it is something else, or asks for processing that is not done here.
    """
    try:
        item = deserialize_item(decode_json_line(entry.line))
        cut = item.to_cut() if isinstance(item, Recording) else item
    except Exception as error:  # Lhotse asserts and looks up keys
        raise SourceError(f"{entry.manifest}: not a cut: {entry.line.strip()[:200]}") from error
    if not isinstance(cut, MonoCut | MultiCut) or cut.recording is None:
        raise SourceError(
            f"{entry.manifest}: a {type(cut).__name__} where plain cuts with a recording are expected;"
            " save what it describes as audio files first"
        )
    unknown = {_transform_name(transform) for transform in cut.recording.transforms or ()} - {"Resample"}
    if unknown:
        raise SourceError(
            f"{entry.manifest}: cut {cut.id} asks for {', '.join(sorted(unknown))}, which is not done here;"
            " distort by the recipe's distortion section, or save such cuts as audio files first"
        )
    if not _is_sound(cut):
        raise SourceError(f"{entry.manifest}: a cut of impossible times, channels or sources: {entry.line[:200]}")
    return cut


def _is_sound(cut: Cut) -> bool:
    """Whether what is read of a cut is of the types that Lhotse writes; it checks none of them."""
    channels = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    return (
        isinstance(cut.id, str)
        and all(isinstance(time, int | float) and 0 <= time < _LONGEST for time in (cut.start, cut.duration))
        and isinstance(channels, list | tuple)
        and all(
            isinstance(source.source, str)
            and isinstance(source.type, str)
            and isinstance(source.channels, list | tuple)
            for source in cut.recording.sources
        )
    )


def _transform_name(transform: object) -> str:
    return transform["name"] if isinstance(transform, dict) else type(transform).__name__


def draw_crop(cut: Cut, *, longest: int | None, whole_frames: bool, key: tuple[int | str, ...]) -> Crop:
    """All of ``cut``, or a random part of ``longest`` samples, determined by ``key`` and the cut's name.

    ``whole_frames`` starts it on a frame's first sample, where a cached target starts.
    """
    samples = round(cut.duration * SAMPLE_RATE)
    if longest is None or samples <= longest:
        return Crop(0, samples)
    step = FRAME_SHIFT if whole_frames else 1
    return Crop(step * integer(keyed_generator(*key, cut.id, "crop"), (samples - longest) // step + 1), longest)


class CutReader:
    """Reads the audio of cuts, whatever kind of source it is in."""

    def __init__(self, tars: TarReader) -> None:
        self.tars = tars
        # kind of source -> (source, cut, manifest, start, samples) -> (C, S)
        self._readers: dict[str, Callable[[AudioSource, Cut, str, int, int], torch.Tensor]] = {
            "file": self._read_file,
            "shar": self._read_shar,
            "url": self._read_url,
        }

    def __call__(self, cut: Cut, crop: Crop, manifest: str) -> torch.Tensor:
        """Samples (S,) of a crop, the cut's channels averaged.

        Raises:
            UserError: the recording cannot be used.
            SourceError: what holds it cannot.
        """
        channels = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
        start = round(cut.start * SAMPLE_RATE) + crop.start
        parts = []
        for source in cut.recording.sources:
            rows = [source.channels.index(channel) for channel in channels if channel in source.channels]
            if not rows:
                continue
            if source.type not in self._readers:
                raise SourceError(
                    f"{manifest}: audio sources of type {source.type!r} are not read, only"
                    f" {', '.join(self._readers)}; save such recordings as audio files first"
                )
            values = self._readers[source.type](source, cut, manifest, start, crop.samples)
            if values.size(0) <= max(rows):
                raise UserError(f"{cut.recording.id}: has {values.size(0)} channels, the manifest says more")
            parts.append(values[rows])
        if not parts:
            raise UserError(f"{cut.recording.id}: has no channel {channels}, which cut {cut.id} names")
        shortest = min(part.size(1) for part in parts)  # channels in files of their own
        waveform = torch.cat([part[:, :shortest] for part in parts]).mean(dim=0)
        if waveform.numel() < max(MIN_SAMPLES, crop.samples - _SHORTFALL):
            raise UserError(
                f"{cut.recording.id}: ends {crop.samples - waveform.numel()} samples before the manifest says;"
                " replace it or make the manifest again"
            )
        return waveform

    @staticmethod
    def _read_file(source: AudioSource, cut: Cut, manifest: str, start: int, samples: int) -> torch.Tensor:
        return read_channels(source.source, start=start, samples=samples)

    def _read_shar(self, source: AudioSource, cut: Cut, manifest: str, start: int, samples: int) -> torch.Tensor:
        tar = tar_beside(manifest)
        return decode_channels(self.tars.read(tar, cut.id), f"{tar}: {cut.id}", start=start, samples=samples)

    @staticmethod
    def _read_url(source: AudioSource, cut: Cut, manifest: str, start: int, samples: int) -> torch.Tensor:
        if source.source.startswith("pipe:"):
            raise SourceError(f"{manifest}: cut {cut.id} names a command as its audio; manifests run no commands")
        try:
            with open_bytes(source.source) as stream:
                data = stream.read()
        except Exception as error:  # what an object store's client can raise is not ours to list
            raise UserError(f"{source.source}: cannot be fetched ({one_line(error)})") from error
        return decode_channels(data, source.source, start=start, samples=samples)
