"""Utterances and transcripts of a folder in LibriSpeech's layout, as the items that s3prl's CTC loader expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch.utils.data import Dataset
from tqdm import tqdm

from s3prl_ekd.audio.text import read_transcripts
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import files_below

Item = tuple[Path, list[int]]  # an audio file and its labels


class LibriSpeechFolder(Dataset[Item | list[Item]]):
    """Items sorted by the length of their labels, single or in buckets of neighbours.

    Args:
        path: the folder that holds the splits.
        splits: names of subfolders; every ``SPK-CHAP-NNNN.flac`` below them needs a line in its ``SPK-CHAP.trans.txt``.
        encode: from a transcript to labels.
        bucket_size: 1: an item is ``(file, labels)``; else it is a list of so many of them.
        ascending: shortest first; s3prl wants the longest first.

    Raises:
        UserError: a split without audio, a file without transcript.
    """

    def __init__(
        self,
        path: str | Path,
        splits: Sequence[str],
        encode: Callable[[str], list[int]],
        bucket_size: int,
        ascending: bool = False,
    ) -> None:
        files = [file for split in splits for file in _audio_files(Path(path) / split)]
        transcripts: dict[Path, dict[str, str]] = {}
        items = []
        for file in tqdm(files, desc=f"transcripts of {', '.join(splits)}", delay=2):
            listing = file.with_name(f"{file.stem.rpartition('-')[0]}.trans.txt")
            if listing not in transcripts:
                transcripts[listing] = {name: " ".join(words) for name, words in read_transcripts(listing)}
            if file.stem not in transcripts[listing]:
                raise UserError(f"{listing}: has no line for {file.stem}")
            items.append((file, encode(transcripts[listing][file.stem])))
        self.items: list[Item] = sorted(items, key=lambda item: len(item[1]), reverse=not ascending)
        self.bucket_size = bucket_size

    def __getitem__(self, index: int) -> Item | list[Item]:
        if self.bucket_size == 1:
            return self.items[index]
        start = max(min(index, len(self.items) - self.bucket_size), 0)
        return self.items[start : start + self.bucket_size]

    def __len__(self) -> int:
        return len(self.items)


def _audio_files(split: Path) -> list[Path]:
    files = files_below(split, [".flac"])  # sorted: a folder's own order differs between machines
    if not files:
        raise UserError(f"{split}: no *.flac below it; give the path of a corpus in LibriSpeech's layout")
    return files
