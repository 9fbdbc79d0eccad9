"""What a downstream task is: all that the evaluation and s3prl's runner need to know of it, in one :class:`Task`."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from s3prl_ekd import assets
from s3prl_ekd.config.base import set_value
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.tasks.corpora import HIDDEN, Corpora, Input, Split
from s3prl_ekd.tasks.scores import Outcome, accuracy

Settings = dict[str, Any]
"""A configuration of s3prl's downstream runner, as its YAML gives it."""

RATE = "optimizer.lr"
"""The learning rate's key in a configuration."""
OFF_CHANCE_ERRORS = 3.0
"""A score is off chance when it is better by this many standard errors of chance."""
TOLERANCE = 0.01
"""Percent by which the printed score may differ from the one computed anew from the answers."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """One set of utterances that judges a trained downstream model."""

    __test__ = False  # pytest collects classes named Test*

    name: str
    """Its name in tables, such as ``test-noisy``."""
    split: str
    """``public`` or ``hidden``."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of the training configuration and their values for this test."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training of s3prl's runner and its evaluations."""

    name: str
    """Also its folder, such as ``pr`` or ``er-fold3``."""
    task: str
    """:attr:`Task.name`."""
    config: Settings
    """Complete configuration of the training."""
    tests: tuple[TestSet, ...]
    """What judges it."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        return self.config["runner"]["total_steps"]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Experiment:
        """The inverse of :func:`dataclasses.asdict`."""
        return cls(**{**mapping, "tests": tuple(TestSet(**test) for test in mapping["tests"])})


Plan = Callable[[Corpora, frozenset[Split], Settings, Path], Iterable[Experiment]]
"""(corpora, splits, template, folder for prepared files) -> experiments."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A downstream task. The defaults are those of s3prl's tasks that classify utterances.

    Its configurations are ``recipes/downstream/{mini,real}/NAME.yaml``, without the paths that :attr:`plan` fills in.
    """

    name: str
    """On the command line and in results; in capitals in tables."""
    downstream: str
    """The task's name for s3prl's ``-d``."""
    inputs: tuple[Input, ...]
    """What must be given."""
    more_inputs: tuple[Input, ...] = ()
    """What may be given, and changes the data too."""
    hidden: str
    """Where the hidden test sets are below ``--hidden`` in the mini corpus."""
    hidden_trains: bool = False
    """Whether a hidden test set has training data of its own, and needs nothing but ``--hidden``."""
    plan: Plan
    """What there is to train and to judge; raises a UserError where data is missing or malformed."""
    metric: str = "accuracy"
    """Name of the score, which is in percent."""
    higher_is_better: bool = True
    """Whether more is better."""
    score: Callable[[Sequence[str], Sequence[str]], Outcome] = accuracy
    """(answers, references) -> score, chance and their standard errors."""
    evaluate_split: str = "test"
    """What ``-t`` must be."""
    best: str = "dev-best.ckpt"
    """Name of the checkpoint that s3prl keeps of the best evaluation."""
    printed: str = "test acc"
    """What comes before the score in the runner's output."""
    scale: float = 100
    """From the printed score to percent."""
    answers: tuple[str, str] = ("test_predict.txt", "test_truth.txt")
    """Files of answers and of references in the experiment's folder (glob patterns)."""
    separator: str = " "
    """What stands between an utterance's name and its answer there."""
    lists: str = ""
    """Section of ``downstream_expert`` where users name lists of data as they like; empty: the names are fixed."""
    longest: bool = False
    """Whether to start it first, so that no core waits for it at the end."""
    by_default: bool = False
    """Whether it is evaluated where no tasks are named."""

    def template(self, recipes: str) -> Settings:
        """The configuration that comes with the package for ``mini`` or ``real`` corpora, with no path filled in."""
        return copy.deepcopy(_template(recipes, self.name))

    def needed(self, split: Split) -> tuple[Input, ...]:
        """What must be given for the tests in ``split``."""
        if split == Split.PUBLIC:
            return self.inputs
        return (HIDDEN,) if self.hidden_trains else (*self.inputs, HIDDEN)

    def experiments(
        self, corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path
    ) -> list[Experiment]:
        """The experiments whose tests lie in ``splits``; lexicons and lists that must be made go to ``folder``.

        Raises:
            UserError: data is missing or malformed.
        """
        return [experiment for experiment in self.plan(corpora, splits, template, folder) if experiment.tests]

    def data_identity(self, corpora: Corpora, split: Split) -> dict[str, Any]:
        """What tells the data of the task and of its tests in ``split`` from other data: the corpus's fingerprint if it
        has one, or else the folders given, and of files what is in them."""
        if corpora.fingerprint:
            return {"fingerprint": corpora.fingerprint}
        return {one.name: corpora.identity(one) for one in (*self.needed(split), *self.more_inputs)}

    def off_chance(self, value: float, chance: float, chance_error: float) -> bool:
        """Whether ``value`` is better than chance by :data:`OFF_CHANCE_ERRORS` standard errors."""
        gain = value - chance if self.higher_is_better else chance - value
        return gain > OFF_CHANCE_ERRORS * chance_error

    def percent(self, errors: Any, lengths: Any) -> Any:
        """The score of so many errors on so many tokens, in percent; numbers, or arrays of them."""
        rate = 100 * errors / lengths
        return 100 - rate if self.higher_is_better else rate

    def outcome(self, folder: Path, output: str) -> Outcome:
        """The score of an evaluation by s3prl's runner, which must be the one of the answers that it wrote.

        Args:
            folder: where the runner left its answers.
            output: what it printed.

        Raises:
            UserError: no score was printed, or it is not that of the answers.
        """
        printed = re.findall(rf"^{re.escape(self.printed)}: (\S+)$", output, flags=re.MULTILINE)
        if not printed:
            raise UserError(f"{folder}: s3prl's runner printed no '{self.printed}'")
        value = self.scale * float(printed[-1])
        answers, references = (_lines(folder, pattern, self.separator) for pattern in self.answers)
        found = self.score([answer for _, answer in answers], [reference for _, reference in references])
        if not abs(value - found.value) <= TOLERANCE:
            raise UserError(f"{folder}: s3prl's runner printed {value:.3f} % but its answers score {found.value:.3f} %")
        return replace(found, value=value, names=tuple(name for name, _ in references))


@functools.cache  # a grid asks for it once per unit
def _template(recipes: str, name: str) -> Settings:
    return read_yaml(assets.recipe(f"downstream/{recipes}/{name}.yaml"))


def _lines(folder: Path, pattern: str, separator: str) -> list[tuple[str, str]]:
    """The utterance's name and what follows it, of each line of the one file that fits ``pattern``."""
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        raise UserError(f"{folder}: expected one file {pattern}, found {len(paths)}")
    parts = [line.partition(separator) for line in paths[0].read_text(encoding="utf-8").splitlines()]
    return [(name, text.strip()) for name, _, text in parts]


def changed(config: Settings, changes: Mapping[str, Any]) -> Settings:
    """A deep copy of ``config`` with dotted keys set."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        set_value(config, key, value)
    return config


def filled_in(template: Settings, section: str, values: Mapping[str, Any]) -> Settings:
    """A copy of ``template`` with ``values`` in a section of ``downstream_expert``, paths as plain text."""
    return changed(template, in_section(section, values))


def in_section(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of ``values`` in a section of ``downstream_expert``, paths as plain text."""
    return {
        f"downstream_expert.{section}.{key}": str(value) if isinstance(value, Path) else value
        for key, value in values.items()
    }
