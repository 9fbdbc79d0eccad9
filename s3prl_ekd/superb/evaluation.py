"""An upstream, judged on some tasks: from what is asked for to experiments, processes and rows of results."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from s3prl_ekd.config.base import Difference, differences, say_differences
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import only_writer, write_json
from s3prl_ekd.superb import run_experiment
from s3prl_ekd.superb.jobs import Job
from s3prl_ekd.superb.outcomes import OUTCOMES
from s3prl_ekd.superb.plans import Plans
from s3prl_ekd.superb.summary import Row
from s3prl_ekd.tasks import DEFAULT, TASKS, require_given
from s3prl_ekd.tasks.corpora import Corpora, Split
from s3prl_ekd.tasks.task import Experiment, Settings, changed

logger = logging.getLogger(__name__)

FREE = frozenset({"label", "out", "corpora", "tasks", "splits", "steps", "options", "searched", "plans"})
"""The settings of an evaluation that its results do not depend on, or that stand in the configurations of its
experiments; on all others, new ones included, they do."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is judged, on what, and where the results go."""

    upstream: str
    """Name of an s3prl upstream, ``ekd_student`` among them."""
    ckpt: str | None = None
    """Its weights (``-k``), if it needs any."""
    label: str = ""
    """Name in tables; empty: made from upstream and ckpt."""
    tasks: tuple[str, ...] = DEFAULT
    """Any of :data:`~s3prl_ekd.tasks.TASKS`."""
    corpora: Corpora
    """Where the data is."""
    splits: frozenset[Split] = frozenset({Split.PUBLIC})
    """Which test sets judge."""
    out: Path
    """Folder of all results; one folder is for one upstream."""
    seed: int = 1337
    """Seed of s3prl's runner (its own default)."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Steps by task, where not those of the recipe."""
    options: Sequence[tuple[str | None, str, Any]] = ()
    """(task or None for all, dotted key of the configuration, value)."""
    fine_tune: bool = False
    """Whether the upstream is trained too."""
    remember_features: bool = False
    """Whether the features of an utterance are computed once and kept in memory while a task is trained."""
    device: str | None = None
    """``cpu``, ``cuda``; None: the GPU if there is one."""
    searched: frozenset[str] = frozenset()
    """Tasks of which this is one of several learning rates, see :attr:`Row.searched`."""
    plans: Plans | None = field(default=None, compare=False)
    """Shared by evaluations of the same corpora and splits; None: one of its own, below ``out/prepared``."""

    @functools.cached_property
    def experiments(self) -> list[Experiment]:
        """All experiments, with the lexicon, lists and folds they need written where :attr:`plans` has them.

        Raises:
            UserError: data is missing, or an option is unknown.
        """
        require_given(self.tasks, self.corpora, self.splits)
        plans = self.plans or Plans(self.corpora, self.splits, self.out / "prepared")
        return [experiment for task in self.tasks for experiment in plans.experiments(task, self._template(task))]

    @property
    def finished(self) -> bool:
        """Whether all results are there."""
        return all(map(self._finished, self.experiments))

    def jobs(
        self, *, prefix: str = "", after: tuple[str, ...] = (), elsewhere: Collection[str] = frozenset()
    ) -> list[Job]:
        """The processes that are still needed, one per experiment that is not finished; their folders are claimed.

        Args:
            prefix: put before the names of the jobs.
            after: names of jobs to wait for.
            elsewhere: names of jobs that an earlier command has started and that are still at work: theirs are compared
                and not claimed.

        Raises:
            UserError: as :attr:`experiments`; a folder holds other results, or another process is at work there.
        """
        for experiment in self.experiments:
            if prefix + experiment.name in elsewhere:
                self._refuse_others(experiment)
            else:
                self._claim(experiment)
        jobs = []
        for experiment in sorted(self.experiments, key=lambda one: not TASKS[one.task].longest):
            folder = self.out / experiment.name
            if self._finished(experiment):
                logger.info("%s: reusing the results in %s (same settings)", experiment.name, folder)
                continue
            jobs.append(
                Job(
                    name=prefix + experiment.name,
                    module="s3prl_ekd.superb.run_experiment",
                    arguments=(str(folder),),
                    log=folder / "log.txt",
                    steps=experiment.steps,
                    after=after,
                    results=tuple(self._result(experiment, test.name) for test in experiment.tests),
                )
            )
        return jobs

    def rows(self) -> list[Row]:
        """The results, one row per task and test set; folds are averaged."""
        found: dict[tuple[str, Split, str], list[dict[str, Any]]] = {}
        for experiment in self.experiments:
            folder = self.out / experiment.name
            if self._differing(experiment):
                raise UserError(f"{folder} was begun with other settings meanwhile: start again with another --out")
            trained = _read(folder / run_experiment.TRAINED)
            weights = _read(folder / run_experiment.WEIGHTS)["sha256"]
            for test in experiment.tests:
                result = _read(self._result(experiment, test.name))
                seconds = trained["seconds"] + result["seconds"]
                entry = {**result, **trained, "seconds": seconds, "steps": experiment.steps, "weights": weights}
                entry["outcomes"] = self._result(experiment, test.name).with_name(OUTCOMES)
                found.setdefault((experiment.task, Split(test.split), test.name), []).append(entry)
        return [
            Row.from_folds(
                entries,
                task=task,
                split=str(split),
                test_set=name,
                metric=TASKS[task].metric,
                upstream=self.upstream,
                ckpt=self.ckpt,
                label=self.label or label_of(self.upstream, self.ckpt),
                seed=self.seed,
                corpus=self.corpora.recipes,
                weights=entries[0]["weights"],
                settings=self._all_settings(task, split),
                searched=task in self.searched,
                outcomes=_existing([entry["outcomes"] for entry in entries]),
            )
            for (task, split, name), entries in found.items()
        ]

    def _all_settings(self, task: str, split: Split) -> dict[str, Any]:
        """:attr:`Row.settings`; the data are named by their source, not by what is prepared from it in ``out``."""
        common = {name: getattr(self, name) for name in ("fine_tune", "remember_features", "device")}
        return {**common, "data": TASKS[task].data_identity(self.corpora, split), "downstream": self._template(task)}

    def _template(self, task: str) -> Settings:
        config = TASKS[task].template(self.corpora.recipes)
        for only, key, value in self.options:
            if only in (None, task):
                config = set_option(config, key, value)
        return with_steps(config, self.steps[task]) if task in self.steps else config

    def _claim(self, experiment: Experiment) -> None:
        """Write the experiment into its folder, unless a training or results with other settings are there."""
        folder = self.out / experiment.name
        with only_writer(folder):
            if run_experiment.begun(folder):
                self._refuse_others(experiment)
                run_experiment.check_weights(folder, self.ckpt)
            else:
                (folder / run_experiment.WEIGHTS).unlink(missing_ok=True)
            write_json(
                folder / run_experiment.EXPERIMENT, {"settings": self._settings, "experiment": asdict(experiment)}
            )

    def _refuse_others(self, experiment: Experiment) -> None:
        if differing := self._differing(experiment):
            raise UserError(
                f"{self.out / experiment.name} holds results of other settings"
                f" ({say_differences(differing, '{name}', ', ')}): give another --out, or delete that folder"
            )

    @property
    def _settings(self) -> dict[str, Any]:
        """Settings that all experiments share and results depend on."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in FREE}
        return {**values, "corpus": self.corpora.fingerprint}

    def _differing(self, experiment: Experiment) -> list[Difference]:
        """Settings that differ in the experiment's folder; one that was unknown when it was written had its default."""
        path = self.out / experiment.name / run_experiment.EXPERIMENT
        if not path.is_file():
            return []
        before = _read(path)
        defaults = {item.name: item.default for item in fields(self) if item.name not in FREE}
        there = {**defaults, **before["settings"], **before["experiment"]["config"]}
        return sorted(differences(there, {**self._settings, **experiment.config}))

    def _finished(self, experiment: Experiment) -> bool:
        """Whether each test set has its result. One whose data lies elsewhere now is to be judged again."""
        for test in experiment.tests:
            path = self._result(experiment, test.name)
            if path.is_file() and _read(path)["changes"] != test.changes:
                path.unlink()
        return all(self._result(experiment, test.name).is_file() for test in experiment.tests)

    def _result(self, experiment: Experiment, test: str) -> Path:
        return self.out / experiment.name / run_experiment.TESTS / test / run_experiment.RESULT


def label_of(upstream: str, ckpt: str | None) -> str:
    """A name in tables: the upstream, and the last two parts of where its weights are."""
    return upstream if ckpt is None else f"{upstream} ({'/'.join(Path(ckpt).parts[-2:])})"


def set_option(config: Settings, key: str, value: Any) -> Settings:
    """``config`` with one existing dotted key set to a value of its kind.

    Raises:
        UserError: there is no such key, or the value is of another kind.
    """
    old: Any = config
    path = key.split(".")
    for depth, part in enumerate(path, start=1):
        valid = old if isinstance(old, dict) else {}
        if part not in valid:
            raise UserError(f"--set {key}: no key {'.'.join(path[:depth])!r}; {nearest(part, valid)}")
        old = valid[part]
    if isinstance(old, float) and isinstance(value, int | str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 (no dot) as a string
            value = float(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"--set {key}: expected {type(old).__name__}, found {value!r}")
    return changed(config, {key: value})


def with_steps(config: Settings, steps: int) -> Settings:
    """``config`` with another number of steps; logs, evaluations and checkpoints come at least once."""
    runner = config["runner"]
    every = {f"runner.{name}": min(runner[name], steps) for name in ("log_step", "eval_step", "save_step")}
    return changed(config, {"runner.total_steps": steps, **every})


def _existing(paths: Sequence[Path]) -> tuple[str, ...]:
    """The files, if all are there: an earlier version kept no outcomes."""
    return tuple(map(str, paths)) if all(path.is_file() for path in paths) else ()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete the folder {path.parent} to make it anew") from error
