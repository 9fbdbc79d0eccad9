"""Checkpoints of s3prl's runners: the newest of a run, what is in it, and options that must not differ from its own."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_compat.patches import replaced
from s3prl_ekd.s3prl_plugin.runners.options import Options, Syntax

_log = logging.getLogger(__name__)


def check_unchanged(options: Options, syntax: Syntax, stored: Mapping[str, Any], also: tuple[str, ...] = ()) -> None:
    """Refuse options (``syntax.kept``, and ``also``) that differ from the checkpoint's, which s3prl would follow.

    Raises:
        UserError: one differs.
    """
    for name in (*syntax.kept, *also):
        if name in options and name in stored and not options.overrides(name):
            given, kept = options[name], stored[name]
            if str(given) != str(kept):
                option = syntax.spelling(name)
                value = "" if given is True else f" {given}"
                raise UserError(
                    f"{option}{value}: the checkpoint has {kept!r}, and a run keeps that; leave {option} out, or give"
                    f" -o args.{name}={given}"
                )


@contextlib.contextmanager
def changed_args(checkpoint: str | None, changes: Mapping[str, Any]) -> Iterator[None]:
    """While it lasts, the options stored in ``checkpoint`` are read with these ``changes``."""
    import torch

    original = torch.load

    def load(path: Any, *args: Any, **kwargs: Any) -> Any:
        states = original(path, *args, **kwargs)
        if path == checkpoint:
            vars(states["Args"]).update(changes)
        return states

    with replaced(torch, load=load):
        yield


def resolve_resume(options: Options, folder: Path | None) -> None:
    """Name the checkpoint that ``-a`` (in the experiment's ``folder``, None: not named) or ``-e`` goes on from.

    Raises:
        UserError: see :func:`newest_checkpoint`; or options that do not go together.
    """
    if options.pop("auto_resume", False):
        if folder is None:
            raise UserError("-a needs the experiment: give -n NAME or -p FOLDER")
        if any(folder.glob("states-*.ckpt")):
            options["past_exp"] = str(folder)
            options.pop("init_ckpt", None)  # the run has begun with it
    if "past_exp" in options:
        if "init_ckpt" in options:
            raise UserError("-i beside -e: -e takes the weights from its own checkpoint; leave one of the two out")
        options["past_exp"] = newest_checkpoint(options["past_exp"], "-e")


def newest_checkpoint(where: str, option: str) -> str:
    """The file to resume from: ``where`` itself, or the one in the folder ``where`` that is furthest in training.

    A run that was killed while it wrote can leave a damaged newest file: then the one before is taken, with a warning.
    s3prl itself sorts by the number in the name, but its last checkpoint may be called ``states-epoch-3.ckpt``.

    Raises:
        UserError: nothing there, or nothing readable.
    """
    path = Path(where)
    if path.is_file():
        read_states(path)
        return where
    if not path.is_dir():
        raise UserError(f"{option} {where}: no such checkpoint file or folder (working folder: {Path.cwd()})")
    candidates = list(path.glob("states-*.ckpt"))
    if not candidates:
        raise UserError(f"{option} {where}: holds no states-*.ckpt to go on from")
    problems, found = [], []
    # Those named after an epoch have their step inside only; of the others the highest readable one is enough.
    numbered = sorted((p for p in candidates if _number(p) >= 0), key=_number, reverse=True)
    for group in (numbered, [p for p in candidates if _number(p) < 0]):
        for candidate in group:
            try:
                found.append((read_states(candidate)["Step"], candidate))
                if group is numbered:
                    break
            except UserError as error:
                problems.append(str(error))
    if not found:
        raise UserError(f"{option} {where}: no readable checkpoint: {problems[0]}")
    step, newest = max(found)
    for problem in problems:
        _log.warning("%s; going on from %s (step %d)", problem, newest.name, step)
    return str(newest)


def _number(path: Path) -> int:
    """The step in a checkpoint's name; -1 where there is none."""
    match = re.fullmatch(r"states-(\d+)\.ckpt", path.name)
    return int(match[1]) if match else -1


def read_states(path: str | Path) -> dict[str, Any]:
    """What is in a runner's checkpoint.

    Raises:
        UserError: it is another kind of file (said which).
    """
    from s3prl_ekd.weights.kinds import kind_of
    from s3prl_ekd.weights.pickles import load_pickle_safely

    states = load_pickle_safely(path)
    args = states.get("Args") if isinstance(states, dict) and isinstance(states.get("Step"), int) else None
    if not isinstance(args, argparse.Namespace | dict) or not hasattr(args, "__dict__"):  # such a dict: see checkout.py
        raise UserError(f"{path}: not a checkpoint that training can go on from, but {kind_of(states)}")
    return states


def check_unused(folder: str | Path) -> None:
    """Refuse to begin a run in the folder of another one, whose checkpoints would mix with its own."""
    if any(Path(folder).glob("states-*.ckpt")):
        raise UserError(f"{folder}: holds a run already; add -a to go on with it, or give another -n or -p")
