"""VoxCeleb1's split list, checked against the audio before s3prl searches for it."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_lines

MAX_SPEAKERS = 1251
"""Output size of s3prl's SID classifier: speaker idNNNNN is class NNNNN - 10001."""


def check_split_file(root: Path, path: Path) -> None:
    """Check every line ``1|2|3 id10001/VIDEO/00001.wav`` of a split list.

    Raises:
        UserError: the list is unreadable or malformed, misses a set, or names audio that is not in ``root``.
    """
    lines = [(number, line.split()) for number, line in read_lines(path, hint="give VoxCeleb1's iden_split.txt")]
    sets, missing = set(), []
    folders = [part / "wav" for part in sorted(root.iterdir()) if part.is_dir()] if root.is_dir() else []
    for number, fields in tqdm(lines, desc="files of VoxCeleb1", unit="file", delay=2):
        if len(fields) != 2 or fields[0] not in ("1", "2", "3") or not _is_speaker(fields[1].split("/")[0]):
            raise UserError(f"{path}, line {number}: expected '1 id10001/VIDEO/00001.wav', found {' '.join(fields)!r}")
        sets.add(fields[0])
        if not any((folder / fields[1]).is_file() for folder in folders):
            missing.append(fields[1])
    if len(sets) < 3:
        raise UserError(f"{path}: train (1), dev (2) and test (3) must each have a file")
    if missing:
        raise UserError(
            f"{len(missing)} of {len(lines)} files of {path} are not in {root}/*/wav/, such as {missing[0]}"
        )


def _is_speaker(name: str) -> bool:
    return name.startswith("id") and name[2:].isdigit() and 10001 <= int(name[2:]) <= 10000 + MAX_SPEAKERS
