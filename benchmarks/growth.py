"""How time and memory grow with an utterance's length, with the seconds in a batch, with the number of teachers.

    python benchmarks/growth.py                       # CPU, one thread, about 20 minutes
    python benchmarks/growth.py --device cuda

Series, each with base-size random models:

    length    one utterance of 1 to 60 s: inference (ours, s3prl, transformers), our step with one teacher
    batch     utterances of 5 s: a step with one teacher, ours and s3prl's
    teachers  1 to 4 of them on two utterances of 5 s: a step, ours and s3prl's

The slope of a curve is that of its last stretch in a plot with logarithmic axes: 1 is linear, 2 is attention's square.
Nothing of ours may be steeper than that.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from inference import extractors
from models import Ensemble, our_step, their_step
from peers import BASE, TINY
from torch import Tensor

LENGTHS = (1, 2, 5, 10, 20, 40, 60)
BATCHES = (5, 10, 20, 40)
TEACHERS = (1, 2, 3, 4)
QUICK = {"length": (0.5, 1, 2), "batch": (1, 2), "teachers": (1, 2)}
UTTERANCE_SECONDS = 5.0
STEEPEST = {"length": 2.1, "batch": 1.2, "teachers": 1.2}

Subject = Callable[[Sequence[Tensor]], object]
"""What is measured, on waveforms."""


def as_subject(step: Any) -> Subject:
    """A step that hears what it is given."""

    def run(waveforms: Sequence[Tensor]) -> None:
        step.hear(waveforms)
        step()

    return run


class Curves:
    """Collects points."""

    def __init__(self, repeats: int, device: torch.device) -> None:
        self.repeats, self.device = repeats, device
        self.points: list[dict[str, Any]] = []

    def add(self, series: str, x: float, subjects: Mapping[str, Subject], waveforms: Sequence[Tensor]) -> None:
        """One more x for these curves; a warm-up is only needed for the memory, and at the first."""
        short = common.speech([0.5])
        memory = {
            name: common.extra_memory_mb(partial(s, waveforms), partial(s, short), self.device)
            for name, s in subjects.items()
        }
        for subject in subjects.values():
            subject(short)
        candidates = {name: partial(s, waveforms) for name, s in subjects.items()}
        times = common.interleaved(candidates, self.repeats, self.device, warm_up=0)
        for name, values in common.summary(times).items():
            self.points.append(
                {
                    "series": series,
                    "curve": name,
                    "x": x,
                    "seconds": values["median_s"],
                    "extra_memory_mb": memory[name],
                }
            )

    def slopes(self) -> dict[str, float]:
        """Of the last stretch of each of our curves, in time."""
        found = {}
        for series, curve in dict.fromkeys((point["series"], point["curve"]) for point in self.points):
            last = [point for point in self.points if (point["series"], point["curve"]) == (series, curve)][-2:]
            if curve.startswith("ours"):
                (a, b), (c, d) = ((point["x"], point["seconds"]) for point in last)
                found[f"{series}: {curve}"] = math.log(d / b) / math.log(c / a)
        return found


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__.splitlines()[0], repeats=3).parse_args(argv)
    device = common.prepare(args)
    xs = QUICK if args.quick else {"length": LENGTHS, "batch": BATCHES, "teachers": TEACHERS}
    counts = [int(x) for x in xs["teachers"]]
    sizes = TINY if args.quick else BASE
    utterance = UTTERANCE_SECONDS if not args.quick else 0.5
    curves = Curves(args.repeats, device)

    models = extractors(sizes, device)
    del models["s3prl_shipped"]

    def inference(extractor: Subject) -> Subject:
        def run(waveforms: Sequence[Tensor]) -> object:
            with torch.no_grad():
                return extractor([waveform.to(device) for waveform in waveforms])

        return run

    subjects = {f"{name}, inference": inference(extractor) for name, extractor in models.items()}
    for x in xs["length"]:
        curves.add("length", x, subjects, common.speech([x]))

    with tempfile.TemporaryDirectory() as folder:
        ensemble = Ensemble(Path(folder), sizes, max(counts), device)
    start = common.speech([0.5])
    ours = as_subject(our_step(ensemble, 1, start))
    for x in xs["length"]:
        curves.add("length", x, {"ours, step": ours}, common.speech([x]))
    both = {"ours": ours, "s3prl": as_subject(their_step(ensemble, 1, start, teachers_train=False))}
    for x in xs["batch"]:
        curves.add("batch", x, both, common.speech([utterance] * round(x / utterance)))
    del ours, both
    for count in counts:
        both = {
            "ours": as_subject(our_step(ensemble, count, start)),
            "s3prl": as_subject(their_step(ensemble, count, start, teachers_train=False)),
        }
        curves.add("teachers", count, both, common.speech([utterance] * 2))

    slopes = curves.slopes()
    result = common.result(args, "growth of time and memory") | {
        "points": curves.points,
        "slopes": slopes,
        "limits": {} if args.quick else {name: STEEPEST[name.partition(":")[0]] for name in slopes},
    }
    return common.finish(args, "growth", result, checked="slopes")


if __name__ == "__main__":
    sys.exit(main())
