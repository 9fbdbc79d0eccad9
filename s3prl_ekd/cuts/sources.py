"""The sources that ``data.cuts`` names, and one stream of all their entries."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lhotse.lazy import LazyIteratorMultiplexer

from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.audio.manifests import Entry, find_manifests, read_entries
from s3prl_ekd.config.data import require_distinct
from s3prl_ekd.files import is_remote

_SHAR_MANIFEST = re.compile(r"\bcuts((?:\.\d+)?)\.jsonl(?:\.gz)?")
_ENDS = 1 << 16  # bytes at either end that identify a manifest; a gzip file's last eight are a checksum of it all


@dataclass(frozen=True)
class CutSource:
    """One of the names in ``data.cuts``, and the manifests that it stands for."""

    key: str
    """The recipe's key that it is from, for messages: ``data.cuts`` or ``data.dev_cuts``."""
    name: str
    """As the recipe has it: a path, a pattern, an address or a command."""
    manifests: tuple[str, ...]


def tar_beside(manifest: str) -> str:
    """The audio of a Shar manifest: ``.../recording.000012.tar`` for ``.../cuts.000012.jsonl.gz``.

    Raises:
        SourceError: the manifest is not named like one.
    """
    tar, found = _SHAR_MANIFEST.subn(r"recording\1.tar", manifest)
    if not found:
        raise SourceError(f"{manifest}: its audio is in a Shar tar, so the manifest must be named cuts.NNNNNN.jsonl.gz")
    return tar


def resolve_sources(names: Sequence[str], key: str = "data.cuts") -> list[CutSource]:
    """The manifests behind each name in the recipe's ``key``.

    Raises:
        UserError: a name stands for nothing that can be read lazily and repeatedly, or a manifest is named twice.
    """
    sources = [CutSource(key, name, tuple(find_manifests(name, key))) for name in names]
    require_distinct((manifest for source in sources for manifest in source.manifests), key)
    return sources


def digest(manifest: str) -> str:
    """A short text that changes with a manifest's content; object stores are taken to keep theirs."""
    if is_remote(manifest):
        return "remote"
    with open(manifest, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return f"{size}-{hashlib.blake2b(head + file.read(), digest_size=8).hexdigest()}"


def mix_sources(
    sources: Sequence[CutSource], max_crop_samples: int | None, rng: random.Random | None
) -> Iterator[Entry]:
    """All entries of all sources, mixed in the same proportion throughout.

    Args:
        sources: mixed by the sizes of their manifests, or by their number where one is not on a file system.
        max_crop_samples: see :func:`~s3prl_ekd.audio.manifests.read_entries`.
        rng: shuffles the manifests of each source; None leaves them in order.
    """
    streams = []
    for source in sources:
        manifests = list(source.manifests)
        if rng is not None:
            rng.shuffle(manifests)
        streams.append(entry for manifest in manifests for entry in read_entries(manifest, max_crop_samples))
    if len(streams) == 1:
        return streams[0]
    if any(is_remote(source.name) for source in sources):
        weights = [len(source.manifests) for source in sources]
    else:
        weights = [max(1, sum(map(os.path.getsize, source.manifests))) for source in sources]
    return iter(LazyIteratorMultiplexer(*streams, weights=weights, seed=rng.randrange(2**31) if rng else 0))
