"""Reading pickled files of PyTorch without running what is in them."""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from s3prl_ekd.errors import UserError
from s3prl_ekd.weights.file_kind import again, objects_in, problem_of

CONVERT_FAIRSEQ = (
    "where fairseq is installed, 'python -m s3prl.upstream.hubert.convert FILE' (or wav2vec2.convert) converts it"
)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# s3prl's schedule classes by both names that they have, depending on the runner; nothing of them is ever used here.
_SCHEDULES = tuple(
    type(name, (), {"__module__": module})
    for module in ("optimizers", "s3prl.optimizers")
    for name in (
        "ConstantLR",
        "WarmupCosineSchedule",
        "WarmupCosineWithHardRestartsSchedule",
        "WarmupCosineWithWarmupRestartsSchedule",
        "WarmupConstantSchedule",
        "WarmupLinearSchedule",
    )
)


class StandIn:
    """An object of a class that is not there: it keeps what the pickle gives it and does nothing.

    Attributes:
        state: what was to be put into the object; None if nothing was.
    """

    state: Any = None

    def __init__(self, *arguments: object) -> None:
        pass

    def __new__(cls, *arguments: object) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


# What fairseq's checkpoints name: its own classes, omegaconf's, and the types of Python's that omegaconf's settings
# mention. In Python 2's names, which torch.save uses.
_FAIRSEQ = re.compile(r"(fairseq|omegaconf)(\.\w+)+")
_TYPES = re.compile(
    r"typing\.\w+|collections\.defaultdict|(__builtin__|builtins)\.(bool|dict|float|int|list|long|str|tuple|unicode)"
)
_PYTHON_3 = {"__builtin__.unicode": "builtins.str", "__builtin__.long": "builtins.int"}


def _stand_ins(names: Iterable[str]) -> list[type[StandIn]]:
    """A class for each of these names in a pickle, by which torch finds it."""
    found = (_PYTHON_3.get(name, name.replace("__builtin__.", "builtins.")).rpartition(".") for name in names)
    return [type(name, (StandIn,), {"__module__": module, "__qualname__": name}) for module, _, name in found]


def load_pickle_safely(path: str | Path, *, mapped: bool = False) -> Any:
    """``torch.load`` with ``weights_only=True``, allowing what s3prl's runners store beside tensors: their options as
    ``argparse.Namespace`` and the schedule objects of the ``*_with_schedule`` optimizers (as empty stand-ins, if s3prl
    is not loaded). Objects of fairseq and omegaconf become a :class:`StandIn` each, whatever is installed.

    Args:
        path: the file.
        mapped: leave the tensors in the file where its format allows it, so that only what is used takes memory.

    Raises:
        UserError: the file is missing, damaged, no checkpoint (the message says what it is), or holds objects.
    """
    # Only what is not allowed yet: at the end of the block torch takes all of these off its list, whoever added them.
    known = {_full_name(item) for item in torch.serialization.get_safe_globals() if isinstance(item, type)}
    allowed: list[Any] = [item for item in (argparse.Namespace, *_SCHEDULES) if _full_name(item) not in known]
    known |= {_full_name(item) for item in allowed}
    try:
        return _load(path, allowed, mapped)
    except Exception as error:  # a file of any other kind makes the unpickler raise nearly anything
        if isinstance(error, OSError) and not (Path(path).is_file() and os.access(path, os.R_OK)):
            raise UserError(f"{path}: {error.strerror or error}") from error
        objects = [name for name in objects_in(path) if name not in known]
        of_fairseq = any(_FAIRSEQ.fullmatch(name) for name in objects)
        harmless = (_FAIRSEQ, _TYPES) if of_fairseq else ()
        others = [name for name in objects if not any(pattern.fullmatch(name) for pattern in harmless)]
        problem: Exception = error
        if objects and not others:
            try:
                return _load(path, [*allowed, *_stand_ins(objects)], mapped)
            except Exception as second:
                problem = second
        elif objects:
            raise UserError(f"{path}: {_refused_objects(others[0], of_fairseq)}") from error
        said = problem_of(path, pickled=True) or f"{type(problem).__name__} while reading it; {again(path)}"
        raise UserError(f"{path}: not a checkpoint, or a damaged one: {said}") from problem


def _load(path: str | Path, allowed: list[Any], mapped: bool) -> Any:
    with torch.serialization.safe_globals(allowed):
        mmap = mapped and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _refused_objects(name: str, of_fairseq: bool) -> str:
    """Why a pickle is not loaded that would import this class or function."""
    refused = f"({name}), so it is not loaded (it could run code)"
    if of_fairseq:
        return f"a fairseq checkpoint that holds objects of others, too {refused}; {CONVERT_FAIRSEQ}"
    return f"holds Python objects besides tensors and plain values {refused}; it is no checkpoint of this package"
