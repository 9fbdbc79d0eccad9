"""The images of docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

AXES = {
    "length": "seconds in the utterance",
    "batch": "seconds in the batch",
    "teachers": "teachers",
}
COLOURS = {"ours": "#1b6ca8", "s3prl": "#c8553d", "transformers": "#7a8c3b"}


def _colour(name: str) -> str:
    return next(colour for prefix, colour in COLOURS.items() if name.startswith(prefix))


def growth(result: Mapping[str, Any], series: str, path: Path) -> None:
    """Time and memory of one series, side by side."""
    points = [point for point in result["points"] if point["series"] == series]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for panel, key, label in zip(panels, ("seconds", "extra_memory_mb"), ("seconds", "extra memory, MB"), strict=True):
        for name in dict.fromkeys(point["curve"] for point in points):
            own = [point for point in points if point["curve"] == name]
            style = "--" if name.endswith("step") else "-"
            panel.plot(
                [p["x"] for p in own], [p[key] for p in own], style, marker="o", ms=4, c=_colour(name), label=name
            )
        if series != "teachers":
            panel.set_xscale("log")
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=0)
        ticks = sorted({point["x"] for point in points})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        panel.set_xticks([], minor=True)
        panel.set_xlabel(AXES[series])
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    _save(figure, path)


def bars(timings: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Medians as bars, with the extremes."""
    names = list(timings)[::-1]
    values = [timings[name]["median_s"] for name in names]
    reach = [
        [timings[n]["median_s"] - timings[n]["min_s"] for n in names],
        [timings[n]["max_s"] - timings[n]["median_s"] for n in names],
    ]
    figure, panel = plt.subplots(figsize=(7, 0.5 + 0.42 * len(names)), layout="constrained")
    drawn = panel.barh(names, values, xerr=reach, color=[_colour(name) for name in names], height=0.65)
    panel.bar_label(drawn, [f" {value:.3g} s" for value in values], padding=4)
    panel.set_xlim(right=1.2 * max(values))
    panel.set_xlabel("seconds")
    panel.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
