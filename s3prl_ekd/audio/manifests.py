"""Manifests of recordings: which files a name stands for, and the lines in them.

A manifest is a ``.jsonl`` or ``.jsonl.gz`` file of Lhotse's, one cut or recording a line. It is read lazily: nothing
here holds more than a line of it.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import logging
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from lhotse.serialization import decode_json_line, open_best

from s3prl_ekd import MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import is_remote

logger = logging.getLogger(__name__)

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SHAR_TAR = re.compile(r"\brecording((?:\.\d+)?)\.tar$")
_MOST_NUMBERS = 1_000_000  # that a range may stand for
_EMPTY_GZIP = 512  # bytes that a gzip file of nothing, which has its name in it, does not exceed


class Entry(NamedTuple):
    """A line of a manifest, which describes one cut or recording."""

    samples: int
    """What a batch will hold of it, at 16 kHz."""
    line: str
    manifest: str
    """The file that the line is from."""


def find_manifests(name: str, key: str) -> list[str]:
    """The manifests that a name stands for: a file, a Shar folder or tar, a pattern, an address or a command.

    One that is empty is warned about, since nothing else would tell.

    Args:
        name: as in the recipe.
        key: the recipe's key that the name is from, for messages.

    Raises:
        UserError: the name stands for nothing that can be read lazily and repeatedly.
    """
    numbered = _expand_range(_SHAR_TAR.sub(r"cuts\1.jsonl.gz", name))
    if is_remote(name):
        return numbered
    found = [path for pattern in numbered for path in _expand_path(pattern)]
    for path in found:
        if not os.path.exists(path):
            beside = f" (the manifest of {name})" if name.endswith(".tar") else ""
            raise UserError(f"{key}: no file {path}{beside}; `s3prl-ekd data` makes manifests")
        if not path.endswith(MANIFEST_SUFFIXES):
            raise UserError(f"{key}: {path} is no manifest that can be read lazily ({', '.join(MANIFEST_SUFFIXES)})")
        if not os.path.isfile(path):
            raise UserError(f"{key}: {path} is no regular file, but manifests are read again in every epoch")
        if _is_empty(path):
            logger.warning("%s: %s is empty, no utterance in it", key, path)
    if not found:
        raise UserError(f"{key}: {name} holds or matches no manifest of cuts (cuts.*.jsonl.gz)")
    return found


def _is_empty(path: str) -> bool:
    if os.path.getsize(path) > _EMPTY_GZIP:
        return False
    try:
        data = Path(path).read_bytes()
        return not (gzip.decompress(data) if path.endswith(".gz") else data).strip()
    except (OSError, EOFError, zlib.error):
        return False  # it is damaged, which reading it will tell


def _expand_path(path: str) -> list[str]:
    if os.path.isdir(path):
        return sorted(str(found) for found in Path(path).glob("cuts*.jsonl*") if str(found).endswith(MANIFEST_SUFFIXES))
    return sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]


def _expand_range(name: str) -> list[str]:
    """``a.{08..11}.b`` as ``a.08.b``, ``a.09.b``, ``a.10.b``, ``a.11.b``."""
    match = _RANGE.search(name)
    if match is None:
        return [name]
    first, last = match.groups()
    if int(last) - int(first) >= _MOST_NUMBERS:
        raise UserError(f"{name}: stands for more than {_MOST_NUMBERS} manifests; write a smaller range")
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [name[: match.start()] + number + name[match.end() :] for number in numbers]


def read_entries(manifest: str, max_crop_samples: int | None) -> Iterator[Entry]:
    """The entries of a manifest that are at least a frame long, in its order.

    Args:
        manifest: a path, an address or a command.
        max_crop_samples: how much of a longer one a batch will hold; None: all of it.

    Raises:
        SourceError: it cannot be read, or a line is neither a cut nor a recording.
    """
    done, skipped = 0, 0
    try:
        with _open(manifest) as lines:
            for line in lines:
                if done == 0:
                    line = line.removeprefix("\ufeff")
                if line.isspace():
                    continue
                samples = round(decode_json_line(line)["duration"] * SAMPLE_RATE)
                if samples < MIN_SAMPLES:
                    skipped += 1
                else:
                    yield Entry(min(samples, max_crop_samples or samples), line, manifest)
                done += 1
    except (KeyError, TypeError) as error:
        raise SourceError(f"{manifest}: line {done + 1} has no duration; expected plain cuts or recordings") from error
    except Exception as error:  # what a line or an object store's client can raise is not ours to list
        raise SourceError(f"{manifest}: cannot be read after line {done} ({one_line(error)})") from error
    if done == 0 and is_remote(manifest):  # others are looked at before anything is read
        logger.warning("%s: empty, no utterance in it", manifest)
    if skipped and skipped == done:
        logger.warning("%s: all %d utterances are shorter than a frame, none is left", manifest, done)
    elif skipped:
        logger.info("%s: %d utterances shorter than a frame (%d samples) left out", manifest, skipped, MIN_SAMPLES)


@contextlib.contextmanager
def open_bytes(address: str) -> Iterator[IO[bytes]]:
    """What is at a path or address, or what a command prints.

    Raises:
        OSError: the command failed (Lhotse's own pipe does not look).
    """
    if not address.startswith("pipe:"):
        with open_best(address, "rb") as stream:
            yield stream
        return
    pipe = open_best(address, "rb")
    try:
        yield pipe.stream
        complete = pipe.stream.closed or not pipe.stream.read(1)
    finally:
        pipe.stream.close()
        status = pipe.proc.wait()
    if complete and status:
        raise OSError(f"the command ended with status {status}")


@contextlib.contextmanager
def _open(manifest: str) -> Iterator[IO[str]]:
    if not manifest.startswith("pipe:"):
        with open_best(manifest, "r") as lines:
            yield lines
        return
    with open_bytes(manifest) as stream:
        assert isinstance(stream, io.BufferedReader)  # what a process prints
        compressed = stream.peek(2)[:2] == b"\x1f\x8b"
        yield io.TextIOWrapper(gzip.GzipFile(fileobj=stream) if compressed else stream, "utf-8")


def recording_paths(manifest: str) -> list[Path]:
    """The audio files of a manifest of cuts or recordings, in its order.

    Raises:
        UserError: there is none, or some audio is not in a file of its own.
    """
    paths = []
    for found in find_manifests(manifest, "distortion"):
        for entry in read_entries(found, None):
            item = decode_json_line(entry.line)
            for source in item.get("recording", item)["sources"]:
                if source["type"] != "file":
                    raise UserError(f"{found}: noise and impulse responses must be audio files")
                paths.append(Path(source["source"]))
    if not paths:
        raise UserError(f"{manifest}: no recording of at least a frame in it")
    return paths
