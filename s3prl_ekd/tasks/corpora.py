"""Where the corpora of the tasks are: the mini corpus in one folder, or the real ones wherever they lie."""

from __future__ import annotations

import argparse
import enum
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError


class Split(enum.StrEnum):
    """Which test sets judge: those of the corpora, or ones that share neither speakers nor sentences with them."""

    PUBLIC = "public"
    HIDDEN = "hidden"


@dataclass(frozen=True, kw_only=True)
class Input:
    """A folder, file or choice that tasks read, given by an option of ``s3prl-ekd superb`` or found in the mini corpus.

    Several tasks may read one: each of them names the same object.
    """

    name: str
    """Its name in :class:`Corpora` and in the settings of results."""
    option: str = ""
    """The option, such as ``--librispeech``; empty: only the mini corpus has it."""
    metavar: str = "DIR"
    """What the option takes, for its help; empty: nothing, it is a switch."""
    many: bool = False
    """Whether the option may be repeated."""
    help: str = ""
    """What it is."""
    hint: str = ""
    """What is said of it where it is missing."""
    instead: Input | None = None
    """Another one that will do."""
    mini: str | None = None
    """Its place below the folder of the mini corpus; None: the mini corpus does not need it."""

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Let ``parser`` know the option, if there is one."""
        how: dict[str, Any] = {"type": Path, "metavar": self.metavar} if self.metavar else {"action": "store_true"}
        if self.many:
            how |= {"action": "append", "default": []}
        if self.option:
            parser.add_argument(self.option, dest=self.name, help=self.help, **how)


HIDDEN = Input(
    name="hidden",
    option="--hidden",
    help="hidden test sets, laid out as in the mini corpus or as the originals",
    mini="",
)
"""The folder of all hidden test sets."""


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """What tasks read: named one by one, or found in the mini corpus."""

    recipes: str
    """Which downstream configurations fit: ``mini`` or ``real`` (folders of ``recipes/downstream``)."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Path, paths or choice by :attr:`Input.name`; only a task that needs an input asks for it."""
    folder: Path | None = None
    """The mini corpus; nothing else needs to be given then."""
    fingerprint: str = ""
    """Changes when the audio does; empty where the corpus is named by its folders alone."""

    def get(self, wanted: Input) -> Any:
        """What was given for ``wanted``; None, or its option's default, where nothing was."""
        if self.folder is None or wanted.mini is None:
            return self.given.get(wanted.name, () if wanted.many else None if wanted.metavar else False)
        return (self.folder / wanted.mini,) if wanted.many else self.folder / wanted.mini

    def has(self, wanted: Input) -> bool:
        """Whether ``wanted``, or what will do instead, was given."""
        return bool(self.get(wanted)) or (wanted.instead is not None and self.has(wanted.instead))

    def path(self, wanted: Input) -> Path:
        """The file or folder given for ``wanted``.

        Raises:
            UserError: nothing is there.
        """
        path: Path = self.get(wanted)
        if not path.exists():
            named = f"{wanted.option} {path}".strip()
            hint = "" if self.folder is None else f"; make it with: s3prl-ekd mini-corpus {self.folder}"
            raise UserError(f"{named}: there is no such file or folder{hint}")
        return path

    def hidden(self, folders: tuple[str, ...], fits: Callable[[Path], Any], expected: str) -> Path:
        """The hidden test sets of one corpus: the first of ``folders`` below ``--hidden``, or that one itself.

        Args:
            folders: names that the corpus has, in the mini corpus and as it is distributed.
            fits: says whether a folder is laid out as one of these.
            expected: what ``fits`` looks for, for the message.

        Raises:
            UserError: none of them fits.
        """
        root: Path = self.get(HIDDEN)
        for folder in (*(root / name for name in folders), root):
            if fits(folder):
                return folder
        raise UserError(f"--hidden {root}: expected {expected} there, laid out as the mini corpus or the original")

    def identity(self, wanted: Input) -> Any:
        """A plain value that is another one when the data of ``wanted`` is: of a file, what is in it."""
        value = self.get(wanted)
        return [_identity(one) for one in value] if isinstance(value, tuple) else _identity(value)


def _identity(value: Any) -> Any:
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else str(value)
    return value


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
    return Corpora(recipes="mini", folder=folder, fingerprint=str(description.get("audio_sha256", "")))
