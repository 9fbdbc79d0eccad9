"""The images of docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from s3prl_ekd.pictures import COLOURS, new_figure, save

AXES = {
    "length": "seconds in the utterance",
    "batch": "seconds in the batch",
    "teachers": "teachers",
}
NAMES = {
    "s3prl_k1": "s3prl, 1 teacher",
    "s3prl_k1_as_shipped": "s3prl as shipped, 1 teacher",
    "ours_k1": "ours, 1 teacher",
    "s3prl_k3": "s3prl, 3 teachers",
    "ours_k3": "ours, 3 teachers",
    "ours_cached_k3": "ours, cached targets of 3 teachers",
    "b1": "one utterance of 10 s",
    "mixed8": "8 utterances, 72 s in 120 s with padding",
    "s3prl_shipped": "s3prl as shipped",
    "ours_bf16": "ours in bf16",
    "s3prl_bf16": "s3prl in bf16",
    "transformers_bf16": "transformers in bf16",
}
"""Names in benchmarks/results -> what a reader is told."""
# Whose it is -> how it looks. Curves lie upon one another: open marks, and shapes that differ as colours do.
STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": COLOURS[0], "marker": "o", "markersize": 4},
    "s3prl": {"color": COLOURS[1], "marker": "s", "markersize": 8, "markerfacecolor": "none"},
    "transformers": {"color": COLOURS[2], "marker": "^", "markersize": 5},
}


def _style(name: str) -> dict[str, Any]:
    return next(style for prefix, style in STYLES.items() if name.startswith(prefix))


def growth(result: Mapping[str, Any], series: str) -> Figure:
    """Time and memory of one series, side by side."""
    points = [point for point in result["points"] if point["series"] == series]
    figure = new_figure(9, 3.6)
    figures = {"seconds": "time (s), less is better", "extra_memory_mb": "extra memory (MB), less is better"}
    for panel, (key, label) in zip(figure.subplots(1, 2), figures.items(), strict=True):
        for name in dict.fromkeys(point["curve"] for point in points):
            own = [(point["x"], point[key]) for point in points if point["curve"] == name]
            panel.plot(*zip(*own, strict=True), "--" if name.endswith("step") else "-", label=name, **_style(name))
        ticks = sorted({point["x"] for point in points})
        if series != "teachers":
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")  # 20, not 2 x 10^1
            panel.yaxis.set_minor_formatter(NullFormatter())
        else:
            panel.set_ylim(0, 1.1 * max(point[key] for point in points))
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        panel.set_xticks([], minor=True)
        panel.set_xlabel(AXES[series])
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def bars(timings: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Medians as bars, with the extremes."""
    names = list(timings)
    values = [timings[name]["median_s"] for name in names]
    reach = [
        [timings[n]["median_s"] - timings[n]["min_s"] for n in names],
        [timings[n]["max_s"] - timings[n]["median_s"] for n in names],
    ]
    figure = new_figure(7.5, 0.6 + 0.42 * len(names))
    panel = figure.subplots()
    drawn = panel.barh(
        [NAMES.get(name, name) for name in names],
        values,
        xerr=reach,
        color=[_style(name)["color"] for name in names],
        height=0.65,
    )
    panel.bar_label(drawn, [f" {value:.3g} s" for value in values], padding=4)
    panel.invert_yaxis()
    panel.set_xlim(right=1.2 * max(timing["max_s"] for timing in timings.values()))
    panel.set_xlabel("time of a step (s), less is better; whiskers: fastest and slowest round")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def write(figure: Figure, path: Path) -> None:
    """As PNG, of equal bytes for equal figures."""
    save(figure, path, dpi=110, metadata={"Software": None})
