"""For a recipe: what its run's folder or its cache keeps is read, the rest is found."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from s3prl_ekd.calibration import groups, picture, speech
from s3prl_ekd.calibration.groups import FoundGroups
from s3prl_ekd.calibration.similarity import SIMILARITIES
from s3prl_ekd.config.base import Difference, differences, say_differences
from s3prl_ekd.config.recipe import LayerClusters, TeacherConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.devices import default_device
from s3prl_ekd.errors import UserError
from s3prl_ekd.teachers import load_teacher

logger = logging.getLogger(__name__)

FREE = frozenset({"weight", "own_forward", "units", "principal_components"})
"""Settings of a teacher that its groups of layers do not depend on; on all others, new ones included, they do."""

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Calibration:
    """What was found for a recipe."""

    config: RunConfig
    """The recipe with plain groups."""
    found: tuple[FoundGroups, ...] = ()
    """What no folder keeps yet."""

    def write(self, folder: Path) -> None:
        """Keep what was found, and draw it.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            for one in self.found:
                one.write(folder)
                if importlib.util.find_spec("matplotlib") is not None:
                    picture.plot(one, groups.file_of(folder, one.teacher.name, ".png"))
                else:
                    logger.warning("no picture of %s's layers, since matplotlib is not installed", one.teacher.name)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def calibrate(
    config: RunConfig, folder: Path | None = None, *, device: str | None = None, free: Collection[str] = ()
) -> Calibration:
    """Replace ``layers: {clusters: ...}`` of all teachers by plain groups.

    Args:
        config: the recipe.
        folder: what it keeps for the same teachers and speech is taken; None: all is found.
        device: where the teachers run; None: as the recipe's ``trainer.accelerator``.
        free: ``{"speech"}``: what was found on other speech is taken, too.

    Raises:
        UserError: a teacher cannot be loaded or has fewer layers than there are to be groups; the data cannot be read.
    """
    kept, found = [], []
    for entry in _pending(config):
        stored = groups.read(folder, entry.name) if folder is not None else None
        if stored is not None and not _changed(stored, entry, config, free):
            kept.append(stored)
        else:
            found.append(_find(config, entry, device or default_device(config.trainer.accelerator)))
    return Calibration(_resolved(config, kept + found), tuple(found))


def calibrated(config: RunConfig, *, resume: bool, first: bool) -> RunConfig:
    """The recipe of a run with plain groups, which are found once and kept in the run's folder, or are the cache's.

    Args:
        config: the recipe.
        resume: whether the run goes on, so that what its folder keeps must be for this recipe.
        first: whether this is the first of all processes: it finds them, the others wait and read.

    Raises:
        UserError: see :func:`calibrate`; or the run's folder or the cache keeps groups for other settings.
    """
    pending, folder = _pending(config), Path(config.output)
    if not pending:
        return config
    if config.targets.cache is not None:
        return _resolved(config, [_of_cache(config, entry, Path(config.targets.cache)) for entry in pending])
    if not first:
        return _resolved(config, [_wait(config, entry, folder) for entry in pending])
    if resume:
        for entry in pending:
            _require_same(config, entry, folder)
    calibration = calibrate(config, folder)
    calibration.write(folder)
    return calibration.config


def _pending(config: RunConfig) -> list[TeacherConfig]:
    """The teachers whose groups of layers are to be found."""
    return [teacher for teacher in config.teachers if isinstance(teacher.layers, LayerClusters)]


def _resolved(config: RunConfig, found: Iterable[FoundGroups]) -> RunConfig:
    """The recipe with plain groups."""
    plain = {one.teacher.name: one.groups for one in found}
    teachers = (replace(one, layers=plain[one.name]) if one.name in plain else one for one in config.teachers)
    return replace(config, teachers=tuple(teachers))


def _changed(
    stored: FoundGroups, entry: TeacherConfig, config: RunConfig, free: Collection[str] = ()
) -> list[Difference]:
    """The settings that were others when groups were found."""
    before = {"teacher": stored.teacher, "speech": stored.speech}
    now = {"teacher": entry, "speech": speech.identity(config)}
    return differences(before, now, {*free, *(f"teacher.{name}" for name in FREE)})


def _require_same(config: RunConfig, entry: TeacherConfig, folder: Path) -> None:
    """Check that groups in the folder of a run that is resumed are those of its recipe."""
    stored = groups.read(folder, entry.name)
    changed = _changed(stored, entry, config) if stored is not None else []
    if changed:
        raise UserError(
            f"cannot resume: {groups.file_of(folder, entry.name)} was found with other settings"
            f" ({say_differences(changed)}); give the recipe that the run was started with, or another output for a new"
            " run"
        )


def _of_cache(config: RunConfig, entry: TeacherConfig, folder: Path) -> FoundGroups:
    """The groups that a cache's targets were made of."""
    stored = groups.read(folder, entry.name)
    if stored is None:
        raise UserError(
            f"targets.cache: {folder} keeps no groups of layers of teacher {entry.name!r}; name those that it was made"
            " with under layers, or make a cache with this recipe (`s3prl-ekd cache-targets`)"
        )
    changed = _changed(stored, entry, config, {"speech"})
    if changed:
        said = say_differences(changed, "{name}: {before!r} in the cache, {now!r} in the recipe")
        raise UserError(f"targets.cache: {folder} keeps groups of layers that were found otherwise ({said})")
    return stored


def _wait(config: RunConfig, entry: TeacherConfig, folder: Path) -> FoundGroups:
    """The groups that the first process finds."""
    end = time.monotonic() + config.data.timeout_seconds
    while time.monotonic() < end:
        stored = groups.read(folder, entry.name)
        if stored is not None and not _changed(stored, entry, config):
            return stored
        time.sleep(_POLL_SECONDS)
    raise UserError(
        f"{groups.file_of(folder, entry.name)}: the first process has not written it in {config.data.timeout_seconds:g}"
        " s (data.timeout_seconds); see its messages, and that all processes see the same folder"
    )


def _find(config: RunConfig, entry: TeacherConfig, device: str) -> FoundGroups:
    asked = groups.asked(entry)
    # Only a loaded model says how many layers it has; what it was not asked for it has let go of by then.
    depth = load_teacher(replace(entry, layers=(0,), units=None)).num_hidden_layers
    groups.require_enough(entry, depth + 1)
    teacher = load_teacher(replace(entry, layers=tuple(range(depth + 1)), units=None)).to(device)
    similarity, utterances = SIMILARITIES[asked.similarity](), 0
    for states in speech.hidden_states(config, entry, teacher, asked.utterances, "comparing the layers of"):
        similarity.add(states)
        utterances += 1
    matrix = similarity.matrix()
    groups.require_comparable(entry.name, matrix)
    found = groups.group(matrix, asked.clusters, asked.linkage)
    logger.info(
        "teacher %s: layers %s, found on %d utterances (%d frames)",
        entry.name, groups.line(found), utterances, similarity.frames,
    )  # fmt: skip
    rows = tuple(map(tuple, matrix.tolist()))
    return FoundGroups(entry, found, rows, similarity.frames, speech.identity(config))
