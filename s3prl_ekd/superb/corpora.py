"""Where the corpora of the four tasks are: the mini corpus in one folder, or the real ones wherever they lie."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError
from s3prl_ekd.superb import iemocap

PUBLIC = "public"
HIDDEN = "hidden"


class Split(enum.StrEnum):
    """Which test sets judge: those of the corpora, or ones that share neither speakers nor sentences with them."""

    PUBLIC = PUBLIC
    HIDDEN = HIDDEN


@dataclass(frozen=True, kw_only=True)
class HiddenSets:
    """Test sets that nothing was trained or tuned on, laid out as the mini corpus has them or as the real corpora.

    Each property raises a UserError where its corpus is laid out as neither.
    """

    root: Path
    """Holds ``LibriSpeech/hidden-*/``, ``VoxCeleb1-hidden/`` (with ``iden_split.txt``) and ``IEMOCAP-hidden/`` (with
    ``meta_data/Session1/test_meta_data.json``), or is or holds any of the corpora as they are distributed:
    ``LibriSpeech/test-*/``, ``VoxCeleb1/`` (``iden_split.txt`` in it or beside it), ``IEMOCAP_full_release/``."""

    @property
    def librispeech(self) -> Path:
        """Root of the hidden read speech."""
        return self._find(("LibriSpeech",), _test_splits, "LibriSpeech/hidden-*/ or test-*/SPK/CHAP/*.trans.txt")

    @property
    def librispeech_splits(self) -> tuple[str, ...]:
        """Folders of hidden read speech: ``hidden-*`` or, where there are none, ``test-*``."""
        return _test_splits(self.librispeech)

    @property
    def voxceleb1(self) -> Path:
        """Speech of the hidden speakers."""
        what = "VoxCeleb1-hidden/ or VoxCeleb1/ with */wav/idNNNNN/"
        return self._find(("VoxCeleb1-hidden", "VoxCeleb1"), lambda root: any(root.glob("*/wav/id*")), what)

    @property
    def iden_split(self) -> Path:
        """The split list of the hidden speakers."""
        for folder in (self.voxceleb1, self.root):
            if (folder / "iden_split.txt").is_file():
                return folder / "iden_split.txt"
        raise UserError(f"--hidden {self.root}: {self.voxceleb1} has no iden_split.txt, nor is there one beside it")

    @property
    def iemocap(self) -> Path:
        """Root of the hidden emotional speech."""
        what = (
            "IEMOCAP-hidden/meta_data/Session1/test_meta_data.json or"
            " IEMOCAP_full_release/SessionN/dialog/EmoEvaluation/*.txt"
        )
        names = ("IEMOCAP-hidden", "IEMOCAP_full_release", "IEMOCAP")
        return self._find(names, lambda root: iemocap.has_test_labels(root) or iemocap.sessions(root), what)

    def _find(self, names: tuple[str, ...], fits: Callable[[Path], Any], what: str) -> Path:
        """The first of the folders ``names``, or the root itself, that ``fits``."""
        for folder in (*(self.root / name for name in names), self.root):
            if fits(folder):
                return folder
        raise UserError(f"--hidden {self.root}: expected {what} there, laid out as the mini corpus or the original")


def _test_splits(root: Path) -> tuple[str, ...]:
    for pattern in ("hidden-*", "test-*"):
        found = tuple(sorted(path.name for path in root.glob(pattern) if any(path.glob("*/*/*.trans.txt"))))
        if found:
            return found
    return ()


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """Folders and files of the corpora; None where the user gave none (only a task that needs it asks for it)."""

    recipes: str
    """Which downstream configurations fit: ``mini`` or ``real`` (folders of ``recipes/downstream``)."""
    librispeech: Path | None = None
    """Root with one folder per split (PR, ASR)."""
    librispeech_tests: tuple[str, ...] = ("test-clean",)
    """Public test splits of LibriSpeech."""
    lengths: Path | None = None
    """Folder of ``len_for_bucket`` CSVs; None: they are made."""
    lexicons: tuple[Path, ...] = ()
    """Pronunciation lexicons, in order of precedence."""
    lexicon_fallback: bool = False
    """Whether words that no lexicon has are pronounced after CMUdict and espeak-ng."""
    voxceleb1: Path | None = None
    """Root with ``{dev,test}/wav/idNNNNN/VIDEO/NNNNN.wav`` (SID)."""
    iden_split: Path | None = None
    """VoxCeleb1's list of training, development and test files."""
    iemocap: Path | None = None
    """IEMOCAP_full_release (ER)."""
    iemocap_labels: Path | None = None
    """Folder of ``SessionN/{train,test}_meta_data.json``; None: they are made."""
    folds: tuple[str, ...] = tuple(f"fold{number}" for number in range(1, 6))
    """Folds of ER; fold N tests on session N."""
    hidden: HiddenSets | None = None
    """Hidden test sets."""
    fingerprint: str = ""
    """Changes when the audio does; empty where the corpus is named by its folders alone."""

    def need(self, field: str) -> Path:
        """The path in ``field``, which was given.

        Raises:
            UserError: nothing is there.
        """
        path = getattr(self, field)
        if not path.exists():
            raise UserError(f"--{field.replace('_', '-')} {path}: there is no such file or folder")
        return path


def mini_corpora(folder: Path) -> Corpora:
    """The corpora in a folder written by ``s3prl-ekd mini-corpus``.

    Raises:
        UserError: the folder holds no (finished) mini corpus.
    """
    try:
        description = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no mini corpus (corpus.json); make one with: s3prl-ekd mini-corpus {folder}"
        ) from error
    return Corpora(
        recipes="mini",
        librispeech=folder / "LibriSpeech",
        librispeech_tests=("test-clean", "test-noisy"),
        lengths=folder / "len_for_bucket",
        lexicons=(folder / "lexicon.txt",),
        voxceleb1=folder / "VoxCeleb1",
        iden_split=folder / "VoxCeleb1" / "iden_split.txt",
        iemocap=folder / "IEMOCAP",
        iemocap_labels=folder / "IEMOCAP" / "meta_data",
        folds=("fold1",),
        hidden=HiddenSets(root=folder),
        fingerprint=str(description.get("audio_sha256", "")),
    )
