"""How alike a teacher's layers are, as a picture: the similarity of each to each, and in which order they join."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from s3prl_ekd.calibration.groups import FoundGroups, join
from s3prl_ekd.pictures import colours, literal, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEASURES = {"cka": "linear CKA", "cosine": "mean cosine of frames"}
_GREY = "#555555"


def plot(found: FoundGroups, path: Path) -> None:
    """Draw it into a file.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    save(draw(found), path)


def draw(found: FoundGroups) -> Figure:
    """The similarity matrix on the left; on the right the dendrogram, each group in a colour of its own.

    Raises:
        UserError: matplotlib is not installed.
    """
    layers = len(found.similarity)
    side = max(4.0, 0.24 * layers)
    figure = new_figure(2.2 * side + 1, side + 0.6)
    matrix, tree = figure.subplots(1, 2)
    title = f"Hidden states of {found.teacher} in {len(found.groups)} groups ({found.asked.linkage} linkage)"
    figure.suptitle(literal(title))
    members = [(slot,) if isinstance(slot, int) else slot for slot in found.groups]
    colour = {layer: shade for shade, group in zip(colours(len(members)), members, strict=True) for layer in group}
    _matrix(matrix, found)
    _tree(tree, found, colour)
    for axis in (matrix.xaxis, matrix.yaxis, tree.xaxis):
        for label in axis.get_ticklabels():
            label.set(color=colour[int(label.get_text())], fontweight="bold")
    return figure


def _matrix(axes: Axes, found: FoundGroups) -> None:
    image = axes.imshow(found.similarity.numpy(), cmap="cividis", origin="lower", vmax=1, aspect="auto")
    layers = range(len(found.similarity))
    axes.set(xlabel="hidden state", ylabel="hidden state", xticks=layers, yticks=layers)
    axes.set_xticklabels(map(str, layers))
    axes.set_yticklabels(map(str, layers))
    axes.tick_params(length=0)
    axes.figure.colorbar(image, ax=axes, label=f"{_MEASURES[found.asked.similarity]} (no unit)", shrink=0.8)


def _tree(axes: Axes, found: FoundGroups, colour: dict[int, str]) -> None:
    from scipy.cluster.hierarchy import dendrogram

    tree = join(found.similarity, found.asked.linkage)
    shade = dict(colour)  # of the node, where all layers below it are of one group
    for number, (left, right, *_) in enumerate(tree, start=len(colour)):
        below = shade[int(left)], shade[int(right)]
        shade[number] = below[0] if below[0] == below[1] else _GREY
    dendrogram(tree, ax=axes, link_color_func=shade.__getitem__, labels=list(map(str, sorted(colour))))
    distance = "sqrt(2 (1 - similarity))" if found.asked.linkage == "ward" else "1 - similarity"
    axes.set(xlabel="hidden state", ylabel=f"distance, {distance}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0, labelrotation=0)
