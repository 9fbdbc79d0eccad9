"""Reading training checkpoints as students: one reader per kind, and a name for every other kind."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ekd.config import DistillConfig, StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.file_kind import again, objects_in, problem_of
from s3prl_ekd.student.keys import from_distiller
from s3prl_ekd.student.s3prl_distiller import student_config

CHECKPOINT_KEY = "EKD_Student"  # the Distiller's state dict in a checkpoint of s3prl's run_pretrain
RECIPE_KEY = "Upstream_Config"  # the recipe beside it, plain values; s3prl's runner hands it back on resume

Contents = tuple[StudentConfig, dict[str, Tensor], dict[str, Tensor] | None]

_CONVERT = (
    "where fairseq is installed, 'python -m s3prl.upstream.hubert.convert FILE' (or wav2vec2.convert) converts it"
)
_FAIRSEQ = f"a fairseq checkpoint ({_CONVERT} for s3prl)"

# Entries that give a checkpoint away -> what it is, for the message; the first of which all are found counts.
_OTHER_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((CHECKPOINT_KEY,), "a checkpoint of ekd_student (make a folder of it: s3prl-ekd export-checkpoint)"),
    (("Distiller",), "a checkpoint of s3prl's distiller (as a teacher: s3prl: distiller_local)"),
    (("Downstream",), "a downstream checkpoint of s3prl's run_downstream"),
    (("Featurizer",), "a downstream checkpoint of s3prl's run_downstream"),
    (("Transformer",), "an s3prl Mockingjay / TERA checkpoint"),
    (("pytorch-lightning_version",), "a Lightning checkpoint"),
    (("cfg", "model"), _FAIRSEQ),
    (("args", "model"), _FAIRSEQ),
)
# What the configuration inside a checkpoint calls its model -> its name, and s3prl's upstream that loads such files.
_S3PRL_CONVERTED = {
    "hubert": ("HuBERT", "hubert_local"),
    "wav2vec2": ("wav2vec 2.0", "wav2vec2_local"),
    "data2vec_audio": ("data2vec", "data2vec_local"),
    "multires_hubert": ("multi-resolution HuBERT", "multires_hubert_local"),
}
_LIGHTHUBERT = ("hubert_pruner", "student_hubert")


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
        UserError: missing, not a checkpoint (said what it is), damaged, or holding objects that are not plain data.
    """
    # Only what is not allowed yet: torch would take the others off its list, too, at the end of the block.
    known = {_full_name(item) for item in torch.serialization.get_safe_globals() if isinstance(item, type)}
    allowed = [item for item in (argparse.Namespace, *_SCHEDULES) if _full_name(item) not in known]
    try:
        with torch.serialization.safe_globals(allowed):
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
            f" {_CONVERT} for s3prl's hubert_local, or take the same model from s3prl or the Hugging Face hub"
        )
    return (
        f"holds Python objects besides tensors and plain values ({names[0]}), so it is not loaded (it could run code);"
        " it is no checkpoint of this package"
    )


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
                except (AttributeError, KeyError, TypeError, ValueError) as error:
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
    teacher = upstream_of(states)
    if teacher is not None:
        name, upstream = teacher
        return f"{name} checkpoint (as a teacher: s3prl: {upstream}, ckpt: FILE)"
    for keys, kind in _OTHER_KINDS:
        if all(key in states for key in keys):
            return kind
    if states and all(isinstance(value, Tensor) for value in states.values()):
        return "weights alone, without a configuration; name the folder that has them and their config.json"
    return f"a checkpoint with the entries {', '.join(sorted(map(str, states))[:5]) or '(none)'}"


def upstream_of(states: Any) -> tuple[str, str] | None:
    """A teacher's checkpoint in one of the formats that s3prl loads: its name with article, and s3prl's upstream."""
    if not isinstance(states, Mapping):
        return None
    config = states.get("model_cfg")
    if "model_weight" in states and isinstance(config, Mapping):
        kind = str(config.get("_name") or ("hubert" if "label_rate" in config else "wav2vec2"))
        name, upstream = _S3PRL_CONVERTED.get(kind, (kind, f"{kind}_local"))
        return f"an s3prl-converted {name}", upstream
    config = states.get("cfg")
    if "model" in states and isinstance(config, Mapping):
        if "relative_position_embedding" in config:
            return "a WavLM", "wavlm_local"
        if "encoder_layers" in config:
            return "a UniSpeech-SAT", "unispeech_sat_local"
        if isinstance(config.get("model"), Mapping) and config["model"].get("_name") in _LIGHTHUBERT:
            return "a LightHuBERT", "lighthubert_local"
    return None


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
    # When s3prl resumes a run it puts the runner's configuration where the distiller's was.
    configs = (states.get(key) or {} for key in ("Config", RECIPE_KEY))
    distiller = next((config["distiller"] for config in configs if "distiller" in config), None)
    if distiller is None:
        raise UserError(
            "a damaged checkpoint of s3prl's distiller: its configuration is not there (s3prl overwrites it when a run"
            " is resumed); take one from before that"
        )
    return (student_config(distiller), *_split(from_distiller(states["Distiller"])))


_READERS: dict[str, Callable[[Mapping[str, Any]], Contents]] = {
    CHECKPOINT_KEY: _read_ours,
    "Distiller": _read_s3prl_distiller,
}
