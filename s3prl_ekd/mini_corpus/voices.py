"""Who speaks and how: random speakers and the prosody of four emotions, as espeak voice variants."""

from __future__ import annotations

import random
from dataclasses import dataclass

_FORMANTS = 6  # espeak's formants 0-5 are audible below 8 kHz


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """What stays the same in everything one person says."""

    female: bool
    pitch: float
    """Lowest pitch of a neutral sentence in Hz."""
    span: float
    """Highest over lowest pitch of a neutral sentence."""
    rate: float
    """Words per minute."""
    frequencies: tuple[int, ...]
    """Formant frequencies in percent of espeak's own voice: the length and shape of the vocal tract."""
    strengths: tuple[int, ...]
    """Formant heights in percent."""
    widths: tuple[int, ...]
    """Formant bandwidths in percent."""
    roughness: int
    """Irregularity of the pitch periods, 0-7."""
    flutter: int
    """Slow trembling of the pitch."""
    breath: int
    """Breath noise in each formant."""
    consonants: int
    """Strength of consonants in percent."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one sentence is said, relative to the speaker's neutral voice."""

    pitch: float = 1.0
    span: float = 1.0
    rate: float = 1.0
    gain_db: float = 0.0
    brightness: float = 1.0
    """Factor on the strength of formants 3 and above."""
    roughness: int = 0
    breath: int = 0


def draw_speaker(rng: random.Random, *, female: bool) -> Speaker:
    """A random speaker."""
    tract = rng.uniform(106, 123) if female else rng.uniform(91, 107)
    return Speaker(
        female=female,
        pitch=rng.uniform(140, 215) if female else rng.uniform(72, 125),
        span=rng.uniform(1.3, 1.7),
        rate=rng.uniform(130, 180),
        frequencies=tuple(round(tract * rng.uniform(0.96, 1.04)) for _ in range(_FORMANTS)),
        strengths=tuple(round(rng.uniform(75, 125)) for _ in range(_FORMANTS)),
        widths=tuple(round(rng.uniform(85, 150)) for _ in range(_FORMANTS)),
        roughness=rng.randint(0, 3),
        flutter=rng.randint(1, 8),
        breath=rng.choice((0, 0, 1, 2, 3)),
        consonants=round(rng.uniform(80, 125)),
    )


# Centre of each emotion. Takes scatter around it widely enough that emotions overlap.
_EMOTIONS: dict[str, Style] = {
    "neu": Style(),
    "hap": Style(pitch=1.12, span=1.3, rate=1.05, gain_db=1.5, brightness=1.1),
    "ang": Style(pitch=1.06, span=1.2, rate=1.12, gain_db=3.5, brightness=1.35, roughness=2),
    "sad": Style(pitch=0.93, span=0.78, rate=0.86, gain_db=-3.0, brightness=0.75, breath=2),
}
EMOTIONS: tuple[str, ...] = tuple(_EMOTIONS)
"""IEMOCAP's four labels as s3prl names them, in the order of their class numbers."""


def draw_style(rng: random.Random, emotion: str = "neu") -> Style:
    """One take of ``emotion``."""
    centre = _EMOTIONS[emotion]
    return Style(
        pitch=centre.pitch * rng.gauss(1.0, 0.06),
        span=centre.span * rng.gauss(1.0, 0.10),
        rate=centre.rate * rng.gauss(1.0, 0.06),
        gain_db=centre.gain_db + rng.gauss(0.0, 2.0),
        brightness=centre.brightness * rng.gauss(1.0, 0.12),
        roughness=rng.randint(0, centre.roughness),
        breath=rng.randint(0, centre.breath),
    )


def words_per_minute(speaker: Speaker, style: Style) -> int:
    """The speaking rate for espeak, within what stays intelligible."""
    return round(min(max(speaker.rate * style.rate, 95), 240))


def variant(speaker: Speaker, style: Style) -> str:
    """The lines of an espeak voice variant file."""
    low = speaker.pitch * style.pitch
    high = low * max(1.0 + (speaker.span - 1.0) * style.span, 1.05)
    lines = [
        f"pitch {low:.0f} {high:.0f}",
        f"roughness {min(speaker.roughness + style.roughness, 7)}",
        f"flutter {speaker.flutter}",
        f"consonants {speaker.consonants} {speaker.consonants}",
    ]
    breath = speaker.breath + style.breath
    if breath:
        lines.append("breath " + " ".join([str(breath)] * 8))
    for index in range(_FORMANTS):
        strength = speaker.strengths[index] * (style.brightness if index >= 3 else 1.0)
        lines.append(f"formant {index} {speaker.frequencies[index]} {strength:.0f} {speaker.widths[index]}")
    return "\n".join(lines)
