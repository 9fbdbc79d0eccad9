"""The teacher's weights that a student starts from, kept so that a training from the cache needs no teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from s3prl_ekd.target_cache.files import CheckedFile, save_checked


def needed_at_start(name: str, layers: int) -> bool:
    """Whether a student of so many layers starts from a teacher's weight of this name (transformers' names)."""
    if name.startswith("encoder.layers."):
        return int(name.split(".")[2]) < layers
    return not name.startswith("encoder.layer_norm.")


def write_start(folder: Path, teacher: str, layers: int, state: Mapping[str, Tensor]) -> None:
    """Keep what a student needs of its teacher's weights (transformers' names)."""
    kept = {name: value for name, value in state.items() if needed_at_start(name, layers)}
    save_checked(folder / "initial.safetensors", kept, {"teacher": teacher, "layers": str(layers)})


def read_start(folder: Path, teacher: str, layers: int) -> dict[str, Tensor] | None:
    """What :func:`write_start` wrote; None if that was nothing, or of another teacher, or of fewer layers."""
    path = folder / "initial.safetensors"
    if not path.exists():
        return None
    file = CheckedFile(path)
    kept = file.metadata.get("layers", "")
    if "teacher" not in file.metadata or not kept.isdigit():
        raise file.damaged("it does not say whose weights it holds")
    return dict(file.tensors) if file.metadata["teacher"] == teacher and int(kept) >= layers else None
