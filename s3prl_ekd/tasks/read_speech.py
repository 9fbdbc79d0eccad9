"""LibriSpeech as PR and ASR read it: its test sets, the words of its transcripts, the lengths of its files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from s3prl_ekd.audio.text import read_lengths, read_transcripts, write_lengths
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import files_below
from s3prl_ekd.tasks.corpora import HIDDEN, Corpora, Input, Split
from s3prl_ekd.tasks.task import TestSet, in_section

LIBRISPEECH = Input(
    name="librispeech", option="--librispeech", help="LibriSpeech, with train-clean-100 (PR, ASR)", mini="LibriSpeech"
)
HIDDEN_SPLITS = "LibriSpeech/hidden-*"
_PUBLIC_TESTS = {"mini": ("test-clean", "test-noisy"), "real": ("test-clean",)}


def public_tests(corpora: Corpora, splits: frozenset[Split]) -> tuple[str, ...]:
    """Names of the public test splits, if they are asked for."""
    return _PUBLIC_TESTS[corpora.recipes] if Split.PUBLIC in splits else ()


def hidden_tests(corpora: Corpora) -> tuple[Path, tuple[str, ...]]:
    """Root and names of the hidden test splits: ``hidden-*``, or, where there are none, ``test-*``.

    Raises:
        UserError: there are none but the public ones.
    """
    root = corpora.hidden(("LibriSpeech",), _test_splits, f"{HIDDEN_SPLITS}/ or test-*/SPK/CHAP/*.trans.txt")
    known = _PUBLIC_TESTS[corpora.recipes] if root == corpora.get(LIBRISPEECH) else ()
    names = tuple(name for name in _test_splits(root) if name not in known)
    if not names:
        raise UserError(f"--hidden {corpora.get(HIDDEN)}: has no test sets of read speech but the public ones")
    return root, names


def _test_splits(root: Path) -> tuple[str, ...]:
    for pattern in ("hidden-*", "test-*"):
        found = tuple(sorted(path.name for path in root.glob(pattern) if any(path.glob("*/*/*.trans.txt"))))
        if found:
            return found
    return ()


def judged_by(names: Iterable[str], split: Split, section: str, key: str, **more: Path) -> tuple[TestSet, ...]:
    """One test set per name of a folder of read speech.

    Args:
        names: of the folders; a hidden one may be called as a public one, and is shown with ``hidden-`` before it.
        split: which of the two all of them are.
        section: of ``downstream_expert``, for :attr:`TestSet.changes`.
        key: names the folders in this section.
        more: other keys of the section and their values.
    """
    return tuple(
        TestSet(
            name=name if split == Split.PUBLIC or name.startswith("hidden-") else f"hidden-{name}",
            split=split,
            changes=in_section(section, {key: [name], **more}),
        )
        for name in names
    )


def words(root: Path, splits: Sequence[str]) -> set[str]:
    """All words of the transcripts of ``splits``.

    Raises:
        UserError: a split is missing, or has no transcripts.
    """
    found: set[str] = set()
    for split in splits:
        files = files_below(root / split, [".trans.txt"])
        if not files:
            raise UserError(
                f"{root / split}: no transcripts (SPK/CHAP/SPK-CHAP.trans.txt); LibriSpeech's folder is expected in"
                f" {root}, with {', '.join(splits)}"
            )
        for file in files:
            found.update(word for _, line in read_transcripts(file) for word in line)
    return found


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
