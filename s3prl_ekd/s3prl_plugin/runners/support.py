"""What both runner wrappers need around s3prl's unmodified scripts: checks before, order after."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from s3prl_ekd.command_line import check_integer
from s3prl_ekd.devices import check_device
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path
from s3prl_ekd.processes import run_command
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.s3prl_plugin.runners import override
from s3prl_ekd.s3prl_plugin.runners.options import Options, Syntax

_log = logging.getLogger(__name__)


def main(run: Callable[[Sequence[str]], None], prog: str, argv: Sequence[str] | None) -> int:
    """Run a wrapper as a command, see :func:`~s3prl_ekd.processes.run_command`."""
    return run_command(
        prog,
        lambda: run(sys.argv[1:] if argv is None else argv),
        go_on="training goes on from its last checkpoint with the same command and -a",
        silent=os.environ.get("RANK", "0") != "0",  # under torchrun all processes fail alike
    )


def check_options(options: Options, syntax: Syntax) -> None:
    """Check what the command line alone shows to be wrong, and write ``-o`` as s3prl reads it.

    Raises:
        UserError: an unknown option, a value that an option cannot have, here or by ``-o args.KEY=VALUE``.
    """
    syntax.check(options)
    if "override" in options:
        options.given["override"] = override.in_python(options.get("override"))
    for name, value in override.arguments(options.get("override")).items():
        if name in syntax.integers and value is not None:
            check_integer(f"-o args.{name}={value}", value, *syntax.integers[name])
        if name == "device":
            check_device(value)
    if "device" in options:
        check_device(options.get("device"))


def show_help(show: Callable[[], None], syntax: Syntax, more: str) -> None:
    """s3prl's own help, and after it what the wrapper adds."""
    try:
        show()
    finally:
        print(f"\n{syntax.prog} is s3prl's runner with these options and, besides:")
        for name, text in syntax.own.items():
            print(f"  --{name.replace('_', '-')}  {text}")
        print(more)


def check_unchanged(options: Options, syntax: Syntax, stored: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse options beside a checkpoint that differ from its own, which s3prl would follow without a word.

    Args:
        options: the command line.
        syntax: of the runner.
        stored: the checkpoint's options.
        names: the options to look at.

    Raises:
        UserError: one differs.
    """
    for name in names:
        if name in options and name in stored and not options.overrides(name):
            given, kept = options.get(name), stored[name]
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
        if checkpoint is not None and path == checkpoint:
            vars(states["Args"]).update(changes)
        return states

    torch.load = load
    try:
        yield
    finally:
        torch.load = original


def newest_checkpoint(where: str, option: str) -> str:
    """The file to resume from: ``where`` itself, or the one in the folder ``where`` that is furthest in training.

    A run that was killed while it wrote can leave a damaged newest file: then the one before is taken, with a warning.
    s3prl itself sorts by the number in the name, but its last checkpoint may be called ``states-epoch-3.ckpt``.

    Raises:
        UserError: nothing there, or nothing readable.
    """
    path = Path(where)
    if path.is_file():
        _read_step(path)
        return where
    if not path.is_dir():
        raise UserError(f"{option} {where}: no such checkpoint file or folder (working folder: {Path.cwd()})")
    candidates = list(path.glob("states-*.ckpt"))
    if not candidates:
        raise UserError(f"{option} {where}: holds no states-*.ckpt to go on from")
    problems, found = [], []
    # Those named after an epoch have their step inside only; of the others the highest readable one is enough.
    numbered = sorted((p for p in candidates if _number(p) is not None), key=_number, reverse=True)
    for group in (numbered, [p for p in candidates if _number(p) is None]):
        for candidate in group:
            try:
                found.append((_read_step(candidate), candidate))
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


def _number(path: Path) -> int | None:
    match = re.fullmatch(r"states-(\d+)\.ckpt", path.name)
    return int(match[1]) if match else None


def _read_step(path: Path) -> int:
    return int(read_states(path)["Step"])


def read_states(path: str | Path) -> dict[str, Any]:
    """What is in a runner's checkpoint.

    Raises:
        UserError: it is another kind of file (said which).
    """
    from s3prl_ekd.weights.kinds import kind_of
    from s3prl_ekd.weights.pickles import load_pickle_safely

    states = load_pickle_safely(path)
    keys = {"Step": int, "Args": (argparse.Namespace, dict)}  # a dict with attributes: see checkout.py
    fits = isinstance(states, dict) and all(isinstance(states.get(key), kind) for key, kind in keys.items())
    if not fits or not hasattr(states["Args"], "__dict__"):
        raise UserError(f"{path}: not a checkpoint that training can go on from, but {kind_of(states)}")
    return states


def check_unused(folder: str | Path) -> None:
    """Refuse to begin a run in the folder of another one, whose checkpoints would mix with its own."""
    if any(Path(folder).glob("states-*.ckpt")):
        raise UserError(f"{folder}: holds a run already; add -a to go on with it, or give another -n or -p")


@contextlib.contextmanager
def stock_process(argv: Sequence[str]) -> Iterator[None]:
    """The surroundings of a script: ``sys.argv``, and everything put back that s3prl's scripts change for good.

    Checkpoints are written under another name first, so that a killed run leaves none that is half written.
    """
    import torch

    kept_argv, kept_isinstance, kept_save = sys.argv, builtins.isinstance, torch.save
    hub_folder = torch.hub.get_dir()

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not kept_isinstance(f, str | os.PathLike):
            kept_save(obj, f, *args, **kwargs)
            return
        with atomic_path(f) as temporary:
            kept_save(obj, temporary, *args, **kwargs)

    sys.argv = list(argv)
    torch.save = save
    try:
        with patches.quiet():
            yield
    except BaseException as error:
        close_event_files(error.__traceback__)
        raise
    finally:
        sys.argv, builtins.isinstance, torch.save = kept_argv, kept_isinstance, kept_save  # s3prl wraps isinstance
        if torch.hub.get_dir() != hub_folder:
            torch.hub.set_dir(hub_folder)


def close_event_files(traceback: TracebackType | None) -> None:
    """Close the TensorBoard writers of a run that an error has ended.

    They would be closed at exit, where Python 3.12 starts no more threads, with a traceback of their own.
    """
    while traceback is not None:
        names = traceback.tb_frame.f_locals
        for writer in (names.get("logger"), getattr(names.get("self"), "logger", None)):
            if type(writer).__name__ == "SummaryWriter":
                writer.close()
        traceback = traceback.tb_next


def run_module(name: str, argv: Sequence[str]) -> None:
    """``python -m name argv...`` in this process."""
    with stock_process([name, *argv]):
        runpy.run_module(name, run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def forget_new_folder(folder: str | Path | None) -> Iterator[None]:
    """If the block fails before it has made anything of worth in a new folder, take that folder away."""
    new = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()] if folder is not None else []
    try:
        yield
    except BaseException:
        if new:
            _remove_if_empty_run(new[0])
        for parent in new[1:]:
            with contextlib.suppress(OSError):  # not empty, or never made
                parent.rmdir()
        raise


def _remove_if_empty_run(folder: Path) -> None:
    """Remove a run's folder that holds but the settings and an event file."""
    if not folder.is_dir():
        return
    files = list(folder.iterdir())
    if all(file.is_file() and re.search(r"\.yaml$|^events\.out\.", file.name) for file in files):
        for file in files:
            file.unlink()
        folder.rmdir()
