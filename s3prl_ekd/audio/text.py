"""Text files beside recordings: transcripts, lexicons and lists of lengths. Each kind has one reader, here."""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from s3prl_ekd.errors import UserError, nearest, shorten
from s3prl_ekd.files import atomic_path, files_below, read_lines

logger = logging.getLogger(__name__)

_MOST_SAMPLES = 10**12  # of a recording: two years
_UNSTRESSED = 0.1  # share of the vowels that may lack their mark

Pronunciation = tuple[str, ...]
"""Phonemes of one word."""


def read_transcripts(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Every (utterance, words) of a ``SPK-CHAP.trans.txt``: lines ``SPK-CHAP-NNNN WORD WORD ...``.

    Raises:
        UserError: see :func:`~s3prl_ekd.files.read_lines`.
    """
    for _, line in read_lines(path, hint="LibriSpeech keeps each chapter's transcripts there"):
        utterance, *words = line.split()
        yield utterance, words


def read_lexicon(
    files: str | Path | Sequence[str | Path], vocabulary: Collection[str] | None = None
) -> dict[str, Pronunciation]:
    """The first pronunciation of each word in lines ``WORD PH PH ...`` (spaces or a tab; OpenSLR 11's format).

    Args:
        files: the lexicon, or several in order of precedence.
        vocabulary: the phonemes that it may have; None: any. Where a lexicon marks stress, a vowel here and there
            without its mark (``IH``) is the unstressed one (``IH0``), and is warned about.

    Raises:
        UserError: a file is unreadable, or has a line without phonemes or with one outside the vocabulary.
    """
    lexicon: dict[str, Pronunciation] = {}
    known = frozenset(vocabulary or ())
    for path in [files] if isinstance(files, str | Path) else files:
        vowels, unmarked = 0, list[str]()
        for number, line in read_lines(path, hint="a lexicon is a text file of 'WORD PH PH' lines"):
            word, *phonemes = line.split()
            if not phonemes:
                raise UserError(f"lexicon {path}, line {number}: {word!r} has no phonemes")
            for at, phoneme in enumerate(phonemes):
                if phoneme not in known and f"{phoneme}0" in known:
                    unmarked.append(f"line {number}: {phoneme!r}")
                    phonemes[at] = f"{phoneme}0"
                elif vocabulary is not None and phoneme not in known:
                    raise UserError(
                        f"lexicon {path}, line {number}: {phoneme!r} is not one of the {len(known)} phonemes of the"
                        f" vocabulary ({nearest(phoneme, known)})"
                    )
            vowels += sum(phoneme[-1].isdigit() for phoneme in phonemes)
            lexicon.setdefault(word, tuple(phonemes))
        if unmarked:
            share = f"lexicon {path}: {len(unmarked)} of {vowels} vowels have no mark of stress"
            if len(unmarked) > _UNSTRESSED * vowels:  # a lexicon that marks none makes another task of PR
                raise UserError(f"{share} ({unmarked[0]}); take one that marks it, such as OpenSLR 11's")
            logger.warning("%s and are taken for unstressed, the first in %s", share, unmarked[0])
    return lexicon


def read_lengths(path: str | Path) -> list[tuple[str, int]]:
    """Every (path relative to the corpus, samples) of an s3prl ``len_for_bucket`` CSV; none of an empty one.

    Raises:
        UserError: the file is unreadable, lacks the columns file_path and length, or has a length that is none.
    """
    lines = read_lines(path, hint="file_path and sets name this list")
    if not lines:
        return []
    numbers, texts = zip(*lines, strict=True)
    rows = csv.DictReader(texts)
    try:
        columns = rows.fieldnames or []
        if not {"file_path", "length"} <= set(columns):
            for name, mark in (("semicolons", ";"), ("tabs", "\t")):
                if mark in texts[0]:
                    raise UserError(f"{path}: its columns are separated by {name}; save it with commas")
            raise UserError(f"{path}: expected the columns file_path and length (samples), found {', '.join(columns)}")
        return [(row["file_path"], _samples(row["length"])) for row in rows]
    except csv.Error as error:
        raise UserError(f"{path}: no CSV ({error})") from error
    except (TypeError, ValueError) as error:
        line = numbers[rows.line_num - 1]
        raise UserError(f"{path}, line {line}: expected a file_path and its length in samples ({error})") from error


def write_lengths(root: Path, split: str, path: Path) -> list[tuple[str, int]]:
    """Write the ``len_for_bucket`` CSV of one split (s3prl's ``generate_len_for_bucket.py``, longest first).

    Returns:
        What :func:`read_lengths` gives.

    Raises:
        UserError: the split has no audio, or a file that is not audio: results without it would be of another corpus.
    """
    from tqdm import tqdm

    from s3prl_ekd.audio.read import audio_length  # imports torch

    files = files_below(root / split, [".flac"])
    if not files:
        raise UserError(f"{root / split}: no audio (SPK/CHAP/*.flac)")
    rows = [
        (file.relative_to(root).as_posix(), audio_length(file))
        for file in tqdm(files, desc=f"lengths of {split}", unit="file", delay=2)
    ]
    rows.sort(key=lambda row: -row[1])
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("", "file_path", "length", "label"))
        writer.writerows((index, file, samples, "") for index, (file, samples) in enumerate(rows))
    return rows


def read_tsv(path: str | Path) -> tuple[str, list[tuple[str, int]]]:
    """The root folder of fairseq's wav2vec manifest, which is its first line, and every ``path<tab>samples``.

    Raises:
        UserError: the file is unreadable or no such manifest.
    """
    lines = read_lines(path, hint="give fairseq's tsv manifest")
    expected = "expected a root folder, then lines of path<tab>number of samples"
    if not lines:
        raise UserError(f"{path}: empty; {expected}")
    (_, root), *rest = lines
    rows = []
    for number, line in rest:
        name, _, samples = line.partition("\t")
        try:
            rows.append((name, _samples(samples)))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {expected}") from error
    return root.strip(), rows


def _samples(text: str) -> int:
    """``16000``, or ``16000.0`` as pandas writes a column in which a value is missing."""
    value = float(text)
    if not (value.is_integer() and 0 <= value <= _MOST_SAMPLES):
        raise ValueError(f"{shorten(text)!r} is no number of samples")
    return int(value)
