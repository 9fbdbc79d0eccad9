"""Reading training checkpoints as students: one reader per kind, and a name for every other kind."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ekd.config import DistillConfig, StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.keys import from_distiller
from s3prl_ekd.student.s3prl_distiller import student_config

CHECKPOINT_KEY = "EKD_Student"  # the Distiller's state dict in a checkpoint of s3prl's run_pretrain
RECIPE_KEY = "Upstream_Config"  # the recipe beside it, plain values; s3prl's runner hands it back on resume

Contents = tuple[StudentConfig, dict[str, Tensor], dict[str, Tensor] | None]

# Key that gives a checkpoint away -> what it is, for the message; the first that is found counts.
_OTHER_KINDS: dict[str, str] = {
    "Downstream": "a downstream checkpoint of s3prl's run_downstream",
    "Featurizer": "a downstream checkpoint of s3prl's run_downstream",
    "Transformer": "an s3prl Mockingjay / TERA checkpoint",
    "pytorch-lightning_version": "a Lightning checkpoint",
    "model_cfg": "an s3prl-converted HuBERT / wav2vec 2.0 checkpoint (use it as a teacher)",
    "cfg": "a fairseq or WavLM checkpoint (use it as a teacher)",
    "args": "a fairseq checkpoint (use it as a teacher)",
}


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


def load_pickle_safely(path: str | Path) -> Any:
    """``torch.load`` with ``weights_only=True``, allowing what s3prl's runners store beside tensors: their options as
    ``argparse.Namespace`` and the schedule objects of the ``*_with_schedule`` optimizers (as empty stand-ins, if s3prl
    is not loaded).

    Raises:
        UserError: missing, damaged, not a checkpoint, or holding objects that are not plain data.
    """
    # Only what is not allowed yet: torch would take the others off its list, too, at the end of the block.
    known = {_full_name(item) for item in torch.serialization.get_safe_globals() if isinstance(item, type)}
    allowed = [item for item in (argparse.Namespace, *_SCHEDULES) if _full_name(item) not in known]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if Path(path).is_file() and os.access(path, os.R_OK):  # torch seeks to where a whole file would go on
            raise UserError(f"{path}: not a checkpoint, or a damaged one") from error
        raise UserError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a file of any other kind makes the unpickler raise nearly anything
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise UserError(
                f"{path}: holds Python objects besides tensors and plain values, so it is not loaded"
                " (it could run code); it is no checkpoint of this package"
            ) from error
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from error


def read_checkpoint(path: str | Path) -> Contents:
    """Configuration, student weights and head weights (or None) of a training checkpoint.

    Raises:
        UserError: see :func:`load_pickle_safely`; or it is a checkpoint of another kind (said which).
    """
    states = load_pickle_safely(path)
    if isinstance(states, Mapping):
        for key, reader in _READERS.items():
            if key in states:
                try:
                    return reader(states)
                except UserError as error:
                    raise UserError(f"{path}: {error}") from error
                except (AttributeError, KeyError, TypeError) as error:
                    raise UserError(f"{path}: a damaged checkpoint ({type(error).__name__}: {error})") from error
    raise UserError(f"{path}: holds no student, it is {kind_of(states)}")


def read_recipe(path: str | Path) -> DistillConfig | None:
    """What a training checkpoint was distilled with, if it says so."""
    states = load_pickle_safely(path)
    return DistillConfig.from_mapping(states[RECIPE_KEY]) if CHECKPOINT_KEY in states else None


def kind_of(states: Any) -> str:
    """What an unusable checkpoint seems to be, in words."""
    if not isinstance(states, Mapping):
        return f"a pickled {type(states).__name__}"
    for key, kind in _OTHER_KINDS.items():
        if key in states:
            return kind
    return f"a checkpoint with the entries {', '.join(sorted(map(str, states))[:5]) or '(none)'}"


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the student and, under ``heads.``, of the heads, apart and in fp32."""
    heads = {name.removeprefix("heads."): tensor.float() for name, tensor in state.items() if name.startswith("heads.")}
    student = {
        name.removeprefix("student."): tensor.float() for name, tensor in state.items() if not name.startswith("heads.")
    }
    return student, heads


def _read_ours(states: Mapping[str, Any]) -> Contents:
    return (DistillConfig.from_mapping(states[RECIPE_KEY]).student, *_split(states[CHECKPOINT_KEY]))


def _read_s3prl_distiller(states: Mapping[str, Any]) -> Contents:
    return (student_config(states["Config"]["distiller"]), *_split(from_distiller(states["Distiller"])))


_READERS: dict[str, Callable[[Mapping[str, Any]], Contents]] = {
    CHECKPOINT_KEY: _read_ours,
    "Distiller": _read_s3prl_distiller,
}
