"""Reading pickled files of PyTorch without running what is in them."""

from __future__ import annotations

import argparse
import os
import zipfile
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


def load_pickle_safely(path: str | Path, *, mapped: bool = False) -> Any:
    """``torch.load`` with ``weights_only=True``, allowing what s3prl's runners store beside tensors: their options as
    ``argparse.Namespace`` and the schedule objects of the ``*_with_schedule`` optimizers (as empty stand-ins, if s3prl
    is not loaded).

    Args:
        path: the file.
        mapped: leave the tensors in the file where its format allows it, so that only what is used takes memory.

    Raises:
        UserError: the file is missing, damaged, no checkpoint (the message says what it is), or holds objects.
    """
    # Only what is not allowed yet: at the end of the block torch takes all of these off its list, whoever added them.
    known = {_full_name(item) for item in torch.serialization.get_safe_globals() if isinstance(item, type)}
    allowed: list[Any] = [item for item in (argparse.Namespace, *_SCHEDULES) if _full_name(item) not in known]
    try:
        with torch.serialization.safe_globals([*allowed]):
            mmap = mapped and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a file of any other kind makes the unpickler raise nearly anything
        if isinstance(error, OSError) and not (Path(path).is_file() and os.access(path, os.R_OK)):
            raise UserError(f"{path}: {error.strerror or error}") from error
        objects = [name for name in objects_in(path) if name not in known | {_full_name(item) for item in allowed}]
        if objects:
            raise UserError(f"{path}: {_refused_objects(objects)}") from error
        problem = problem_of(path, pickled=True) or f"{type(error).__name__} while reading it; {again(path)}"
        raise UserError(f"{path}: not a checkpoint, or a damaged one: {problem}") from error


def _refused_objects(names: list[str]) -> str:
    """Why a pickle is not loaded that would import these classes and functions."""
    fairseq = [name for name in names if name.split(".")[0] in ("fairseq", "omegaconf")]
    if fairseq:
        return (
            f"a fairseq checkpoint that holds Python objects ({fairseq[0]}), so it is not loaded (it could run code);"
            f" {CONVERT_FAIRSEQ} for s3prl's hubert_local, or take the same model from s3prl or the Hugging Face hub"
        )
    return (
        f"holds Python objects besides tensors and plain values ({names[0]}), so it is not loaded (it could run code);"
        " it is no checkpoint of this package"
    )
