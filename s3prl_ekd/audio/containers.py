"""Whether an audio file holds what its header promises: libsndfile believes or corrects it in silence."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import soundfile

# Programs that write to a pipe cannot know the size and put one near the largest possible; those files are whole.
_UNKNOWN_SIZE = {"W64": 2**62, "RF64": 2**62}
_UNKNOWN_SIZE_32 = 0x7F00_0000

# Lines of libsndfile's log: WAV and WAVEX, AIFF, SVX, AU, W64, RF64.
_SHORTENED = re.compile(
    r"^(?:data| *SSND| *BODY| *Data Size|riff| *Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
_AIFF_FRAMES = re.compile(r"'COMM' chunk \((\d+)\) not equal to frame count\s+\*+ calculated from .* \((\d+)\)")
_FILE_SIZE = re.compile(r"^Length *: (\d+)", re.MULTILINE)
_WAV_DATA = re.compile(r"^data : (\d+)$", re.MULTILINE)
_WAV_REST = re.compile(r"^\*\*\* Unknown chunk marker .* at position (\d+)\. Exiting parser", re.MULTILINE)
_AU_DATA = re.compile(r"Data Offset *: (\d+)\s+Data Size *: (\d+)$", re.MULTILINE)

_MOST_FRAMES = 2**34  # more than a day at any rate: FLAC's way of saying that it does not know
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the longest
_CUT_PAGE = "truncated within its last page; replace it"
_OFF = 1.1  # how far what a header counts may be from what is there, where junk may follow


def problem_of(file: soundfile.SoundFile, source: Path | bytes) -> str | None:
    """What is wrong with the length of an open ``file``, or None; ``source`` is what it was opened from."""
    if file.frames > _MOST_FRAMES:
        return (
            "its header does not say how long it is (written to a pipe?); write it again, for instance by:"
            " ffmpeg -i IN OUT.flac"
        )
    shortened = _SHORTENED.search(file.extra_info)
    if shortened and int(shortened[2]) < int(shortened[1]) < _UNKNOWN_SIZE.get(file.format, _UNKNOWN_SIZE_32):
        return f"truncated ({shortened[2]} of {shortened[1]} bytes of audio); replace it"
    if file.format in _BY_LOG:
        return _BY_LOG[file.format](file)
    if file.format in _BY_BYTES:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as data:
            return _BY_BYTES[file.format](file, data)
    return None


def _wav(file: soundfile.SoundFile) -> str | None:
    """A recorder that was switched off leaves a size of 0: what follows is no chunk of a WAV file."""
    size, rest = _WAV_DATA.search(file.extra_info), _WAV_REST.search(file.extra_info)
    length = _FILE_SIZE.search(file.extra_info)
    return _more(int(size[1]), int(length[1]) - int(rest[1])) if size and rest and length else None


def _au(file: soundfile.SoundFile) -> str | None:
    found, length = _AU_DATA.search(file.extra_info), _FILE_SIZE.search(file.extra_info)
    return _more(int(found[2]), int(length[1]) - int(found[1]) - int(found[2])) if found and length else None


def _more(size: int, rest: int) -> str | None:
    if rest <= (_OFF - 1) * size:
        return None
    return (
        f"its header counts {size} bytes of audio, but {rest} more follow; write it with a right header, or remove it"
    )


def _aiff(file: soundfile.SoundFile) -> str | None:
    frames = _AIFF_FRAMES.search(file.extra_info)
    if frames is None or not int(frames[2]) < int(frames[1]) < _UNKNOWN_SIZE_32 // 8:
        return None
    return f"truncated ({frames[2]} of {frames[1]} samples); replace it"


def _voc(file: soundfile.SoundFile) -> str | None:
    return "truncated; replace it" if "truncated file" in file.extra_info else None


def _nist(file: soundfile.SoundFile, data: BinaryIO) -> str | None:
    found = re.search(rb"^sample_count -i (\d+)", data.read(1024), re.MULTILINE)
    if found is None or file.frames >= int(found[1]):
        return None
    return f"truncated ({file.frames} of {int(found[1])} samples); replace it"


def _ogg(file: soundfile.SoundFile, data: BinaryIO) -> str | None:
    """Ogg has no length, but its pages have."""
    size = data.seek(0, os.SEEK_END)
    data.seek(max(0, size - 2 * _OGG_PAGE))
    tail = data.read()
    at = tail.rfind(b"OggS\0")
    if at < 0 or at + 27 > len(tail):
        return _CUT_PAGE
    segments = tail[at + 26]
    end = at + 27 + segments + sum(tail[at + 27 : at + 27 + segments])
    return _CUT_PAGE if end > len(tail) else None


# Bit rates in kbit/s of MPEG layer III (ISO 11172-3, 13818-3) by version; rates in Hz by the header's version bits.
_BIT_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_BIT_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_LONGEST_FRAME = 144 * 320_000 // 32_000 + 1
_LENGTH_HEADER = re.compile(rb"Xing|Info|VBRI")


def _mp3(file: soundfile.SoundFile, data: BinaryIO) -> str | None:
    """Where no first frame counts the others, libsndfile takes them all to be as long as the first."""
    content = data.read()
    at = _first_frame(content)
    length, first = _frame(content, at) or (0, 0)
    header = _LENGTH_HEADER.search(content, at, at + length)
    if header is not None:
        return _mp3_size(content, at, header)
    at += length
    while (frame := _frame(content, at)) is not None:
        if frame[1] != first:
            return (
                "an MP3 of varying bit rate without a length header, which would be read in part; give it one, for"
                " instance by: ffmpeg -i IN.mp3 -c copy OUT.mp3"
            )
        at += frame[0]
    return None


def _mp3_size(content: bytes, at: int, header: re.Match[bytes]) -> str | None:
    """Whether frames follow those that a Xing header counts: of MP3s one behind the other the first would be read."""
    fields = content[header.end() : header.end() + 12]
    if header[0] == b"VBRI" or len(fields) < 12 or fields[3] & 3 != 3:  # it counts frames and bytes
        return None
    size = int.from_bytes(fields[8:12])
    more = content.find(content[at : at + 2], at + size + _LONGEST_FRAME)  # some writers leave the first frame out
    return _more(size, len(content) - more) if more >= 0 and _frame(content, more) else None


def _first_frame(content: bytes) -> int:
    """Behind ID3v2, whose size is of 7 bits a byte, and behind what is no frame."""
    at = 10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=False))
    at = at if content[:3] == b"ID3" and at < len(content) else 0
    while 0 <= at < len(content):
        frame = _frame(content, at)
        if frame is not None and (_frame(content, at + frame[0]) or at + frame[0] >= len(content)):
            return at
        at = content.find(b"\xff", at + 1)
    return len(content)


def _frame(content: bytes, at: int) -> tuple[int, int] | None:
    """Bytes and kbit/s of the layer III frame that starts at a byte, if one does."""
    head = int.from_bytes(content[at : at + 4]) if at + 4 <= len(content) else 0
    version, layer, bit_rate, rate = head >> 19 & 3, head >> 17 & 3, head >> 12 & 15, head >> 10 & 3
    if head >> 21 != 0x7FF or version == 1 or layer != 1 or bit_rate in (0, 15) or rate == 3:
        return None
    kilobits = (_BIT_RATES_1 if version == 3 else _BIT_RATES_2)[bit_rate]
    return (144 if version == 3 else 72) * 1000 * kilobits // _RATES[version][rate] + (head >> 9 & 1), kilobits


_BY_LOG: dict[str, Callable[[soundfile.SoundFile], str | None]] = {
    "WAV": _wav, "WAVEX": _wav, "AU": _au, "AIFF": _aiff, "VOC": _voc,
}  # fmt: skip
# Formats whose own bytes tell what libsndfile's log does not.
_BY_BYTES: dict[str, Callable[[soundfile.SoundFile, BinaryIO], str | None]] = {
    "NIST": _nist, "OGG": _ogg, "MP3": _mp3,
}  # fmt: skip
