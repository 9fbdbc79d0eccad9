"""The distortions of the student's input: one file for each, with its settings and what it does."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from s3prl_ekd.audio.distortions.base import Distortion
from s3prl_ekd.audio.distortions.gaussian_noise import GaussianNoiseConfig
from s3prl_ekd.audio.distortions.noise import NoiseConfig
from s3prl_ekd.audio.distortions.reverberation import ReverberationConfig
from s3prl_ekd.config.base import Config, Seed


class TeacherInput(enum.StrEnum):
    """What the teachers hear while the student hears distorted speech."""

    CLEAN = "clean"
    DISTORTED = "distorted"


@dataclass(frozen=True, kw_only=True)
class DistortionConfig(Config):
    """What is done to the student's input, in the order of the fields below; a field's name is the recipe's key."""

    teacher_input: TeacherInput = TeacherInput.CLEAN
    """Whether the teachers hear the clean or the same distorted wave."""
    seed: Seed = 0
    """Seed of all random draws; each depends on it, the epoch and the utterance alone."""
    reverberation: ReverberationConfig = field(default_factory=ReverberationConfig)
    """Reverberation."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Recorded noise."""
    gaussian_noise: GaussianNoiseConfig = field(default_factory=GaussianNoiseConfig)
    """White noise."""

    @property
    def active(self) -> dict[str, Distortion]:
        """The distortions that an utterance may get, by name, in the order in which they are applied."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: one for name, one in values.items() if isinstance(one, Distortion) and one.probability > 0}
