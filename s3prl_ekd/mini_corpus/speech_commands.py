"""Single words in the layout of Speech Commands: training with development, and test sets of other people."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from torch import Tensor

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.audio.randomness import keyed_generator, uniform
from s3prl_ekd.mini_corpus import sounds
from s3prl_ekd.mini_corpus.config import MiniCorpusConfig
from s3prl_ekd.mini_corpus.plan import Person
from s3prl_ekd.mini_corpus.recording import Recording
from s3prl_ekd.mini_corpus.voices import draw_style

FOLDER = "SpeechCommands"
"""Its name below the mini corpus; all paths here are below it."""
_KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_OTHERS = ("bird", "cat", "dog", "happy", "house", "tree", "seven", "nine")
WORDS = (*_KEYWORDS, *_OTHERS)
"""All words that are said, in lower case."""
_TRAIN = "speech_commands_v0.01"
_TESTS = {"speech_commands_test_set_v0.01": sounds.NOISES, "hidden": sounds.HIDDEN_NOISES}
_TAKES = 2  # of each keyword by each speaker of a test set
# Speech Commands divides people by a hash of their name: this percentage of them is for development, the next one for
# tests, which s3prl leaves out.
_DEV, _TEST, _REST = range(10), range(10, 20), range(20, 100)


def recordings(config: MiniCorpusConfig) -> Iterator[Recording]:
    """What is said."""
    for size, shares in ((config.train_clean, _REST), (config.dev_clean, _DEV)):
        for index in range(size.speakers):
            person = Person(config.seed, f"{_TRAIN}-{shares.start}", index)
            name = _name(person.rng, shares)
            for word in WORDS:
                yield person.say(f"{_TRAIN}/{word}/{name}_nohash_0.wav", word, draw_style(person.rng))
    for folder in _TESTS:
        for index in range(config.test_clean.speakers):
            person = Person(config.seed, folder, index)
            name = _name(person.rng, _TEST)
            for take in range(_TAKES):
                other = _OTHERS[(index * _TAKES + take) % len(_OTHERS)]
                for word in (*_KEYWORDS, other):
                    path = f"{folder}/{'_unknown_' if word == other else word}/{name}_nohash_{take}.wav"
                    yield person.say(path, word, draw_style(person.rng))


def _name(rng: random.Random, shares: range) -> str:
    """A random name of eight digits whose hash is in ``shares`` (percent)."""
    while True:
        name = f"{rng.getrandbits(32):08x}"
        if int(int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)) in shares:
            return name


def noises(config: MiniCorpusConfig) -> Iterator[tuple[str, Tensor]]:
    """Path and samples (S,) of what is heard where nobody speaks: long noises for training, a second for each test."""
    for name, noise in sounds.NOISES.items():
        wave = noise(config.noise_seconds * SAMPLE_RATE, keyed_generator(config.seed, _TRAIN, name))
        yield f"{_TRAIN}/_background_noise_/{name}.wav", sounds.at_level(wave, -30)
    for folder, kinds in _TESTS.items():
        for number in range(config.test_clean.speakers * _TAKES):
            name = list(kinds)[number % len(kinds)]
            rng = keyed_generator(config.seed, folder, name, number)
            wave = kinds[name](SAMPLE_RATE, rng)
            yield f"{folder}/_silence_/{name}_{number}.wav", sounds.at_level(wave, uniform(rng, -45, -25))
