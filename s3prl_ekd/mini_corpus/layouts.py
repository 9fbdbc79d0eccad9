"""Transcripts, tables and labels beside the audio, as s3prl's tasks read them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from s3prl_ekd.mini_corpus.plan import Part
from s3prl_ekd.mini_corpus.recording import Labels, Lexicon, Recording
from s3prl_ekd.mini_corpus.voices import EMOTIONS


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """A recording that has its audio file."""

    recording: Recording
    samples: int
    labels: Labels


def write_lexicon(root: Path, lexicon: Lexicon) -> None:
    """``lexicon.txt``: WORD<tab>PH PH ..."""
    _write_lines(root / "lexicon.txt", (f"{word.upper()}\t{' '.join(phones)}" for word, phones in lexicon.items()))


def write_librispeech(root: Path, split: str, spoken: Sequence[Spoken]) -> None:
    """Transcripts, the table of lengths and the phone labels of one split."""
    for folder, group in groupby(spoken, key=lambda one: Path(one.recording.path).parent):
        transcripts = (f"{_stem(one)} {one.recording.text.upper()}" for one in group)
        _write_lines(root / folder / f"{folder.parent.name}-{folder.name}.trans.txt", transcripts)
    labels = (
        f"{_stem(one)}\t" + "; ".join(f"{phone} {start} {end}" for phone, start, end in one.labels) for one in spoken
    )
    _write_lines(root / "alignments" / f"{split}.tsv", labels)
    by_length = sorted(spoken, key=lambda one: (-one.samples, one.recording.path))
    rows = (
        f"{index},{Path(one.recording.path).relative_to('LibriSpeech')},{one.samples},"
        for index, one in enumerate(by_length)
    )
    _write_lines(root / "len_for_bucket" / f"{split}.csv", [",file_path,length,label", *rows])


def write_voxceleb(root: Path, part: Part) -> None:
    """``iden_split.txt``: 1 (train), 2 (dev) or 3 (test), and id/video/file."""
    lines = (
        f"{split} {'/'.join(Path(recording.path).parts[-3:])}"
        for recording, split in zip(part.recordings, part.notes, strict=True)
    )
    _write_lines(root / part.name / "iden_split.txt", lines)


def write_iemocap(root: Path, train: Part, test: Part, hidden: Part) -> None:
    """``meta_data/Session1`` of the public and the hidden corpus."""
    labels = {emotion: index for index, emotion in enumerate(EMOTIONS)}
    for folder, split, part in (
        ("IEMOCAP", "train", train),
        ("IEMOCAP", "test", test),
        ("IEMOCAP-hidden", "train", train),  # only because s3prl's emotion task loads it even to evaluate
        ("IEMOCAP-hidden", "test", hidden),
    ):
        rows = [
            {"path": os.path.relpath(recording.path, folder), "label": emotion, "speaker": speaker}
            for recording, (emotion, speaker) in zip(part.recordings, part.notes, strict=True)
        ]
        table = json.dumps({"labels": labels, "meta_data": rows}, indent=1)
        _write_lines(root / folder / "meta_data" / "Session1" / f"{split}_meta_data.json", [table])


def _stem(one: Spoken) -> str:
    return Path(one.recording.path).stem


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
