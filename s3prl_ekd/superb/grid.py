"""Several upstreams, learning rates and seeds: an :class:`Evaluation` for each of their combinations on each task.

Each has a folder of its own, ``OUT/units/LABEL/lr-RATE/seed-SEED/TASK``, so that a rate or a seed that is asked for
later adds to what is there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from s3prl_ekd.errors import UserError
from s3prl_ekd.superb.evaluation import Evaluation
from s3prl_ekd.superb.plans import Plans
from s3prl_ekd.tasks import TASKS, require_given
from s3prl_ekd.tasks.task import RATE

UNITS = "units"
"""Folder of all of them, in ``OUT``."""


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """What is judged."""

    name: str
    """Of an s3prl upstream, ``ekd_student`` among them."""
    ckpt: str | None = None
    """Its weights, if it needs any."""
    label: str
    """Its name in tables."""


def units(
    base: Evaluation,
    upstreams: Sequence[Upstream],
    rates: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
) -> list[Evaluation]:
    """An evaluation per task, upstream, learning rate and seed, the longest task first.

    Args:
        base: what they share; its upstream, weights, label and seed are replaced.
        upstreams: what is judged, each with a label of its own.
        rates: task -> learning rates; a task that has none keeps that of its configuration.
        seeds: seeds of s3prl's runner.

    Raises:
        UserError: data is missing, or two upstreams would have the same folder.
    """
    require_given(base.tasks, base.corpora, base.splits)
    folders: dict[str, Upstream] = {}
    for upstream in upstreams:
        other = folders.setdefault(_folder(upstream.label), upstream)
        if other != upstream:
            raise UserError(f"--label: {other.label!r} and {upstream.label!r} would share a folder; name them apart")
    plans = Plans(base.corpora, base.splits, base.out / "prepared")
    tasks = sorted(base.tasks, key=lambda task: not TASKS[task].longest)
    found = []
    for task, (folder, upstream), seed in itertools.product(tasks, folders.items(), seeds):
        for rate in rates.get(task) or (None,):
            options = [*base.options, *([(task, RATE, rate)] if rate is not None else [])]
            of_rate = "lr-default" if rate is None else f"lr-{rate!r}"
            found.append(
                replace(
                    base,
                    upstream=upstream.name,
                    ckpt=upstream.ckpt,
                    label=upstream.label,
                    tasks=(task,),
                    seed=seed,
                    options=options,
                    searched=frozenset({task} if rate is not None else ()),
                    out=base.out / UNITS / folder / of_rate / f"seed-{seed}",
                    plans=plans,
                )
            )
    return found


def _folder(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", label).strip("._") or "_"
