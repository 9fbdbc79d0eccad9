"""From the entries of ``data.cuts`` to lines of manifests: files, Shar folders, patterns, object stores, commands."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import logging
import os
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from lhotse.lazy import LazyIteratorMultiplexer
from lhotse.serialization import decode_json_line, open_best

from s3prl_ekd import MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.config.data import is_remote, require_distinct
from s3prl_ekd.errors import UserError, one_line

logger = logging.getLogger(__name__)

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SHAR_MANIFEST = re.compile(r"\bcuts((?:\.\d+)?)\.jsonl(?:\.gz)?")
_SHAR_TAR = re.compile(r"\brecording((?:\.\d+)?)\.tar$")
_MOST_NUMBERS = 1_000_000  # that a range may stand for
_EMPTY_GZIP = 512  # bytes that a gzip file of nothing, which has its name in it, does not exceed
_ENDS = 1 << 16  # bytes at either end that identify a manifest; a gzip file's last eight are a checksum of it all


class SourceError(UserError):
    """A manifest or tar as a whole cannot be used, which is not the same as one bad recording."""


class Entry(NamedTuple):
    """One utterance before its audio is read."""

    samples: int
    """What a batch will hold of it, at 16 kHz."""
    line: str
    """Its line of the manifest."""
    manifest: str
    """Where that line is from."""


@dataclass(frozen=True)
class Source:
    """One entry of ``data.cuts`` and the manifests that it stands for."""

    name: str
    manifests: tuple[str, ...]

    @property
    def resumable(self) -> bool:
        """Whether reading it a second time surely gives the same."""
        return not self.name.startswith("pipe:")

    @property
    def bytes(self) -> int | None:
        """Size of its manifests; None if they are not on a file system."""
        return None if is_remote(self.name) else sum(os.path.getsize(manifest) for manifest in self.manifests)


def tar_beside(manifest: str) -> str:
    """The audio of a Shar manifest: ``.../recording.000012.tar`` for ``.../cuts.000012.jsonl.gz``.

    Raises:
        SourceError: the manifest is not named like one.
    """
    tar, found = _SHAR_MANIFEST.subn(r"recording\1.tar", manifest)
    if not found:
        raise SourceError(f"{manifest}: its audio is in a Shar tar, so the manifest must be named cuts.NNNNNN.jsonl.gz")
    return tar


def resolve_sources(names: Sequence[str], key: str = "data.cuts") -> list[Source]:
    """The manifests behind each name; one that is empty is warned about, since nothing else would tell.

    Raises:
        UserError: a name stands for nothing that can be read lazily and repeatedly, or a manifest is named twice.
    """
    sources = [Source(name, tuple(_expand(name, key))) for name in names]
    manifests = [manifest for source in sources for manifest in source.manifests]
    require_distinct(manifests, key)
    for manifest in manifests:
        if not is_remote(manifest) and _is_empty(manifest):
            logger.warning("%s: %s is empty, no utterance in it", key, manifest)
    return sources


def _is_empty(path: str) -> bool:
    if os.path.getsize(path) > _EMPTY_GZIP:
        return False
    try:
        data = Path(path).read_bytes()
        return not (gzip.decompress(data) if path.endswith(".gz") else data).strip()
    except (OSError, EOFError, zlib.error):
        return False  # it is damaged, which reading it will tell


def _expand(name: str, key: str) -> list[str]:
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
    if not found:
        raise UserError(f"{key}: {name} holds or matches no manifest of cuts (cuts.*.jsonl.gz)")
    return found


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


def digest(manifest: str) -> str:
    """A short text that changes with a manifest's content; object stores are taken to keep theirs."""
    if is_remote(manifest):
        return "remote"
    with open(manifest, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return f"{size}-{hashlib.blake2b(head + file.read(), digest_size=8).hexdigest()}"


def read_entries(manifest: str, crop: int | None) -> Iterator[Entry]:
    """The utterances of a manifest that are at least a frame long, in its order.

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
                    yield Entry(samples if crop is None else min(samples, crop), line, manifest)
                done += 1
    except (KeyError, TypeError) as error:
        raise SourceError(f"{manifest}: line {done + 1} has no duration; expected plain cuts or recordings") from error
    except GeneratorExit:
        raise
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
        compressed = stream.peek(2)[:2] == b"\x1f\x8b"
        yield io.TextIOWrapper(gzip.GzipFile(fileobj=stream) if compressed else stream, "utf-8")


def mix_sources(sources: Sequence[Source], crop: int | None, rng: random.Random | None) -> Iterator[Entry]:
    """All utterances of all sources, each source's share the same throughout.

    ``rng`` shuffles the manifests of each source; None leaves them in order.
    """
    streams = []
    for source in sources:
        manifests = list(source.manifests)
        if rng is not None:
            rng.shuffle(manifests)
        streams.append(_chain(manifests, crop))
    if len(streams) == 1:
        return streams[0]
    sizes = [source.bytes for source in sources]
    weights = [len(source.manifests) for source in sources] if None in sizes else [max(1, size) for size in sizes]
    return iter(LazyIteratorMultiplexer(*streams, weights=weights, seed=rng.randrange(2**31) if rng else 0))


def _chain(manifests: Sequence[str], crop: int | None) -> Iterator[Entry]:
    for manifest in manifests:
        yield from read_entries(manifest, crop)


def recording_paths(manifest: str) -> list[Path]:
    """The audio files of a manifest of cuts or recordings, in its order.

    Raises:
        UserError: there is none, or some audio is not in a file of its own.
    """
    paths = []
    for entry in mix_sources(resolve_sources([manifest], "distortion"), None, None):
        item = decode_json_line(entry.line)
        for source in item.get("recording", item)["sources"]:
            if source["type"] != "file":
                raise UserError(f"{entry.manifest}: noise and impulse responses must be audio files")
            paths.append(Path(source["source"]))
    if not paths:
        raise UserError(f"{manifest}: no recording of at least a frame in it")
    return paths
