"""Distorted speech for the student: the distortions of a recipe one after the other, each with a chance.

The distorted wave is as long as the clean one and aligned with it, since the targets come from the clean one. Every
draw is keyed on (seed, epoch, utterance).
"""

from __future__ import annotations

from torch import Tensor

from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.audio.randomness import keyed_generator, uniform


class Distorter:
    """Distorts waveforms as a :class:`~s3prl_ekd.audio.distortions.DistortionConfig` says.

    >>> distorter = Distorter(DistortionConfig(gaussian_noise=GaussianNoiseConfig(probability=1.0)))
    >>> distorted = distorter(waveform, epoch=0, utterance="84-121123-0000")  # (S,) -> (S,)

    Raises:
        UserError: a folder is missing or has no audio.
    """

    def __init__(self, config: DistortionConfig) -> None:
        self.seed = config.seed
        self._transforms = [(name, one.probability, one.build()) for name, one in config.active.items()]

    def __call__(self, waveform: Tensor, *, epoch: int, utterance: str) -> Tensor:
        """The distorted copy of ``waveform`` (S,); the same object if chance leaves it alone."""
        for name, probability, transform in self._transforms:
            # Each distortion draws from a stream of its own: changing or adding one leaves the others' draws as they
            # were.
            generator = keyed_generator(self.seed, epoch, utterance, name)
            if uniform(generator, 0, 1) < probability:
                waveform = transform(waveform, generator)
        return waveform
