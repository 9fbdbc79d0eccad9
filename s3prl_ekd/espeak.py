"""espeak-ng through ctypes: text and a voice in, samples and the position of every phoneme out.

The library keeps state between utterances (phases, noise, flutter) that neither its seed nor its own
re-initialisation resets, so each utterance is spoken by a freshly loaded copy of it: the sound then depends on the
utterance alone, whatever was said before and by whichever process. Loading takes about a millisecond.
"""

from __future__ import annotations

import _ctypes
import ctypes
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s3prl_ekd.errors import UserError

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_PHONEME_EVENTS = 0x0001
_DO_NOT_EXIT = 0x8000
_RATE = 1
_UTF8 = 1
_EVENT_END_OF_LIST = 0
_EVENT_PHONEME = 7

_LANGUAGE = "en-us"
_DATA_FILES = ("phondata", "phonindex", "phontab", "intonations", "en_dict", "lang/gmw/en-US")
_VARIANT = "speaker"


class _Event(ctypes.Structure):
    """espeak_EVENT; its last member is a union of which only the 8 characters of a phoneme's name are used."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What espeak said."""

    samples: np.ndarray
    """(S,) int16 at ``rate``."""
    rate: int
    """Samples per second, 22050."""
    phonemes: tuple[tuple[str, int], ...]
    """espeak's mnemonic (with its stress mark) and first sample of each phoneme, in order."""


class Espeak:
    """A private copy of espeak-ng (library and the data of one language) in a temporary folder.

    Use it as a context manager. Several can live in one process, but only one may speak at a time.

    Raises:
        UserError: the package with espeak-ng is not installed.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "the mini corpus is spoken by espeak-ng, which is not installed; run: pip install 's3prl-ekd[mini]'"
            ) from error
        self._folder = tempfile.TemporaryDirectory(prefix="s3prl-ekd-espeak-")
        root = Path(self._folder.name)
        # A copy of its own also keeps this library apart from one that another package has loaded.
        self._library = str(shutil.copy(espeakng_loader.get_library_path(), root))
        self._data = root / "espeak-ng-data"
        source = Path(espeakng_loader.get_data_path())
        for name in _DATA_FILES:
            (self._data / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, self._data / name)
        self._variant = self._data / "voices" / "!v" / _VARIANT
        self._variant.parent.mkdir(parents=True)
        self._chunks: list[np.ndarray] = []
        self._phonemes: list[tuple[str, int]] = []
        self._callback = _Callback(self._receive)

    def __enter__(self) -> Espeak:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def version(self) -> str:
        """espeak-ng's version, such as ``1.52.0``."""
        library = ctypes.CDLL(self._library)
        library.espeak_Info.restype = ctypes.c_char_p
        try:
            return library.espeak_Info(None).decode().split()[0]
        finally:
            _ctypes.dlclose(library._handle)

    def speak(self, text: str, *, variant: str, words_per_minute: int, seed: int) -> Speech:
        """Say ``text`` in American English.

        Args:
            text: one sentence, or several.
            variant: lines of a voice variant file (pitch, formants, roughness ...).
            words_per_minute: espeak's speaking rate, 80 to 450.
            seed: of the noise in the voice.
        """
        self._variant.write_text(f"language variant\nname {_VARIANT}\n{variant}\n", encoding="ascii")
        self._chunks, self._phonemes = [], []
        library = ctypes.CDLL(self._library)
        try:
            rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(self._data).encode(), _PHONEME_EVENTS | _DO_NOT_EXIT)
            if rate <= 0:
                raise RuntimeError(f"espeak-ng does not start from {self._data}")
            library.espeak_SetSynthCallback(self._callback)
            library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
            ctypes.CDLL(None).srand(ctypes.c_uint(seed))  # the Klatt synthesizer uses the C library's generator
            self._check(library.espeak_SetVoiceByName(f"{_LANGUAGE}+{_VARIANT}".encode()), "voice")
            self._check(library.espeak_SetParameter(_RATE, words_per_minute, 0), "rate")
            data = text.encode()
            self._check(library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None), "synthesis")
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)
        return Speech(samples=np.concatenate(self._chunks), rate=rate, phonemes=tuple(self._phonemes))

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status != 0:
            raise RuntimeError(f"espeak-ng refused the {what} (status {status})")

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END_OF_LIST:
            if events[index].type == _EVENT_PHONEME:
                self._phonemes.append((events[index].name.decode(), events[index].sample))
            index += 1
        return 0
