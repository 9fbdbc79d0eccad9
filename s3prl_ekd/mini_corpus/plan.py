"""Who says what in which file: the whole corpus as lists of recordings, before anything is spoken."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from s3prl_ekd.mini_corpus.config import MiniCorpusConfig
from s3prl_ekd.mini_corpus.recording import Recording
from s3prl_ekd.mini_corpus.sentences import Pool, draw
from s3prl_ekd.mini_corpus.voices import EMOTIONS, Speaker, Style, draw_speaker, draw_style

_VIDEO_UTTERANCES = 4
_FIRST_SID = 10001  # s3prl numbers VoxCeleb1's speakers from id10001


@dataclass(frozen=True, kw_only=True)
class Part:
    """One set of recordings and what its metadata needs to know."""

    name: str
    recordings: tuple[Recording, ...]
    notes: tuple[Any, ...] = ()
    """One per recording: the split number (SID), the emotion and the speaker's name (ER)."""


def libri_parts(config: MiniCorpusConfig) -> list[Part]:
    """The sets in LibriSpeech's layout that are spoken (the noisy ones are made from two of them)."""
    parts = []
    for split, size, pool, first in (
        ("distil-train", config.distil_train, Pool.TRAIN, 1001),
        ("train-clean", config.train_clean, Pool.TRAIN, 2001),
        ("dev-clean", config.dev_clean, Pool.DEV, 3001),
        ("test-clean", config.test_clean, Pool.TEST, 4001),
        ("hidden-clean", config.hidden_clean, Pool.HIDDEN, 5001),
    ):
        recordings = []
        for speaker in range(size.speakers):
            person = Person(config.seed, split, speaker)
            name, chapter = first + speaker, 100 * first + speaker
            for number in range(size.utterances):
                path = f"LibriSpeech/{split}/{name}/{chapter}/{name}-{chapter}-{number:04d}.flac"
                recordings.append(person.say(path, draw(person.rng, pool), draw_style(person.rng)))
        parts.append(Part(name=split, recordings=tuple(recordings)))
    return parts


def sid_parts(config: MiniCorpusConfig) -> list[Part]:
    """Public and hidden speakers in VoxCeleb1's layout; each video has its own microphone and mood."""
    return [_sid(config, "VoxCeleb1", Pool.TRAIN), _sid(config, "VoxCeleb1-hidden", Pool.HIDDEN)]


def _sid(config: MiniCorpusConfig, root: str, pool: Pool) -> Part:
    recordings, notes = [], []
    for index in range(config.sid_speakers):
        person = Person(config.seed, root, index)
        rng = person.rng
        # As in VoxCeleb1 every speaker lies in one of two folders, which says nothing about the task's split.
        folder = "test" if index >= config.sid_speakers * 4 // 5 else "dev"
        video = 0
        for split, count in ((1, config.sid_train), (2, config.sid_dev), (3, config.sid_test)):
            for first in range(0, count, _VIDEO_UTTERANCES):
                video += 1
                tilt, pitch = rng.uniform(-0.5, 0.5), rng.gauss(1.0, 0.08)
                rate, brightness = rng.gauss(1.0, 0.06), rng.gauss(1.0, 0.15)
                for number in range(first, min(first + _VIDEO_UTTERANCES, count)):
                    path = f"{root}/{folder}/wav/id{_FIRST_SID + index}/video{video:02d}/{number + 1:05d}.wav"
                    own = draw_style(rng)
                    bright = own.brightness * brightness
                    style = replace(own, pitch=own.pitch * pitch, rate=own.rate * rate, brightness=bright)
                    recordings.append(person.say(path, draw(rng, pool, short=True), style, tilt))
                    notes.append(split)
    return Part(name=root, recordings=tuple(recordings), notes=tuple(notes))


def er_parts(config: MiniCorpusConfig) -> list[Part]:
    """Acted emotions in IEMOCAP's layout: every sentence is said in all four, so that words tell nothing."""
    parts = []
    for root, split, size, pool in (
        ("IEMOCAP", "train", config.er_train, Pool.TRAIN),
        ("IEMOCAP", "test", config.er_test, Pool.TEST),
        ("IEMOCAP-hidden", "test", config.er_test, Pool.HIDDEN),
    ):
        recordings, notes = [], []
        for index in range(size.speakers):
            person = Person(config.seed, f"{root}-{split}", index)
            session = 1 if split == "test" else 2 + index // 2 % 4  # as in s3prl's first fold
            name = f"Ses{session:02d}{'F' if person.speaker.female else 'M'}{index + 1:02d}"
            sentence = ""
            for number in range(size.utterances):
                emotion = EMOTIONS[number % len(EMOTIONS)]
                if emotion == EMOTIONS[0]:
                    sentence = draw(person.rng, pool, short=True)
                path = f"{root}/Session{session}/sentences/wav/{name}_impro01/{name}_impro01_{number:03d}.wav"
                recordings.append(person.say(path, sentence, draw_style(person.rng, emotion)))
                notes.append((emotion, name))
        parts.append(Part(name=f"{root}-{split}", recordings=tuple(recordings), notes=tuple(notes)))
    return parts


def babble_recordings(config: MiniCorpusConfig) -> list[Recording]:
    """Sentences of people heard only as babble in noise/; their paths name no files."""
    people = [Person(config.seed, "babble", index) for index in range(8)]
    return [person.say("", draw(person.rng, Pool.TRAIN), draw_style(person.rng)) for person in people]


class Person:
    """A speaker with a stream of random numbers that depends on seed, set and index alone."""

    def __init__(self, seed: int, group: str, index: int) -> None:
        self.key = f"{seed}:{group}:{index}"
        self.rng = random.Random(self.key)
        self.speaker: Speaker = draw_speaker(self.rng, female=index % 2 == 0)
        self.tilt = self.rng.uniform(-0.3, 0.3)
        self.said = 0

    def say(self, path: str, text: str, style: Style, tilt: float | None = None) -> Recording:
        """``tilt``: of the microphone's frequency response, where it is not the speaker's own."""
        self.said += 1
        return Recording(
            path=path,
            text=text,
            speaker=self.speaker,
            style=style,
            tilt=self.tilt if tilt is None else tilt,
            seed=f"{self.key}:{self.said}",
        )
