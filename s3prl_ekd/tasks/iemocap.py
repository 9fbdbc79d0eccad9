"""IEMOCAP's labels as s3prl's ER reads them: four classes, five folds by session."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import write_json

SESSIONS = tuple(f"Session{number}" for number in range(1, 6))
TEST_LABELS = "meta_data/Session1/test_meta_data.json"
"""Where the mini corpus has the labels of its test set; it has no dialog/EmoEvaluation."""
CLASSES = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
"""SUPERB's four classes and their indices; excited speech counts as happy."""
_CLASS_OF = {name: name for name in CLASSES} | {"exc": "hap"}
_LABELS = "dialog/EmoEvaluation/[!.]*.txt"  # without ._Ses01F_impro01.txt and such, which macOS makes and IEMOCAP ships
# [6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5000, 2.5000, 2.5000]
_LINE = re.compile(r"\[[^\]]*\]\t(?P<turn>\S+)\t(?P<emotion>\S+)")


def sessions(root: Path) -> tuple[str, ...]:
    """The sessions in ``root`` that are laid out as IEMOCAP_full_release."""
    return tuple(session for session in SESSIONS if any((root / session).glob(_LABELS)))


def has_labels(root: Path) -> bool:
    """Whether ``root`` is laid out as the mini corpus or as IEMOCAP_full_release."""
    return (root / TEST_LABELS).is_file() or bool(sessions(root))


def session_labels(root: Path, session: str) -> list[dict[str, str]]:
    """The labelled turns of one session, in the order of their names: ``{"path", "label", "speaker"}``.

    Raises:
        UserError: ``root`` is not laid out as IEMOCAP_full_release.
    """
    from tqdm import tqdm

    audio = {path.stem: path for path in sorted((root / session).glob("sentences/wav/*/[!.]*.wav"))}
    files = sorted((root / session).glob(_LABELS))
    if not audio or not files:
        raise UserError(
            f"{root / session}: no sentences/wav/*/*.wav or no dialog/EmoEvaluation/*.txt; {root} must be the folder"
            " IEMOCAP_full_release with Session1 to Session5"
        )
    turns: dict[str, str] = {}
    for file in tqdm(files, desc=f"labels of {session}", unit="file", delay=2):
        text = file.read_text(encoding="utf-8-sig", errors="replace")  # annotators' comments are in Latin-1
        for match in map(_LINE.match, text.splitlines()):
            if match and match["emotion"] in _CLASS_OF and match["turn"] in audio:
                turns[match["turn"]] = _CLASS_OF[match["emotion"]]
    return [
        {"path": audio[turn].relative_to(root).as_posix(), "label": label, "speaker": turn.split("_")[0]}
        for turn, label in sorted(turns.items())
    ]


def write_folds(root: Path, folder: Path) -> Path:
    """Write ``SessionN/{train,test}_meta_data.json`` for the five folds; fold N tests on session N."""
    sessions = {session: session_labels(root, session) for session in SESSIONS}
    for held_out in SESSIONS:
        train = [turn for session in SESSIONS if session != held_out for turn in sessions[session]]
        for name, turns in (("train", train), ("test", sessions[held_out])):
            write_json(folder / held_out / f"{name}_meta_data.json", {"labels": CLASSES, "meta_data": turns})
    return folder


def test_only(root: Path, folder: Path) -> Path:
    """Write a fold that only tests: s3prl opens its training list too, so that one is the test list again.

    Args:
        root: see :func:`has_labels`; of IEMOCAP_full_release all sessions are taken, however many are there.
        folder: where ``Session1/{train,test}_meta_data.json`` are written.

    Raises:
        UserError: the list cannot be read, its classes are others, or ``root`` is laid out as neither.
    """
    if (root / TEST_LABELS).is_file():
        labels = _read_labels(root / TEST_LABELS)
    else:
        turns = [turn for session in sessions(root) for turn in session_labels(root, session)]
        if not turns:
            classes = ", ".join(_CLASS_OF)
            raise UserError(f"{root}: no turn of SessionN/dialog/EmoEvaluation/*.txt is labelled {classes}")
        labels = {"labels": CLASSES, "meta_data": turns}
    for name in ("train", "test"):
        write_json(folder / SESSIONS[0] / f"{name}_meta_data.json", labels)
    return folder


def _read_labels(path: Path) -> dict[str, Any]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): the hidden emotional speech needs it") from error
    if not isinstance(labels, dict) or labels.get("labels") != CLASSES:
        raise UserError(f"{path}: expected the classes {CLASSES} under 'labels'")
    return labels
