"""Groups of a teacher's layers that are alike: hierarchical clustering of a similarity matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from s3prl_ekd.config.recipe import LayerClusters, Slot, TeacherConfig
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import write_json


@dataclass(frozen=True)
class FoundGroups:
    """The groups of one teacher's layers, and what they were found by."""

    teacher: TeacherConfig
    """The recipe's entry, whose ``layers`` ask for them."""
    groups: tuple[Slot, ...]
    """Ordered by their first layers; a layer alone is its number."""
    similarity: tuple[tuple[float, ...], ...]
    """Of each hidden state with each."""
    frames: int
    """How many frames they were compared on."""
    speech: dict[str, Any]
    """Which speech that was, see :func:`s3prl_ekd.calibration.speech.identity`."""

    @property
    def asked(self) -> LayerClusters:
        """What the recipe asks for."""
        return asked(self.teacher)

    def tree(self) -> np.ndarray:
        """The dendrogram, as scipy's ``linkage`` gives it."""
        return join(torch.tensor(self.similarity), self.asked.linkage)

    def write(self, folder: Path) -> None:
        """Write ``layers-TEACHER.json``; :func:`read` reads it."""
        found = {"groups": self.groups, "frames": self.frames, "similarity": self.similarity}
        write_json(
            file_of(folder, self.teacher.name), {"teacher": self.teacher.to_mapping(), "speech": self.speech} | found
        )


def asked(teacher: TeacherConfig) -> LayerClusters:
    """What an entry whose groups are to be found asks for."""
    assert isinstance(teacher.layers, LayerClusters), "its groups are there"
    return teacher.layers


def file_of(folder: Path, teacher: str, suffix: str = ".json") -> Path:
    """Where the groups of a teacher are kept; a name may hold any character."""
    return folder / f"layers-{quote(teacher, safe='')}{suffix}"


def read(folder: Path, teacher: str) -> FoundGroups | None:
    """What :meth:`FoundGroups.write` wrote; None where there is nothing.

    Raises:
        UserError: the file is damaged.
    """
    path = file_of(folder, teacher)
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        entry = TeacherConfig.from_saved(stored["teacher"], str(path))
        plain = TeacherConfig.from_mapping(stored["teacher"] | {"layers": stored["groups"]})
        similarity = tuple(tuple(map(float, row)) for row in stored["similarity"])
        return FoundGroups(entry, plain.slots, similarity, int(stored["frames"]), dict(stored["speech"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); delete it, and the groups are found anew"
        ) from error


def join(similarity: Tensor, method: str) -> np.ndarray:
    """Hierarchical clustering of a similarity matrix (L, L), as scipy's ``linkage`` gives it.

    The distance is 1 - similarity. Ward's method is made for Euclidean distances and gets ``sqrt(2 (1 - similarity))``,
    which is one: that of the centred Gram matrices (CKA) or the frames (cosine), brought to norm 1.
    """
    from scipy.cluster.hierarchy import linkage  # takes half a second, which most runs do not need
    from scipy.spatial.distance import squareform

    distances = (1 - similarity.double()).clamp(min=0)
    distances = (distances + distances.T) / 2
    distances.fill_diagonal_(0)
    if method == "ward":
        distances = (2 * distances).sqrt()
    return linkage(squareform(distances.numpy(), checks=False), method)


def group(similarity: Tensor, clusters: int, method: str) -> tuple[Slot, ...]:
    """The hidden states in so many groups, ordered by their first ones."""
    from scipy.cluster.hierarchy import cut_tree

    labels = cut_tree(join(similarity, method), n_clusters=clusters).ravel().tolist()
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
        layers = ", ".join(map(str, broken))
        raise UserError(
            f"teacher {teacher!r}: hidden states {layers} are the same for all frames or not finite, so that there is"
            " nothing to compare; write its groups of layers into the recipe yourself"
        )


def require_enough(teacher: TeacherConfig, hidden_states: int) -> None:
    """Check that a teacher has as many hidden states as there are to be groups.

    Raises:
        UserError: it has fewer.
    """
    clusters = asked(teacher).clusters
    if clusters > hidden_states:
        raise UserError(
            f"teacher {teacher.name!r}: layers asks for {clusters} clusters, and it has hidden states 0 to"
            f" {hidden_states - 1}; ask for {hidden_states} at most"
        )


def line(groups: Sequence[Slot]) -> str:
    """Groups as a recipe has them: ``[0, [1, 2], 3]``."""
    return str([list(slot) if isinstance(slot, tuple) else slot for slot in groups])
