"""A distillation as a picture: its losses, how well every target is matched, and teachers' weights that are learnt."""

from __future__ import annotations

import csv
import itertools
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ekd.cost import IN_WORDS
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.pictures import COLOURS, colours, literal, new_figure, save
from s3prl_ekd.training.run_folder import stage_folders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Series = Mapping[str, Sequence[tuple[int, float]]]
"""Name in the log -> (step, value), by step."""


def plot(runs: Sequence[Path], path: Path) -> None:
    """Draw the logs in the folders of a run, or of runs that follow each other, into a file.

    Raises:
        UserError: there is no log, matplotlib is not installed, or such a file cannot be written.
    """
    parts = [part for run in runs for part in logs_of_stages(run)]
    series, begins = joined([log for _, log in parts])
    save(draw(series, dict(zip(begins, [name for name, _ in parts], strict=True)) if len(parts) > 1 else {}), path)


def logs_of_stages(run: Path) -> list[tuple[str, Series]]:
    """(folder's name, log) of the stages that have logged a step, in their order; a run without stages is one.

    Raises:
        UserError: there is no log, or one cannot be read.
    """
    found = [(folder.name, log) for folder in stage_folders(run) if (log := _read(folder))]
    return found or [(run.name, read_log(run))]


def joined(logs: Sequence[Series]) -> tuple[Series, list[int]]:
    """Logs of runs that follow each other as one, steps counted on; and the step after which each of them begins."""
    found: dict[str, list[tuple[int, float]]] = {}
    begins = [0]
    for log in logs:
        for name, values in log.items():
            found.setdefault(name, []).extend((begins[-1] + step, value) for step, value in values)
        begins.append(begins[-1] + max(values[-1][0] for values in log.values()))
    return found, begins[:-1]


def read_log(run: Path) -> Series:
    """What a run has logged. Where a resumed part repeats steps of the part before, its values count.

    The names are those of distill: ``train/loss``, ``dev/loss``, ``train/cosine/TEACHER/LAYER``.

    Raises:
        UserError: there is no log, or it cannot be read.
    """
    found = _read(run)
    if not found:
        raise UserError(
            f"{run}: no log there (logs/csv/*/metrics.csv, events.out.tfevents.*); name the output folder of a run of"
            " s3prl-ekd distill or run_pretrain that has logged a step"
        )
    return found


def _read(run: Path) -> Series:
    """As :func:`read_log`, but empty where nothing is logged."""
    found: dict[str, dict[int, float]] = {}
    for pattern, read in (("logs/csv/from-step-*/metrics.csv", _of_distill), ("events.out.tfevents.*", _of_pretrain)):
        for path in sorted(run.glob(pattern)):
            try:
                for name, step, value in read(path):
                    found.setdefault(name, {})[step] = value
            except (ValueError, KeyError, TypeError, csv.Error) as error:
                raise UserError(f"{path}: is damaged ({one_line(error)}); delete it to go without") from error
    return {name: sorted(values.items()) for name, values in found.items()}


def _of_distill(path: Path) -> Iterator[tuple[str, int, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        whole = (line for line in file if line.endswith("\n"))  # the last may still be being written
        for row in csv.DictReader(whole):
            for name, value in row.items():
                if value and name != "step":
                    yield name, int(row["step"]), float(value)


_OF_PRETRAIN = re.compile(r"[^/]+/train-(?:mean_)?(loss|\w+/.+)")
"""s3prl's names, UPSTREAM/train-NAME. Its ``loss`` is of the logged step alone; ``mean_loss``, of all steps since the
log before, comes after it and takes its place."""


def _of_pretrain(path: Path) -> Iterator[tuple[str, int, float]]:
    """TensorBoard's file: records of a length (8 bytes), its checksum (4), so many bytes, their checksum (4)."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    content = memoryview(path.read_bytes())
    while len(content) >= 12:
        (size,) = struct.unpack("<Q", content[:8])
        record, content = content[12 : 12 + size], content[16 + size :]
        if len(record) < size:
            return  # it is still being written
        try:
            event = Event.FromString(bytes(record))
        except DecodeError as error:
            raise ValueError(error) from error
        for value in event.summary.value:
            if match := _OF_PRETRAIN.fullmatch(value.tag):
                yield f"train/{match[1]}", event.step, value.simple_value


def expected_and_target(logged: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """What a log says of the size of a student with gates: the cost, a key of :data:`s3prl_ekd.cost.COSTS`, and the
    entries of what is expected and what is aimed at; None: nothing."""
    for kind in IN_WORDS:
        expected, target = f"pruning/expected_{kind}", f"pruning/target_{kind}"
        if expected in logged and target in logged:
            return kind, logged[expected], logged[target]
    return None


_COSINE = "train/cosine/"
_WEIGHT = "train/weight/"
_MAGNITUDE = "train/magnitude/"
_AGGREGATED = {"average": "mean of the teachers", "concatenation": "teachers side by side"}
_DASHES = ("-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)))
_MARKS = (None, "o", "s", "^", "D")


def draw(series: Series, begins: Mapping[int, str] | None = None) -> Figure:
    """Losses on the left, then what a pruned student is expected to cost, the cosine of every target, and the teachers'
    weights where they are learnt: the colour tells the teacher, the dashes the layer.

    Args:
        series: what is logged.
        begins: the step after which each stage begins, and its name; a run without stages has none.

    Raises:
        UserError: matplotlib is not installed.
    """
    pruned = expected_and_target(series)
    learnt = any(name.startswith(_WEIGHT) for name in series)
    panels = 2 + (pruned is not None) + learnt
    figure = new_figure(5 * panels + 1, 4)
    from matplotlib.ticker import MaxNLocator

    every = list(figure.subplots(1, panels))
    losses, cosines = every[0], every[1 + (pruned is not None)]
    if pruned is not None:
        _cost(every[1], *pruned)
    losses.set(title="Loss", ylabel="loss, mean over frames (no unit)")
    cosines.set(title="Agreement of predictions and targets", ylabel="cosine similarity, mean over frames")
    _losses(losses, series)
    legends = [(cosines, _by_teacher(cosines, series, _COSINE))]
    if learnt:
        every[-1].set(title="Learnt weights of the teachers", ylabel="share of a slot (no unit)", ylim=(0, 1))
        legends.append((every[-1], _by_teacher(every[-1], series, _WEIGHT)))
    figure.set_figheight(max(4.0, 0.8 + 0.19 * max(len(entries) for _, entries in legends)))
    for axes, entries in legends:
        if entries:
            outside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
            axes.legend(handles=entries, fontsize="small", handlelength=3.5, **outside)
    for axes in every:
        for step, name in (begins or {}).items():
            axes.axvline(step, color="dimgray", linewidth=0.8, linestyle=":")
            axes.annotate(
                literal(name), (step, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
                textcoords="offset points", va="top", fontsize="small", color="dimgray",
            )  # fmt: skip
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if not axes.lines:
            axes.text(0.5, 0.5, "none logged", transform=axes.transAxes, ha="center", color="dimgray", style="italic")
    return figure


def _losses(axes: Axes, series: Series) -> None:
    kinds = {
        "train/loss": {"label": "training", "linestyle": "-"},
        "dev/loss": {"label": "development set", "linestyle": "--", "marker": "."},
    }
    for (name, style), colour in zip(kinds.items(), COLOURS, strict=False):
        if name in series:
            _line(axes, series[name], color=colour, **style)
    if axes.lines:
        axes.legend(fontsize="small")


def _cost(axes: Axes, kind: str, expected: Sequence[tuple[int, float]], target: Sequence[tuple[int, float]]) -> None:
    axes.set(title="Size with gates", ylabel=IN_WORDS[kind])
    _line(axes, expected, color=COLOURS[0], label="expected")
    _line(axes, target, color=COLOURS[1], linestyle="--", label="target")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _by_teacher(axes: Axes, series: Series, start: str) -> list[Line2D]:
    """Draw what is logged of each target under names that ``start`` so; returns the entries of the legend."""
    from matplotlib.lines import Line2D

    targets = {name: name.removeprefix(start).rpartition("/")[::2] for name in series if name.startswith(start)}
    # What is aggregated of several teachers has no magnitude in the log; so a teacher of that name keeps its name.
    labels = {
        name: source if name.replace(start, _MAGNITUDE, 1) in series else _AGGREGATED.get(source, source)
        for name, (source, _) in targets.items()
    }
    every = list(dict.fromkeys(labels.values()))
    teachers = [label for label in every if label not in _AGGREGATED.values()]
    colour = dict.fromkeys(_AGGREGATED.values(), "black") | dict(zip(teachers, colours(len(teachers)), strict=True))
    layers = sorted(
        {layer for _, layer in targets.values()}, key=lambda layer: list(map(int, re.findall(r"\d+", layer)))
    )
    styles = itertools.cycle(itertools.product(_MARKS, _DASHES))
    style: dict[str, Any] = {
        layer: {"linestyle": dashes, "marker": mark} for layer, (mark, dashes) in zip(layers, styles, strict=False)
    }
    for name, (_, layer) in targets.items():
        _line(axes, series[name], color=colour[labels[name]], markersize=4, **style[layer])
    entries = [Line2D([], [], color=colour[label], linewidth=3, label=literal(label)) for label in every]
    return entries + [Line2D([], [], color="dimgray", label=f"layer {layer}", **style[layer]) for layer in layers]


def _line(axes: Axes, points: Sequence[tuple[int, float]], **style: Any) -> None:
    if len(points) == 1:  # a line of one point cannot be seen
        style["marker"] = style.get("marker") or "."
    if style.get("marker") not in (None, "."):
        style["markevery"] = max(1, len(points) // 8)
    axes.plot(*zip(*points, strict=True), linewidth=1.4, **style)
