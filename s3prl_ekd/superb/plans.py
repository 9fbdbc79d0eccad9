"""Which experiments there are on some corpora, found out once per task, however many evaluations ask.

Finding out reads transcripts and looks for audio, minutes on the real corpora; a learning rate changes nothing of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from s3prl_ekd.superb.summary import canonical
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.corpora import Corpora, Split
from s3prl_ekd.tasks.task import RATE, Experiment, Settings, changed


class Plans:
    """The experiments of each task.

    Args:
        corpora: where the data is.
        splits: which test sets judge.
        folder: where lexicons, lists and folds are written.
    """

    def __init__(self, corpora: Corpora, splits: frozenset[Split], folder: Path) -> None:
        self._corpora, self._splits, self._folder = corpora, splits, folder
        self._known: dict[str, list[Experiment]] = {}

    def experiments(self, task: str, template: Settings) -> list[Experiment]:
        """The experiments of a task whose configuration starts from ``template``.

        Raises:
            UserError: data is missing or malformed.
        """
        rate = template["optimizer"]["lr"]
        key = canonical([task, changed(template, {RATE: None})])
        if key not in self._known:
            self._known[key] = TASKS[task].experiments(self._corpora, self._splits, template, self._folder)
        return [replace(one, config=changed(one.config, {RATE: rate})) for one in self._known[key]]
