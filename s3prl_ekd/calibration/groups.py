"""Groups of a teacher's layers that are alike: hierarchical clustering of a similarity matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from torch import Tensor

from s3prl_ekd.config.recipe import LayerClusters, Slot, TeacherConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import write_json


@dataclass(frozen=True, eq=False)
class FoundGroups:
    """The groups of one teacher's layers, and what they were found by."""

    teacher: str
    """Its name."""
    asked: LayerClusters
    """What the recipe asks for."""
    groups: tuple[Slot, ...]
    """Ordered by their first layers; a layer alone is its number."""
    similarity: Tensor
    """Of each hidden state with each, (L, L) in float64."""

    def write(self, folder: Path) -> None:
        """Write ``layers-TEACHER.json``, for people and their programs."""
        found = {"groups": self.groups, "similarity": self.similarity.tolist()}
        write_json(file_of(folder, self.teacher, ".json"), {"teacher": self.teacher, **self.asked.to_mapping()} | found)


def asked_of(teacher: TeacherConfig) -> LayerClusters | None:
    """What an entry of the recipe asks for; None where it names its layers."""
    return teacher.layers if isinstance(teacher.layers, LayerClusters) else None


def file_of(folder: Path, teacher: str, suffix: str) -> Path:
    """Where the similarities of a teacher's layers are written; a name may hold any character."""
    return folder / f"layers-{quote(teacher, safe='')}{suffix}"


def join(similarity: Tensor, method: str) -> np.ndarray:
    """Hierarchical clustering of a similarity matrix (L, L), as scipy's ``linkage`` gives it.

    The distance is 1 - similarity. Ward's method is made for Euclidean distances and gets ``sqrt(2 (1 - similarity))``,
    which is one: that of the centred Gram matrices (CKA) or the frames (cosine), brought to norm 1.
    """
    from scipy.cluster.hierarchy import linkage  # takes half a second, which most runs do not need
    from scipy.spatial.distance import squareform

    distances = (1 - similarity).clamp(min=0)
    distances = (distances + distances.T) / 2
    distances.fill_diagonal_(0)
    if method == "ward":
        distances = (2 * distances).sqrt()
    return linkage(squareform(distances.numpy(), checks=False), method)


def group(similarity: Tensor, asked: LayerClusters) -> tuple[Slot, ...]:
    """The hidden states in groups, ordered by their first ones."""
    from scipy.cluster.hierarchy import cut_tree

    labels = cut_tree(join(similarity, asked.linkage), n_clusters=asked.clusters).ravel().tolist()
    members: dict[int, list[int]] = {}
    for layer, label in enumerate(labels):
        members.setdefault(label, []).append(layer)
    return tuple(layers[0] if len(layers) == 1 else tuple(layers) for layers in members.values())


def require_comparable(teacher: str, similarity: Tensor) -> None:
    """Check that there is a similarity of each hidden state.

    Raises:
        UserError: one is the same for all frames, or not finite.
    """
    broken = [layer for layer, value in enumerate(similarity.diagonal().tolist()) if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"teacher {teacher!r}: hidden states {', '.join(map(str, broken))} are the same for all frames or not"
            " finite, so that there is nothing to compare; write its groups of layers into the recipe yourself"
        )


def require_enough(teacher: str, asked: LayerClusters, hidden_states: int) -> None:
    """Check that a teacher has as many hidden states as there are to be groups.

    Raises:
        UserError: it has fewer.
    """
    if asked.clusters > hidden_states:
        raise UserError(
            f"teacher {teacher!r}: layers asks for {asked.clusters} clusters, and it has hidden states 0 to"
            f" {hidden_states - 1}; ask for {hidden_states} at most"
        )


def line(groups: Sequence[Slot]) -> str:
    """Groups as a recipe has them: ``[0, [1, 2], 3]``."""
    return str([list(slot) if isinstance(slot, tuple) else slot for slot in groups])
