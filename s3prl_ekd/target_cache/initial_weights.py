"""The teacher's weights that a student starts from, kept so that a training from the cache needs no teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.network.config import Architecture
from s3prl_ekd.target_cache.files import CheckedFile, save_checked


class Start(NamedTuple):
    """What is kept of a teacher.

    Attributes:
        weights: under transformers' names.
        architecture: kept for a student that is a copy.
    """

    weights: dict[str, Tensor]
    architecture: Architecture | None


def _needed(student: StudentConfig, name: str) -> bool:
    """Whether a student starts from a teacher's weight of this name (transformers' names)."""
    if name.startswith("encoder.layers."):
        return int(name.split(".")[2]) < student.origin_layers
    return student.copy is not None or not name.startswith("encoder.layer_norm.")


def write_start(
    folder: Path, student: StudentConfig, weights: Mapping[str, Tensor], architecture: Architecture | None
) -> None:
    """Keep what a student needs of the teacher that it starts from.

    Args:
        folder: of the cache.
        student: of the recipe.
        weights: the teacher's, under transformers' names.
        architecture: the teacher's, for a copy.
    """
    metadata = {"teacher": str(student.origin), "layers": str(student.origin_layers)}
    if architecture is not None:
        metadata["architecture"] = json.dumps(architecture.to_mapping())
    kept = {name: value for name, value in weights.items() if _needed(student, name)}
    save_checked(folder / "initial.safetensors", kept, metadata)


def read_start(folder: Path, student: StudentConfig) -> Start | None:
    """What :func:`write_start` wrote; None if that was nothing, or less than this student needs.

    Raises:
        UserError: the file is damaged, or of a later version.
    """
    path = folder / "initial.safetensors"
    if not path.exists():
        return None
    file = CheckedFile(path)
    kept = file.metadata.get("layers", "")
    if "teacher" not in file.metadata or not kept.isdigit():
        raise file.damaged("it does not say whose weights it holds")
    architecture = None
    if "architecture" in file.metadata:
        try:
            mapping = json.loads(file.metadata["architecture"])
        except (ValueError, RecursionError) as error:
            raise file.damaged("it does not say of which architecture its weights are") from error
        architecture = Architecture.from_saved(mapping, str(path))
    enough = (
        file.metadata["teacher"] == student.origin
        and int(kept) >= student.origin_layers
        and (student.copy is None or architecture is not None)
    )
    return Start(dict(file.tensors), architecture) if enough else None
