"""Speaker identification on VoxCeleb1; its split list is checked against the audio before s3prl searches for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_lines
from s3prl_ekd.tasks.corpora import HIDDEN, Corpora, Input, Split
from s3prl_ekd.tasks.task import Experiment, Settings, Task, TestSet, filled_in

MAX_SPEAKERS = 1251
"""Output size of s3prl's SID classifier: speaker idNNNNN is class NNNNN - 10001."""

VOXCELEB1 = Input(
    name="voxceleb1", option="--voxceleb1", help="VoxCeleb1, with dev/wav and test/wav (SID)", mini="VoxCeleb1"
)
IDEN_SPLIT = Input(
    name="iden_split",
    option="--iden-split",
    metavar="FILE",
    help="VoxCeleb1's iden_split.txt (SID)",
    mini="VoxCeleb1/iden_split.txt",
)


def check_split_file(root: Path, path: Path) -> None:
    """Check every line ``1|2|3 id10001/VIDEO/00001.wav`` of a split list.

    Raises:
        UserError: the list is unreadable or malformed, misses a set, or names audio that is not in ``root``.
    """
    from tqdm import tqdm

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


def _plan(corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path) -> Iterable[Experiment]:
    """A closed set of speakers: the hidden test set trains a model of its own, on hidden speakers."""
    places = {}
    if Split.PUBLIC in splits:
        places[Split.PUBLIC] = ("sid", corpora.path(VOXCELEB1), corpora.path(IDEN_SPLIT))
    if Split.HIDDEN in splits:
        places[Split.HIDDEN] = ("sid-hidden", *_hidden(corpora))
    for split, (name, root, split_file) in places.items():
        check_split_file(root, split_file)
        config = filled_in(template, "datarc", {"file_path": root, "meta_data": split_file})
        yield Experiment(name=name, task="sid", config=config, tests=(TestSet(name="test", split=split),))


def _hidden(corpora: Corpora) -> tuple[Path, Path]:
    """Root and split list of the hidden speakers; the list lies in the root, or in ``--hidden`` itself."""
    names, expected = ("VoxCeleb1-hidden", "VoxCeleb1"), "VoxCeleb1-hidden/ or VoxCeleb1/ with */wav/idNNNNN/"
    root, given = corpora.hidden(names, lambda root: any(root.glob("*/wav/id*")), expected), corpora.get(HIDDEN)
    for place in (root, given):
        if (place / "iden_split.txt").is_file():
            return root, place / "iden_split.txt"
    raise UserError(f"--hidden {given}: {root} has no iden_split.txt, nor is there one beside it")


TASK = Task(
    name="sid",
    downstream="voxceleb1",
    inputs=(VOXCELEB1, IDEN_SPLIT),
    hidden="VoxCeleb1-hidden",
    hidden_trains=True,
    plan=_plan,
    by_default=True,
)
