"""What a run or a cache keeps in its folder, so that it is found once."""

from __future__ import annotations

import time
from pathlib import Path

from s3prl_ekd.calibration import groups, result, speech
from s3prl_ekd.calibration.find import find
from s3prl_ekd.calibration.result import FILE, Calibration
from s3prl_ekd.config.base import say_differences
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.targets import Fits

_POLL_SECONDS = 0.5


def calibrated(config: RunConfig, *, resume: bool, first: bool) -> tuple[RunConfig, Fits | None]:
    """The recipe of a run with plain groups of layers, and its units and components where it has any.

    They are found once and kept in the run's folder. Where its targets are cached, the groups are the cache's, and
    units and components are not needed.

    Args:
        config: the recipe.
        resume: whether the run goes on from a checkpoint, so that what its folder keeps must be there, for this recipe.
        first: whether this is the first of all processes: it finds what there is to find, the others wait for it.

    Raises:
        UserError: see :func:`~s3prl_ekd.calibration.find.find`; or the folder keeps what was found for other settings,
            or has lost what its checkpoints depend on.
    """
    if config.targets.cache is not None:
        return _of_cache(config, Path(config.targets.cache)), None
    if not any(teacher.needs_calibration for teacher in config.teachers):
        return config, None
    folder = Path(config.output)
    if resume:
        _require_not_lost(config, folder)
    if not first:
        return _taken(_wait(config, folder), config)
    kept = result.read(folder)
    changed = kept.changed(config, speech.identity(config)) if kept is not None else []
    if changed and resume:
        raise UserError(
            f"cannot resume: {folder / FILE} was found for other settings ({say_differences(changed)}); give the"
            " recipe that the run was started with, or another output for a new run"
        )
    if kept is None or changed:
        kept = find(config)
        kept.write(folder)
    return _taken(kept, config)


def _require_not_lost(config: RunConfig, folder: Path) -> None:
    """Groups may be found anew, since checkpoints tell which ones they were made with, but not units and components."""
    asking = [one.name for one in config.teachers if one.units is not None or one.principal_components is not None]
    if asking and result.read(folder) is None:
        raise UserError(
            f"cannot resume: {folder / FILE} is missing, and the checkpoints there have learnt the units or components"
            f" of teacher {asking[0]!r} that it kept, which would not be the same if found anew; put it back, or give"
            " another output for a new run"
        )


def _taken(found: Calibration, config: RunConfig) -> tuple[RunConfig, Fits | None]:
    return found.resolve(config), found.fits if found.fits.state() else None


def calibration_of_cache(config: RunConfig, folder: Path, device: str, *, made: bool) -> Calibration:
    """What a cache keeps, on whatever speech it was found, so that speech can be added; found now if it keeps nothing.

    Nothing is written.

    Args:
        config: the recipe.
        folder: of the cache.
        device: where teachers run.
        made: whether there may be targets already.

    Raises:
        UserError: see :func:`~s3prl_ekd.calibration.find.find`; or the cache keeps what was found for another recipe,
            or has lost what its targets depend on.
    """
    if not any(teacher.needs_calibration for teacher in config.teachers):
        return Calibration(config.teachers, {})
    kept = result.read(folder)
    if kept is not None:
        return _same(kept, config, folder)
    if made:
        raise UserError(
            f"{folder / FILE}: missing, and the targets there were made with it, or with another recipe; put it back,"
            " name plain groups of layers, or make a new cache"
        )
    return find(config, device)


def _of_cache(config: RunConfig, folder: Path) -> RunConfig:
    """The recipe with the groups of layers that a cache's targets are made of."""
    asking = [teacher.name for teacher in config.teachers if groups.asked_of(teacher) is not None]
    if not asking:
        return config
    kept = result.read(folder)
    if kept is None:
        raise UserError(
            f"targets.cache: {folder} keeps no groups of layers of teacher {asking[0]!r}; name those that it was made"
            " with under layers, or make a cache with this recipe (`s3prl-ekd cache-targets`)"
        )
    return _same(kept, config, folder).resolve(config)


def _same(kept: Calibration, config: RunConfig, folder: Path) -> Calibration:
    """What a cache keeps, if that is for this recipe."""
    changed = kept.changed(config, kept.speech)
    if changed:
        said = say_differences(changed, "{name}: {before!r} in the cache, {now!r} in the recipe")
        raise UserError(
            f"{folder / FILE} was found for another recipe ({said}); correct the recipe, or make a cache of its own"
            " with `s3prl-ekd cache-targets`"
        )
    return kept


def _wait(config: RunConfig, folder: Path) -> Calibration:
    """What the first process finds."""
    end = time.monotonic() + config.data.timeout_seconds
    while time.monotonic() < end:
        kept = result.read(folder)
        if kept is not None and not kept.changed(config, speech.identity(config)):
            return kept
        time.sleep(_POLL_SECONDS)
    raise UserError(
        f"{folder / FILE}: the first process has not written it in {config.data.timeout_seconds:g} s"
        " (data.timeout_seconds); see its messages, and that all processes see the same folder"
    )
