"""What s3prl's PR and ASR read besides LibriSpeech itself: the words of its transcripts, the lengths of its files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from s3prl_ekd.data.text import read_lengths, read_transcripts
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path, files_below

COLUMNS = ("", "file_path", "length", "label")
"""Columns of a ``len_for_bucket`` CSV: index, path relative to LibriSpeech's root, samples, nothing."""


def transcripts(root: Path, splits: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every (utterance, words) of ``splits``.

    Raises:
        UserError: a split is missing, or has no transcripts.
    """
    for split in splits:
        files = files_below(root / split, [".trans.txt"])
        if not files:
            raise UserError(
                f"{root / split}: no transcripts (SPK/CHAP/SPK-CHAP.trans.txt); LibriSpeech's folder is expected in"
                f" {root}, with {', '.join(splits)}"
            )
        for file in files:
            yield from read_transcripts(file)


def write_lengths(root: Path, split: str, path: Path) -> None:
    """Write the ``len_for_bucket`` CSV of one split (s3prl's ``generate_len_for_bucket.py``, longest first).

    Raises:
        UserError: the split has no audio, or a file that is not audio: results without it would be of another corpus.
    """
    from s3prl_ekd.data.audio import audio_length  # imports torch

    files = files_below(root / split, [".flac"])
    if not files:
        raise UserError(f"{root / split}: no audio (SPK/CHAP/*.flac)")
    rows = []
    for file in tqdm(files, desc=f"lengths of {split}", unit="file", delay=2):
        rows.append((file.relative_to(root).as_posix(), audio_length(file)))
    rows.sort(key=lambda row: -row[1])
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows((index, name, length, "") for index, (name, length) in enumerate(rows))


def lengths_folder(root: Path, splits: Iterable[str], given: Path | None, folder: Path) -> Path:
    """The folder of ``len_for_bucket`` CSVs: ``given`` if it has all of ``splits``, else ``folder``, filled here.

    Raises:
        UserError: ``given`` lacks a split (s3prl would leave it out and go on), or has one that is empty or unusable.
    """
    if given is not None:
        for split in splits:
            if not (given / f"{split}.csv").is_file():
                raise UserError(f"{given}: no {split}.csv; leave --len-for-bucket out to have the files made")
            if not read_lengths(given / f"{split}.csv"):
                raise UserError(f"{given / f'{split}.csv'}: empty; leave --len-for-bucket out to have the files made")
        return given
    for split in splits:
        if not (folder / f"{split}.csv").is_file():
            write_lengths(root, split, folder / f"{split}.csv")
    return folder
