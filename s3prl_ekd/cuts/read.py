"""From a manifest's line to samples: the cut that it describes, and the cut's audio."""

from __future__ import annotations

import hashlib
import logging
from typing import Any, TypeAlias

import torch
from lhotse import AudioSource, MonoCut, MultiCut, Recording
from lhotse.serialization import decode_json_line, deserialize_item

from s3prl_ekd import MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.audio.manifests import Entry, open_bytes
from s3prl_ekd.audio.read import read_channels
from s3prl_ekd.cuts.shar import TarReader
from s3prl_ekd.cuts.sources import tar_beside
from s3prl_ekd.errors import UserError, one_line

logger = logging.getLogger(__name__)

_LONGEST = 1e7  # seconds, months
_SHORTFALL = 400  # samples that a recording may lack: Lhotse's tolerance, and durations are rounded


Cut: TypeAlias = MonoCut | MultiCut


def cut_key(name: str, start: float, samples: int) -> int:
    """A number of 64 bits that tells a cut from others: of its name, its start in seconds and its length."""
    text = f"{name}\t{round(start * SAMPLE_RATE)}\t{samples}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


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
    transforms = cut.recording.transforms or ()
    names = {one["name"] if isinstance(one, dict) else type(one).__name__ for one in transforms}
    if unknown := names - {"Resample"}:
        raise SourceError(
            f"{entry.manifest}: cut {cut.id} asks for {', '.join(sorted(unknown))}, which is not done here;"
            " distort by the recipe's distortion section, or save such cuts as audio files first"
        )
    if not _is_sound(cut):
        raise SourceError(f"{entry.manifest}: a cut of impossible times, channels or sources: {entry.line[:200]}")
    return cut


def _is_sound(cut: Any) -> bool:
    """Whether what is used of a cut has the types that Lhotse writes, which checks none when it reads."""
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


def read_audio(cut: Cut, manifest: str, tars: TarReader, start: int, samples: int) -> torch.Tensor:
    """A part (S,) of a cut, its channels averaged.

    Args:
        cut: as :func:`read_cut` gives it.
        manifest: where it is from.
        tars: reads what is in tars.
        start: first sample of the part at 16 kHz, counted from the cut's own start.
        samples: how many there are.

    Raises:
        UserError: the recording cannot be used.
        SourceError: what holds it and others cannot.
    """
    channels = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
    start += round(cut.start * SAMPLE_RATE)
    parts = []
    for source in cut.recording.sources:
        rows = [source.channels.index(channel) for channel in channels if channel in source.channels]
        if not rows:
            continue
        values = read_channels(*_find(source, cut, manifest, tars), start=start, samples=samples)
        if values.size(0) <= max(rows):
            raise UserError(f"{cut.recording.id}: has {values.size(0)} channels, the manifest says more")
        parts.append(values[rows])
    if not parts:
        raise UserError(f"{cut.recording.id}: has no channel {channels}, which cut {cut.id} names")
    shortest = min(part.size(1) for part in parts)  # channels in files of their own
    waveform = torch.cat([part[:, :shortest] for part in parts]).mean(dim=0)
    if waveform.numel() < max(MIN_SAMPLES, samples - _SHORTFALL):
        raise UserError(
            f"{cut.recording.id}: ends {samples - waveform.numel()} samples before the manifest says;"
            " replace it or make the manifest again"
        )
    return waveform


def _find(source: AudioSource, cut: Cut, manifest: str, tars: TarReader) -> tuple[str | bytes, str]:
    """An audio file's path, or its bytes where it is no file of its own; and its name for messages."""
    if source.type == "file":
        return source.source, source.source
    if source.type == "shar":
        tar = tar_beside(manifest)
        return tars.read(tar, cut.id), f"{tar}: {cut.id}"
    if source.type != "url":
        raise SourceError(
            f"{manifest}: audio sources of type {source.type!r} are not read, only file, shar, url; save such"
            " recordings as audio files first"
        )
    if source.source.startswith("pipe:"):
        raise SourceError(f"{manifest}: cut {cut.id} names a command as its audio; manifests run no commands")
    try:
        with open_bytes(source.source) as stream:
            return stream.read(), source.source
    except Exception as error:  # what an object store's client can raise is not ours to list
        raise UserError(f"{source.source}: cannot be fetched ({one_line(error)})") from error
