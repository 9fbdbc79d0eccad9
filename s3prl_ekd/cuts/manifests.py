"""Writing cut manifests: from corpora in known layouts, fairseq's tsv lists, folders; s3prl's lists; Shar folders.

What is written is shuffled, since a lazy manifest is read in its order and training shuffles only within a buffer.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from lhotse import AudioSource, Recording
from lhotse.recipes.rir_noise import PARTS as RIR_PARTS
from lhotse.shar import SharWriter
from tqdm import tqdm

from s3prl_ekd import MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.audio.manifests import read_entries
from s3prl_ekd.audio.read import audio_files, read_header
from s3prl_ekd.audio.text import read_tsv, write_lengths
from s3prl_ekd.cuts.read import read_cut
from s3prl_ekd.cuts.sources import resolve_sources
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import atomic_path, files_below

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHECKED = 20  # files of a tsv list whose headers are compared with it

T = TypeVar("T")

Described: TypeAlias = Recording | tuple[str, UserError]
"""A recording, or the name of one that cannot be used and what is wrong with it."""


@dataclass(frozen=True)
class Written:
    """What a manifest (or Shar folder) holds."""

    path: Path
    cuts: int
    hours: float
    bad: int


def shuffled(items: Iterable[T]) -> list[T]:
    """In an order that is random and always the same."""
    items = list(items)
    random.Random(0).shuffle(items)
    return items


def describe_file(path: Path, name: str) -> Recording:
    """A recording from a file's header.

    Raises:
        UserError: it is not audio, truncated, or shorter than a frame.
    """
    header = read_header(path)
    if header.samples * SAMPLE_RATE < MIN_SAMPLES * header.rate:
        raise UserError(f"{path}: shorter than a frame ({header.samples} samples)")
    return Recording(
        id=name,
        sources=[AudioSource("file", list(range(header.channels)), str(path))],
        sampling_rate=header.rate,
        num_samples=header.samples,
        duration=header.samples / header.rate,
    )


def describe_files(files: Iterable[tuple[str, Path]]) -> Iterator[Described]:
    """The recordings of (name, file), shuffled."""
    for name, path in tqdm(shuffled(files), desc="headers of recordings", unit="file", delay=2):
        try:
            yield describe_file(path, name)
        except UserError as error:
            yield name, error


def write_manifest(path: str | Path, recordings: Iterable[Described]) -> Written:
    """Write a ``.jsonl.gz`` manifest with one cut for each recording; bad ones (name, problem) are listed beside it.

    Equal recordings give an equal file. More than 1 % of at least 200 bad ones stop it.
    """
    path = Path(path)
    if not path.name.endswith(".jsonl.gz"):
        raise UserError(f"{path}: a manifest's name ends in .jsonl.gz")
    cuts, seconds, problem = 0, 0.0, ""
    problems = path.with_name(path.name.removesuffix(".jsonl.gz") + ".bad_recordings.tsv")
    problems.unlink(missing_ok=True)
    bad = BadRecordings(problems)
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as lines,
    ):
        for recording in recordings:
            if isinstance(recording, Recording):
                cut = recording.to_cut()
                lines.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")
                cuts, seconds = cuts + 1, seconds + cut.duration
                bad.note(1, [])
            else:
                problem = f"; the last one: {recording[1]}"
                bad.note(1, [(recording[0], str(recording[1]))])
        if cuts == 0:
            raise UserError(f"{path}: not one usable recording, nothing written{bad.hint}{problem}")
    return Written(path, cuts, seconds / 3600, bad.bad)


def folder_recordings(folder: str | Path) -> Iterator[Described]:
    """All audio files below a folder; a recording's name is its path relative to it."""
    folder = Path(os.path.abspath(folder))
    return describe_files([(path.relative_to(folder).as_posix(), path) for path in audio_files(folder)])


def tsv_recordings(path: str | Path, rate: int = SAMPLE_RATE) -> Iterator[Described]:
    """fairseq's wav2vec manifest: the root folder in the first line, then ``path<tab>samples``.

    It does not say the sampling rate. It is believed, but for a few files whose headers are compared with it.

    Raises:
        UserError: the file is not such a list, or does not fit its recordings.
    """
    path = Path(path)
    root, rows = read_tsv(path)
    root = os.path.join(os.path.abspath(path.parent), root)  # an absolute root stays
    rows = shuffled(rows)
    problems: dict[str, UserError] = {}
    for name, samples in rows[:_CHECKED]:
        try:
            found = describe_file(Path(root, name), name)
        except UserError as error:
            problems[name] = error
            continue
        if (found.sampling_rate, found.num_samples) != (rate, samples):
            raise UserError(
                f"{path}: says {samples} samples (at {rate} Hz) of {name}, the file has {found.num_samples} at"
                f" {found.sampling_rate} Hz; give --rate, or make the list again"
            )
    if rows and len(problems) == len(rows[:_CHECKED]):
        raise UserError(f"{path}: {len(problems)} files were tried, none can be used; the last one: {problems[name]}")
    for name, samples in rows:
        if name in problems:
            yield name, problems[name]
        elif samples * SAMPLE_RATE >= MIN_SAMPLES * rate:
            source = AudioSource("file", [0], os.path.join(root, name))
            yield Recording(id=name, sources=[source], sampling_rate=rate, num_samples=samples, duration=samples / rate)


# Which recordings a part of a corpus has and what they are called is as in Lhotse's recipes. These are not called: they
# read transcripts and annotations that no manifest needs here, and one bad file is the end of them.


def librispeech_parts(corpus: Path) -> list[str]:
    """Names of the folders that hold transcripts in LibriSpeech's layout."""
    return sorted(
        folder.name
        for folder in corpus.iterdir()
        if any(not path.name.startswith(".") for path in folder.glob("*/*/*.trans.txt"))
    )


def musan_parts(corpus: Path) -> list[str]:
    """Which of MUSAN's parts the folder has."""
    return [part for part in ("music", "speech", "noise") if (corpus / part).is_dir()]


def files_of_folder(suffix: str, corpus: Path, part: str) -> list[tuple[str, Path]]:
    """(name, file) of a part that is a folder."""
    return _by_stem(files_below(corpus / part, [suffix]), corpus)


def rir_files(corpus: Path, part: str) -> list[tuple[str, Path]]:
    """(name, file) of ``point_noise``, ``iso_noise``, ``real_rir`` or ``sim_rir`` of RIRS_NOISES."""
    folder = corpus / RIR_PARTS[part]
    if part == "sim_rir":  # whose rooms have the same file names
        return [
            (f"{room}-{path.stem}", path)
            for room in ("small", "medium", "large")
            if (folder / f"{room}room").is_dir()
            for path in files_below(folder / f"{room}room", [".wav"])
        ]
    word = {"iso_noise": "noise", "real_rir": "rir"}.get(part, "")
    return _by_stem([path for path in files_below(folder, [".wav"]) if word in path.stem], corpus)


def rir_parts(corpus: Path) -> list[str]:
    """Which of RIRS_NOISES' parts the folder has."""
    return [part for part, folder in RIR_PARTS.items() if (corpus / folder).is_dir() and rir_files(corpus, part)]


def _by_stem(files: Sequence[Path], corpus: Path) -> list[tuple[str, Path]]:
    """Files with their names, which are paths where the same name comes twice."""
    counts = Counter(path.stem for path in files)
    return [(path.stem if counts[path.stem] == 1 else path.relative_to(corpus).as_posix(), path) for path in files]


@dataclass(frozen=True)
class Corpus:
    """A corpus in parts."""

    folder: str
    """Its folder's usual name; the folder above it is accepted too."""
    prefix: str
    """Of the manifests' names."""
    parts: Callable[[Path], list[str]]
    files: Callable[[Path, str], list[tuple[str, Path]]]
    """From the folder and a part to (name, file)."""


CORPORA = {
    "librispeech": Corpus("LibriSpeech", "librispeech", librispeech_parts, partial(files_of_folder, ".flac")),
    "musan": Corpus("musan", "musan", musan_parts, partial(files_of_folder, ".wav")),
    "rirs": Corpus("RIRS_NOISES", "rirs", rir_parts, rir_files),
}


def write_corpus(
    corpus: Corpus, folder: str | Path, out: str | Path, parts: Sequence[str] | None = None
) -> list[Written]:
    """One manifest ``<prefix>_cuts_<part>.jsonl.gz`` for each part; None: all that are there.

    Raises:
        UserError: the folder is missing or does not have the corpus' layout.
    """
    folder, parts = _find_parts(corpus, folder, parts)
    return [
        write_manifest(Path(out, f"{corpus.prefix}_cuts_{part}.jsonl.gz"), describe_files(corpus.files(folder, part)))
        for part in parts
    ]


def write_lists(folder: str | Path, out: str | Path, parts: Sequence[str] | None = None) -> list[Written]:
    """A ``len_for_bucket`` list ``<part>.csv`` for each part of a corpus in LibriSpeech's layout; None: all parts.

    Raises:
        UserError: the folder is missing or does not have that layout, or a file is not audio.
    """
    folder, parts = _find_parts(CORPORA["librispeech"], folder, parts)
    written = []
    for part in parts:
        path = Path(out, f"{part}.csv")
        rows = write_lengths(folder, part, path)
        hours = sum(samples for _, samples in rows) / SAMPLE_RATE / 3600
        written.append(Written(path, len(rows), hours, bad=0))
    return written


def _find_parts(corpus: Corpus, folder: str | Path, parts: Sequence[str] | None) -> tuple[Path, Sequence[str]]:
    """The corpus' own folder, and which of its parts are asked for."""
    folder = Path(os.path.abspath(folder))
    if (folder / corpus.folder).is_dir():
        folder = folder / corpus.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the corpus' own, unpacked")
    found = corpus.parts(folder)
    missing = sorted(set(parts or ()) - set(found))
    if missing or not found:
        what = f"no {', '.join(missing)}" if missing else f"no part of {corpus.folder}"
        raise UserError(f"{folder}: {what} in it{'; found ' + ', '.join(found) if found else ''}")
    return folder, parts or found


def write_shar(manifests: Sequence[str], out: str | Path, *, shard_size: int = 1000, audio: str = "flac") -> Written:
    """Copy cuts and their audio into a Shar folder, for object stores: few large files that are read in sequence.

    Raises:
        UserError: the folder exists, or more than 1 % of at least 200 recordings cannot be read.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: exists already; give a new folder")
    cuts, seconds = 0, 0.0
    bad = BadRecordings(out.with_name(f"{out.name}.bad_recordings.tsv"))
    entries = (
        entry
        for source in resolve_sources(manifests, "data shar")
        for manifest in source.manifests
        for entry in read_entries(manifest, None)
    )
    with atomic_path(out) as temporary:
        temporary.mkdir()
        with SharWriter(str(temporary), fields={"recording": audio}, shard_size=shard_size) as writer:
            for entry in tqdm(entries, desc="cuts", unit="cut", delay=2):
                cut = read_cut(entry)
                try:
                    writer.write(cut.drop_supervisions())
                except Exception as error:  # whatever its audio backends raise; it has read before it writes
                    if isinstance(error, OSError) and error.errno in _FULL:
                        raise UserError(f"{out}: {error.strerror}; nothing is left of it") from error
                    bad.note(1, [(cut.id, f"{cut.id}: {one_line(error, 300)}")])
                    continue
                bad.note(1, [])
                cuts, seconds = cuts + 1, seconds + cut.duration
        if cuts == 0:
            raise UserError(f"{out}: not one readable cut, nothing written{bad.hint}")
    return Written(out, cuts, seconds / 3600, bad.bad)
