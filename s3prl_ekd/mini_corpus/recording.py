"""From a planned recording to samples and phone labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torchaudio
from torch import Tensor

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.arpabet import SILENCE, MispronouncedError, is_vowel, pronounce, to_arpabet
from s3prl_ekd.audio.randomness import integer, keyed_generator, uniform
from s3prl_ekd.audio.text import Pronunciation
from s3prl_ekd.espeak import Espeak
from s3prl_ekd.mini_corpus import sounds, voices

Labels = tuple[tuple[str, int, int], ...]
"""(phone, first sample, sample after the last) without gaps."""
Lexicon = dict[str, Pronunciation]

_SPEECH_LEVEL = -27.0  # dB below full scale
_FLOOR_LEVEL = -66.0
_MARGIN = (0.06, 0.2)  # seconds of silence before and after

_UNSTRESSED: Lexicon = {"the": ("DH", "AH0")}  # alone espeak stresses it, in a sentence never


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One sentence to be said by one person."""

    path: str
    """Path of its audio file below the corpus folder."""
    text: str
    speaker: voices.Speaker
    style: voices.Style
    tilt: float
    """Of the microphone's frequency response, see :func:`~s3prl_ekd.mini_corpus.sounds.microphone`."""
    seed: str


def make_lexicon(espeak: Espeak, words: Iterable[str]) -> Lexicon:
    """The pronunciation of each word (lower case) in a sentence."""
    return {word: _UNSTRESSED.get(word) or pronounce(espeak, word) for word in words}


class Studio:
    """espeak and what turns its sound into 16 kHz recordings."""

    def __init__(self, espeak: Espeak, lexicon: Lexicon) -> None:
        self._espeak = espeak
        self.lexicon = lexicon
        self._resample: dict[int, torchaudio.transforms.Resample] = {}

    def record(self, recording: Recording) -> tuple[Tensor, Labels]:
        """The samples (S,) of ``recording`` at 16 kHz, within -1 and 1, and its phone labels."""
        rng = keyed_generator(recording.seed)
        speech = self._espeak.speak(
            recording.text,
            variant=voices.variant(recording.speaker, recording.style),
            words_per_minute=voices.words_per_minute(recording.speaker, recording.style),
            seed=integer(rng, 2**31 - 1),
        )
        labels = self._label(speech.phonemes, recording.text)
        end = labels[-1][2]
        wave = torch.from_numpy(speech.samples[:end]).float() / 32768
        if speech.rate not in self._resample:
            self._resample[speech.rate] = torchaudio.transforms.Resample(speech.rate, SAMPLE_RATE)
        wave = sounds.microphone(self._resample[speech.rate](wave), recording.tilt)
        wave = sounds.at_level(wave, _SPEECH_LEVEL + recording.style.gain_db)
        before, after = (int(SAMPLE_RATE * uniform(rng, *_MARGIN)) for _ in range(2))
        wave = torch.nn.functional.pad(wave, (before, after))
        wave = wave + 10 ** (_FLOOR_LEVEL / 20) * torch.randn(len(wave), generator=rng)
        scale = SAMPLE_RATE / speech.rate
        moved = [(phone, before + round(a * scale), before + round(b * scale)) for phone, a, b in labels]
        silence = (SILENCE, 0, before), (SILENCE, moved[-1][2], len(wave))
        return sounds.unclipped(wave), (silence[0], *moved, silence[1])

    def _label(self, phonemes: tuple[tuple[str, int], ...], text: str) -> Labels:
        """Labels at espeak's rate from the first sample to the end of the last phone, named as in the lexicon."""
        expected = [phone for word in text.split() for phone in self.lexicon[word]]
        labels: list[tuple[str, int, int]] = []
        named = 0  # of the expected phones
        for phone, start, end in _intervals(phonemes):
            if phone == SILENCE:
                labels.append((SILENCE, start, end))
            elif phone is not None and named < len(expected) and _same_but_reduced(phone, expected[named]):
                labels.append((expected[named], start, end))
                named += 1
            elif labels and (phone is None or (phone == "R" and labels[-1][0].rstrip("012") in ("R", "ER"))):
                labels[-1] = (*labels[-1][:2], end)  # a glide between vowels, the linking r of "four orange"
            else:
                raise MispronouncedError(f"{phone} as phone {named + 1} of {text!r}")
        if named != len(expected):
            raise MispronouncedError(f"{named} phones in {text!r}")
        while labels[-1][0] == SILENCE:
            labels.pop()
        labels[0] = (labels[0][0], 0, labels[0][2])  # the first event comes some samples after the sound begins
        return tuple(labels)


def _intervals(phonemes: tuple[tuple[str, int], ...]) -> Iterator[tuple[str | None, int, int]]:
    """(ARPAbet phone, first sample, sample after the last); no phone where espeak's has no counterpart."""
    for (mnemonic, start), (_, end) in itertools.pairwise(phonemes):
        phones = to_arpabet(mnemonic) or (None,)
        step = (end - start) / len(phones)
        for index, phone in enumerate(phones):
            yield phone, round(start + index * step), round(start + (index + 1) * step)


def _same_but_reduced(spoken: str, expected: str) -> bool:
    """Whether two phones are one, but for a vowel that a sentence reduces or stresses otherwise."""
    return spoken == expected or (is_vowel(spoken) and is_vowel(expected))
