"""What all distortions have in common. Nothing here imports torch, since recipes are read without it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from s3prl_ekd.config.base import Config, Decibels, Probability

if TYPE_CHECKING:
    from torch import Generator, Tensor

Transform = Callable[["Tensor", "Generator"], "Tensor"]
"""(waveform (S,) at 16 kHz, source of all random draws) -> another waveform (S,), aligned with the first."""


class Ascending:
    """A range whose first number is not above the second one."""

    def problem(self, value: tuple[float, float]) -> str | None:
        return None if value[0] <= value[1] else f"expected [low, high], found {list(value)}"


SnrRange = Annotated[tuple[Decibels, Decibels], Ascending()]


@dataclass(frozen=True, kw_only=True)
class Distortion(Config, ABC):
    """The settings of one distortion, which know how to apply it."""

    probability: Probability = 0.0
    """Chance that an utterance gets it."""

    @abstractmethod
    def build(self) -> Transform:
        """What is applied to an utterance. Workers get copies of it, so it must be possible to pickle it, as it is with
        a method of the settings.

        Raises:
            UserError: files that it needs are missing.
        """
