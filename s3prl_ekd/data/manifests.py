"""Writing cut manifests: from corpora that Lhotse has recipes for, fairseq's tsv lists, folders; and Shar folders.

What is written is shuffled, since a lazy manifest is read in its order and training shuffles only within a buffer.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import soundfile
from lhotse import AudioSource, Recording
from lhotse.recipes.librispeech import prepare_librispeech
from lhotse.recipes.musan import prepare_musan
from lhotse.recipes.rir_noise import PARTS as RIR_PARTS
from lhotse.recipes.rir_noise import prepare_rir_noise
from lhotse.shar import SharWriter
from tqdm import tqdm

from s3prl_ekd import MIN_SAMPLES, SAMPLE_RATE
from s3prl_ekd.data.audio import audio_files
from s3prl_ekd.data.bad_recordings import BadRecordings
from s3prl_ekd.data.cuts import read_cut
from s3prl_ekd.data.sources import read_entries, resolve_sources
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path

logger = logging.getLogger(__name__)

_CHECKED = 20  # files of a tsv list whose headers are compared with it

T = TypeVar("T")


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
        UserError: it is not audio, or shorter than a frame.
    """
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: not a readable audio file ({error.error_string.strip('. ')})") from error
    if info.frames * SAMPLE_RATE < MIN_SAMPLES * info.samplerate:
        raise UserError(f"{path}: shorter than a frame ({info.frames} samples)")
    return Recording(
        id=name,
        sources=[AudioSource("file", list(range(info.channels)), str(path))],
        sampling_rate=info.samplerate,
        num_samples=info.frames,
        duration=info.frames / info.samplerate,
    )


def write_manifest(path: str | Path, recordings: Iterable[Recording | tuple[str, UserError]]) -> Written:
    """Write a ``.jsonl.gz`` manifest with one cut for each recording; bad ones (name, problem) are listed beside it.

    Equal recordings give an equal file. More than 1 % of at least 200 bad ones stop it.
    """
    path = _manifest_path(path)
    cuts, seconds = 0, 0.0
    problems = path.with_name(path.name.removesuffix(".jsonl.gz") + ".bad_recordings.tsv")
    problems.unlink(missing_ok=True)
    bad = BadRecordings(problems)
    with atomic_path(path) as temporary:
        with (
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
                    bad.note(1, [(recording[0], str(recording[1]))])
        if cuts == 0:
            raise UserError(f"{path}: not one usable recording, nothing written{bad.hint}")
    return Written(path, cuts, seconds / 3600, bad.bad)


def _manifest_path(path: str | Path) -> Path:
    path = Path(path)
    if not path.name.endswith(".jsonl.gz"):
        raise UserError(f"{path}: a manifest's name ends in .jsonl.gz")
    return path


def folder_recordings(folder: str | Path) -> Iterator[Recording | tuple[str, UserError]]:
    """All audio files below a folder; a recording's name is its path relative to it."""
    folder = Path(os.path.abspath(folder))
    for path in tqdm(shuffled(audio_files(folder)), desc="headers of recordings", unit="file", delay=2):
        name = path.relative_to(folder).as_posix()
        try:
            yield describe_file(path, name)
        except UserError as error:
            yield name, error


def tsv_recordings(path: str | Path, rate: int = SAMPLE_RATE) -> Iterator[Recording]:
    """fairseq's wav2vec manifest: the root folder in the first line, then ``path<tab>samples``.

    It does not say the sampling rate. It is believed, but for a few files whose headers are compared with it.

    Raises:
        UserError: the file is not such a list, or does not fit its recordings.
    """
    path = Path(path)
    try:
        root, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [(name, int(samples)) for name, samples in (line.split("\t") for line in lines if line.strip())]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give fairseq's tsv manifest") from error
    except ValueError as error:
        raise UserError(f"{path}: expected a root folder, then lines of path<tab>number of samples") from error
    root = os.path.join(os.path.abspath(path.parent), root)  # an absolute root stays
    for number, (name, samples) in enumerate(shuffled(rows)):
        file = Path(root, name)
        if number < _CHECKED:
            found = describe_file(file, name)
            if (found.sampling_rate, found.num_samples) != (rate, samples):
                raise UserError(
                    f"{path}: says {samples} samples (at {rate} Hz) of {name}, the file has {found.num_samples} at"
                    f" {found.sampling_rate} Hz; give --rate, or make the list again"
                )
        if samples * SAMPLE_RATE >= MIN_SAMPLES * rate:
            source = AudioSource("file", [0], str(file))
            yield Recording(id=name, sources=[source], sampling_rate=rate, num_samples=samples, duration=samples / rate)


def librispeech_recordings(corpus: Path, part: str) -> list[Recording]:
    """One part of a corpus in LibriSpeech's layout, by Lhotse's recipe."""
    return _by_recipe(prepare_librispeech, corpus, part, dataset_parts=[part])


def librispeech_parts(corpus: Path) -> list[str]:
    """Folders that hold transcripts in LibriSpeech's layout."""
    return sorted(folder.name for folder in corpus.iterdir() if any(folder.glob("*/*/*.trans.txt")))


def musan_recordings(corpus: Path, part: str) -> list[Recording]:
    """``music``, ``speech`` or ``noise`` of MUSAN, by Lhotse's recipe."""
    return _by_recipe(prepare_musan, corpus, part, parts=[part])


def musan_parts(corpus: Path) -> list[str]:
    """Those that are there."""
    return [part for part in ("music", "speech", "noise") if (corpus / part).is_dir()]


def rir_recordings(corpus: Path, part: str) -> list[Recording]:
    """``point_noise``, ``iso_noise``, ``real_rir`` or ``sim_rir`` of RIRS_NOISES, by Lhotse's recipe."""
    return _by_recipe(prepare_rir_noise, corpus, part, parts=[part])


def rir_parts(corpus: Path) -> list[str]:
    """Those that are there."""
    return [part for part, folder in RIR_PARTS.items() if (corpus / folder).is_dir()]


def _by_recipe(prepare: Callable, corpus: Path, part: str, **options: Sequence[str]) -> list[Recording]:
    try:
        recordings = list(prepare(corpus, **options)[part]["recordings"])
    except Exception as error:  # recipes assert, and readers raise what they like
        raise UserError(
            f"{corpus}: Lhotse's recipe failed for {part} ({' '.join(str(error).split())[:300]})"
        ) from error
    return shuffled(recordings)


@dataclass(frozen=True)
class Corpus:
    """A corpus in parts that Lhotse has a recipe for."""

    folder: str
    """Its folder's usual name; the folder above it is accepted too."""
    prefix: str
    """Of the manifests' names."""
    parts: Callable[[Path], list[str]]
    recordings: Callable[[Path, str], list[Recording]]


CORPORA = {
    "librispeech": Corpus("LibriSpeech", "librispeech", librispeech_parts, librispeech_recordings),
    "musan": Corpus("musan", "musan", musan_parts, musan_recordings),
    "rirs": Corpus("RIRS_NOISES", "rirs", rir_parts, rir_recordings),
}


def write_corpus(
    corpus: Corpus, folder: str | Path, out: str | Path, parts: Sequence[str] | None = None
) -> list[Written]:
    """One manifest ``<prefix>_cuts_<part>.jsonl.gz`` for each part; None: all that are there.

    Raises:
        UserError: the folder is missing or does not have the corpus' layout.
    """
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
    return [
        write_manifest(Path(out, f"{corpus.prefix}_cuts_{part}.jsonl.gz"), corpus.recordings(folder, part))
        for part in parts or found
    ]


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
                    bad.note(1, [(cut.id, f"{cut.id}: {' '.join(str(error).split())[:300]}")])
                    continue
                bad.note(1, [])
                cuts, seconds = cuts + 1, seconds + cut.duration
        if cuts == 0:
            raise UserError(f"{out}: not one readable cut, nothing written{bad.hint}")
    return Written(out, cuts, seconds / 3600, bad.bad)
