"""Emotion recognition on IEMOCAP, one experiment per fold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s3prl_ekd.tasks import iemocap
from s3prl_ekd.tasks.corpora import Corpora, Input, Split
from s3prl_ekd.tasks.task import Experiment, Settings, Task, TestSet, filled_in, in_section

IEMOCAP = Input(name="iemocap", option="--iemocap", help="IEMOCAP_full_release (ER)", mini="IEMOCAP")
LABELS = Input(name="iemocap_labels", mini="IEMOCAP/meta_data")
_FOLDS = {"mini": ("fold1",), "real": tuple(f"fold{number}" for number in range(1, 6))}


def _plan(corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path) -> Iterable[Experiment]:
    root = corpora.path(IEMOCAP)
    labels = corpora.path(LABELS) if corpora.get(LABELS) else iemocap.write_folds(root, folder / "iemocap")
    tests = [TestSet(name="test", split=Split.PUBLIC)] if Split.PUBLIC in splits else []
    if Split.HIDDEN in splits:
        folders = ("IEMOCAP-hidden", "IEMOCAP_full_release", "IEMOCAP")
        expected = f"IEMOCAP-hidden/{iemocap.TEST_LABELS} or IEMOCAP_full_release/SessionN/dialog/EmoEvaluation/*.txt"
        hidden = corpora.hidden(folders, iemocap.has_labels, expected)
        hidden_labels = iemocap.test_only(hidden, folder / "iemocap-hidden")
        changes = in_section("datarc", {"root": hidden, "meta_data": hidden_labels, "test_fold": "fold1"})
        tests.append(TestSet(name="hidden", split=Split.HIDDEN, changes=changes))
    folds = _FOLDS[corpora.recipes]
    for fold in folds:
        config = filled_in(template, "datarc", {"root": root, "meta_data": labels, "test_fold": fold})
        name = "er" if len(folds) == 1 else f"er-{fold}"
        yield Experiment(name=name, task="er", config=config, tests=tuple(tests))


TASK = Task(
    name="er",
    downstream="emotion",
    inputs=(IEMOCAP,),
    more_inputs=(LABELS,),
    hidden="IEMOCAP-hidden",
    plan=_plan,
    answers=("test_fold*_predict.txt", "test_fold*_truth.txt"),
    by_default=True,
)
