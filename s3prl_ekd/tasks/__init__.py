"""The downstream tasks of SUPERB that this package knows, one :class:`~s3prl_ekd.tasks.task.Task` per module.

A room below ``superb``, which trains and judges the tasks, and below ``s3prl_plugin``, which checks what users give to
s3prl's runner: both look up here what a task is, and neither needs the other for it. Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Iterable

from s3prl_ekd.errors import UserError
from s3prl_ekd.tasks import asr, er, ks, pr, sid
from s3prl_ekd.tasks.corpora import HIDDEN, Corpora, Input, Split
from s3prl_ekd.tasks.task import Task

TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in (pr, sid, er, asr, ks)}
"""By name, in the order of tables. A new task is registered by one more module here."""
BY_DOWNSTREAM: dict[str, Task] = {task.downstream: task for task in TASKS.values()}
"""By s3prl's name for it (``-d``)."""
DEFAULT: tuple[str, ...] = tuple(task.name for task in TASKS.values() if task.by_default)
"""Names of the tasks that are evaluated where none are named."""


def inputs() -> list[Input]:
    """What all tasks read, each input once, the hidden test sets last."""
    every = {one.name: one for task in TASKS.values() for one in (*task.inputs, *task.more_inputs)}
    return [*every.values(), HIDDEN]


def require_given(names: Iterable[str], corpora: Corpora, splits: frozenset[Split]) -> None:
    """Make sure that ``corpora`` names all that the tests of the tasks ``names`` in ``splits`` need.

    Raises:
        UserError: it does not; the message has all that is missing.
    """
    needed = {one.name for name in names for split in splits for one in TASKS[name].needed(split)}
    missing = [one for one in inputs() if one.name in needed and not corpora.has(one)]
    if missing:
        options = ", ".join(_shown(one) for one in missing)
        raise UserError(f"missing: {options}; --tasks chooses the tasks that need no others")


def _shown(one: Input) -> str:
    hint = f"{one.hint}, or {one.instead.option} instead" if one.instead else one.hint
    if one is HIDDEN:
        *folders, last = dict.fromkeys(task.hidden for task in TASKS.values())
        hint = f"with {', '.join(folders)} and {last}, or the original layouts"
    return f"{one.option} {one.metavar}{f' ({hint})' if hint else ''}"
