"""What transformers' folders hold: JSON, and weights in one file or several, as safetensors or pickled."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from s3prl_ekd.errors import UserError
from s3prl_ekd.weights.file_kind import again, problem_of
from s3prl_ekd.weights.pickles import load_pickle_safely

# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# A preprocessor_config.json says how the waveform is wanted; newer processors keep it inside another file.
_PREPROCESSORS = (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor"))


def read_json(path: Path) -> dict[str, Any]:
    """The names and values in a JSON file.

    Raises:
        UserError: it cannot be read, is no JSON (the message says what it is), or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        reason = problem_of(path) or f"{error}; {again(path)}"
        raise UserError(f"{path}: not valid JSON: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: JSON, but not names and values as in a model's folder")
    return values


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder; none if there are none.

    Raises:
        UserError: a part that the index of several names is missing, or the index cannot be read.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        return []
    if path.suffix != ".json":
        return [path]
    parts = read_json(path).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise UserError(f"{path}: names no files of weights (weight_map)")
    files = []
    for name in sorted(set(parts.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{path}: names a file {name!r} that is not in its folder; copy or download all parts")
        files.append(folder / name)
    return files


def read_shapes(files: Sequence[Path]) -> dict[str, Tensor]:
    """Tensors without memory that have the shapes of those in the files.

    Raises:
        UserError: a file is damaged or of another kind (the message says which).
    """
    shapes: dict[str, Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            with _open_safetensors(path) as file:
                sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no dict)
        else:
            sizes = {name: tensor.shape for name, tensor in _read_pickled(path, mapped=True).items()}
        shapes |= {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    return shapes


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of these files, as they are stored.

    Raises:
        UserError: a file is damaged, of another kind (the message says which), or holds anything but tensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            with _open_safetensors(path) as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        else:
            tensors |= _read_pickled(path)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors.

    Raises:
        UserError: it is damaged or of another kind (said which).
    """
    with _open_safetensors(path) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        reason = problem_of(path) or f"the file is damaged ({error}); {again(path)}"
        raise UserError(f"{path}: cannot be read as safetensors: {reason}") from error


def _read_pickled(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    found = load_pickle_safely(path, mapped=mapped)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: holds something else than names and tensors; save the model's state_dict() there")
    for name, tensor in found.items():
        if tensor.layout is not torch.strided or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise UserError(f"{path}: {name} is no plain tensor, or larger than what is stored of it")
    return dict(found)


def damage_in(folder: Path) -> str | None:
    """The first file of a transformers folder that is damaged or something else, and what to do; None if none is."""
    try:
        for name in ("config.json", *(name for name, _ in _PREPROCESSORS)):
            if (folder / name).is_file():
                read_json(folder / name)
        read_shapes(weight_files(folder))
    except UserError as error:
        return str(error)
    return None


def check_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse weights of a training that has diverged, or of a damaged file.

    Raises:
        UserError: a tensor holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{where}: {name} holds NaN or infinity: the training has diverged (take an earlier checkpoint) or the"
                " file is damaged"
            )


def stated_normalization(find: Callable[[str], str | Path | None]) -> bool | None:
    """Whether the preprocessor of a model's folder says that waveforms are normalised; None: it says nothing.

    Args:
        find: a file's name to its path, or None where there is no such file.

    Raises:
        UserError: its file is no JSON.
    """
    for name, part in _PREPROCESSORS:
        path = find(name)
        if path is None:
            continue
        values = read_json(Path(path))
        stated = values if part is None else values.get(part)
        if isinstance(stated, Mapping) and "do_normalize" in stated:
            return bool(stated["do_normalize"])
    return None
