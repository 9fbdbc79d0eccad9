"""What was found for a recipe, as one file, ``fits.safetensors``, and pictures beside it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from s3prl_ekd.calibration import groups, picture
from s3prl_ekd.calibration.groups import FoundGroups
from s3prl_ekd.config.base import Difference, differences
from s3prl_ekd.config.recipe import TeacherConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import atomic_path
from s3prl_ekd.targets import Fits

logger = logging.getLogger(__name__)

FILE = "fits.safetensors"
"""Its name in the folder of a run or of a cache."""

FREE = frozenset(f"teachers.{name}" for name in ("weight", "own_forward", "units.weight", "units.temperature"))
"""Settings of teachers that nothing here depends on; on all others, new ones included, it does."""

_SIMILARITY = "similarity."


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was found for a recipe, and for which."""

    teachers: tuple[TeacherConfig, ...]
    """The recipe's, as it was given."""
    speech: dict[str, Any]
    """Which speech it was found on, see :func:`s3prl_ekd.calibration.speech.identity`."""
    groups: tuple[FoundGroups, ...] = ()
    """Of the teachers whose ``layers`` ask for them."""
    fits: Fits = field(default_factory=Fits)
    """Of the teachers with units or principal components."""

    def resolve(self, config: RunConfig) -> RunConfig:
        """The recipe with plain groups of layers."""
        return replace(config, teachers=tuple(map(self._resolve, config.teachers)))

    def _resolve(self, entry: TeacherConfig) -> TeacherConfig:
        plain = {one.teacher: one.groups for one in self.groups}
        return replace(entry, layers=plain[entry.name]) if entry.name in plain else entry

    def changed(self, config: RunConfig, speech: dict[str, Any]) -> list[Difference]:
        """The settings that were others when this was found, for a recipe that asks for groups of layers or names the
        same."""
        asking = {entry.name for entry in config.teachers if groups.asked_of(entry) is not None}
        before = tuple(entry if entry.name in asking else self._resolve(entry) for entry in self.teachers)
        now = {"teachers": config.teachers, "speech": speech}
        return differences({"teachers": before, "speech": self.speech}, now, FREE)

    def draw(self, folder: Path) -> None:
        """Write how alike the layers are, as pictures and JSON.

        Raises:
            UserError: the folder cannot be written.
        """
        for one in self.groups:
            with _writing(folder):
                one.write(folder)
            if importlib.util.find_spec("matplotlib") is not None:
                picture.plot(one, groups.file_of(folder, one.teacher, ".png"))
            else:
                logger.warning("no picture of %s's layers, since matplotlib is not installed", one.teacher)

    def write(self, folder: Path) -> None:
        """Keep all in a folder that :func:`read` reads, pictures included; nothing is written where nothing was found.

        Raises:
            UserError: the folder cannot be written.
        """
        if not self.groups and not self.fits.state():
            return
        self.draw(folder)
        with _writing(folder), atomic_path(folder / FILE) as temporary:
            temporary.write_bytes(self._content())

    def _content(self) -> bytes:
        tensors = self.fits.state() | {f"{_SIMILARITY}{one.teacher}": one.similarity for one in self.groups}
        described = {
            "teachers": [teacher.to_mapping() for teacher in self.teachers],
            "speech": self.speech,
            "groups": {one.teacher: one.groups for one in self.groups},
        }
        metadata = {name: json.dumps(value) for name, value in described.items()}
        return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def read(folder: Path) -> Calibration | None:
    """What :meth:`Calibration.write` wrote; None where there is nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            described = {name: json.loads(text) for name, text in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # it is no dict
        teachers = tuple(TeacherConfig.from_saved(one, str(path)) for one in described["teachers"])
        found = []
        for entry in teachers:
            asked = groups.asked_of(entry)
            if asked is not None:
                plain = TeacherConfig.from_mapping(entry.to_mapping() | {"layers": described["groups"][entry.name]})
                found.append(FoundGroups(entry.name, asked, plain.slots, tensors[_SIMILARITY + entry.name]))
        fits = Fits.from_state({name: one for name, one in tensors.items() if not name.startswith(_SIMILARITY)})
        return Calibration(teachers, dict(described["speech"]), tuple(found), fits)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); put a good copy back, or, where there are neither checkpoints"
            " nor targets that were made with it, delete it, and what it keeps is found anew"
        ) from error
