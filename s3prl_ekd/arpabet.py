"""espeak-ng's American English phonemes in the ARPAbet of LibriSpeech's phoneme lexicon."""

from __future__ import annotations

from s3prl_ekd.audio.text import Pronunciation
from s3prl_ekd.errors import UserError
from s3prl_ekd.espeak import Espeak

SILENCE = "SIL"
_VOWELS = frozenset(("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"))

# espeak's mnemonic without its stress mark -> ARPAbet without stress. A phone of two parts (an r-coloured vowel)
# becomes two; an empty tuple belongs to the phone before it (the glide espeak puts between two vowels).
_ARPABET: dict[str, tuple[str, ...]] = {
    "@": ("AH",), "@2": ("AH",), "a#": ("AH",), "V": ("AH",), "@L": ("AH", "L"), "3": ("ER",), "3:": ("ER",),
    "a": ("AE",), "aa": ("AE",), "0": ("AA",), "A:": ("AA",), "A@": ("AA", "R"), "O": ("AO",), "O:": ("AO",),
    "O2": ("AO",), "O@": ("AO", "R"), "o@": ("AO", "R"), "aU": ("AW",), "aI": ("AY",), "E": ("EH",),
    "e@": ("EH", "R"), "eI": ("EY",), "I": ("IH",), "I2": ("IH",), "I#": ("IH",), "i@3": ("IH", "R"), "i@": ("IY",),
    "i": ("IY",), "i:": ("IY",), "oU": ("OW",), "OI": ("OY",), "U": ("UH",), "u:": ("UW",), "U@": ("UH", "R"),
    "b": ("B",), "tS": ("CH",), "d": ("D",), "D": ("DH",), "f": ("F",), "g": ("G",), "h": ("HH",), "dZ": ("JH",),
    "k": ("K",), "l": ("L",), "m": ("M",), "n": ("N",), "N": ("NG",), "p": ("P",), "r": ("R",), "r-": ("R",),
    "s": ("S",), "S": ("SH",), "t": ("T",), "t#": ("T",), "T": ("TH",), "v": ("V",), "w": ("W",), "j": ("Y",),
    "z": ("Z",), "Z": ("ZH",), "@-": ("AH",), "aI3": ("AY", "ER"), "aI@": ("AY", "AH"), "t2": ("T",), "?": ("T",),
    "n-": ("AH", "N"), ";": (), "_": (SILENCE,), "_:": (SILENCE,),
}  # fmt: skip

_STRESS = {"'": "1", ",": "2"}


class MispronouncedError(UserError):
    """espeak says something that the table of phones or the lexicon does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"this espeak-ng says {what}; the mini corpus needs version 1.52 (espeakng-loader 0.2.4)")


def pronounce(espeak: Espeak, word: str) -> Pronunciation:
    """The phones of ``word``, as espeak says it alone.

    Raises:
        MispronouncedError: it has a sound that ARPAbet lacks.
    """
    speech = espeak.speak(word, variant="", words_per_minute=150, seed=0)
    phones = (phone for mnemonic, _ in speech.phonemes for phone in to_arpabet(mnemonic))
    return tuple(phone for phone in phones if phone != SILENCE)


def to_arpabet(mnemonic: str) -> tuple[str, ...]:
    """The ARPAbet phones of one espeak phoneme event: ``"'O@"`` -> ``("AO1", "R")``.

    Raises:
        MispronouncedError: the phoneme is not of espeak's American English.
    """
    name = mnemonic.lstrip("',")
    if name not in _ARPABET:
        raise MispronouncedError(f"the unknown phoneme {name!r}")
    phones = _ARPABET[name]
    stresses = (_STRESS.get(mnemonic[:1], "0"), "0")  # the second vowel of "fire" has none
    return tuple(phone + stress if phone in _VOWELS else phone for phone, stress in zip(phones, stresses, strict=False))


def is_vowel(phone: str) -> bool:
    """Whether ``phone`` (with or without its stress digit) is a vowel."""
    return phone.rstrip("012") in _VOWELS
