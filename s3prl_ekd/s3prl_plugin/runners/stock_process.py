"""Runs s3prl's unmodified scripts in this process: what they need before, what they leave behind, how they end."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import linecache
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from s3prl_ekd.command_line import OneLineParser
from s3prl_ekd.errors import UserError, one_line, without_traceback
from s3prl_ekd.files import atomic_path
from s3prl_ekd.processes import run_command
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.s3prl_compat.patches import replaced


def as_command(run: Callable[[Sequence[str]], None], prog: str, argv: Sequence[str] | None) -> int:
    """Run a wrapper as a command, see :func:`~s3prl_ekd.processes.run_command`."""
    return run_command(
        prog,
        lambda: run(sys.argv[1:] if argv is None else argv),
        go_on="training goes on from its last checkpoint with the same command and -a",
        silent=os.environ.get("RANK", "0") != "0",  # under torchrun all processes fail alike
    )


@contextlib.contextmanager
def stock_process(argv: Sequence[str]) -> Iterator[None]:
    """The surroundings of a script: ``sys.argv``, and everything put back that s3prl's scripts change for good.

    Checkpoints are written under another name first, so that a killed run leaves none that is half written.

    Raises:
        UserError: s3prl has failed before the first step, with whatever error, or so has something that it called.
    """
    import torch

    stock_save, stock_isinstance = torch.save, isinstance  # s3prl wraps isinstance
    hub_folder = torch.hub.get_dir()

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not stock_isinstance(f, str | os.PathLike):
            stock_save(obj, f, *args, **kwargs)
            return
        with atomic_path(f) as temporary:
            stock_save(obj, temporary, *args, **kwargs)

    try:
        with (
            replaced(sys, argv=list(argv)),
            replaced(torch, save=save),
            replaced(builtins, isinstance=stock_isinstance),
            replaced(argparse.ArgumentParser, error=OneLineParser.error),
            patches.quiet(),
        ):
            yield
    except BaseException as error:
        close_event_files(error.__traceback__)
        if _is_said_already(error) or _has_made_steps(error.__traceback__):
            raise
        raise UserError(_where_it_stopped(error)) from error
    finally:
        if torch.hub.get_dir() != hub_folder:
            torch.hub.set_dir(hub_folder)


def run_module(name: str, argv: Sequence[str]) -> None:
    """``python -m name argv...`` in this process."""
    with stock_process([name, *argv]):
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def _is_said_already(error: BaseException) -> bool:
    """Whether :func:`~s3prl_ekd.processes.run_command` says it in one line, or it is no failure."""
    of_a_file = isinstance(error, OSError) and error.filename is not None
    return of_a_file or isinstance(error, UserError) or not isinstance(error, Exception)


def _has_made_steps(trace: TracebackType | None) -> bool:
    """Whether a runner's progress bar has moved: what fails then is more than a setting and deserves its traceback."""
    for frame, _ in traceback.walk_tb(trace):
        if "pbar" in frame.f_locals and frame.f_locals["pbar"].n > (frame.f_locals.get("init_step") or 0):
            return True
    return False


def _where_it_stopped(error: BaseException) -> str:
    """What s3prl makes of a wrong setting, and the line of it that failed, which often names the setting."""
    said = one_line(without_traceback(str(error)))
    text = f"s3prl stopped with {type(error).__name__}{': ' if said else ''}{said}"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if "s3prl" in file.parts:
            text += f" ({'/'.join(file.parts[-3:])}, line {line}: {linecache.getline(str(file), line).strip()})"
            break
    return f"{text}; python -X dev -m ... shows the traceback"


def close_event_files(trace: TracebackType | None) -> None:
    """Close the TensorBoard writers of a run that an error has ended.

    They would be closed at exit, where Python 3.12 starts no more threads, with a traceback of their own.
    """
    for frame, _ in traceback.walk_tb(trace):
        for holder in (frame.f_locals.get("logger"), getattr(frame.f_locals.get("self"), "logger", None)):
            if holder is not None and type(holder).__name__ == "SummaryWriter":
                holder.close()


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
    """Remove a run's folder that holds nothing but the settings and an event file."""
    if not folder.is_dir():
        return
    files = list(folder.iterdir())
    if all(file.is_file() and re.search(r"\.yaml$|^events\.out\.", file.name) for file in files):
        for file in files:
            file.unlink()
        folder.rmdir()
