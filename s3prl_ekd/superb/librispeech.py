"""What s3prl's PR and ASR read besides LibriSpeech itself: the words of its transcripts, the lengths of its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from s3prl_ekd.audio.text import read_lengths, read_transcripts, write_lengths
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import files_below


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
