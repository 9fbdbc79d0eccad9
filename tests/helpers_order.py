"""The order in which files of tests are run."""

from __future__ import annotations

import collections
from typing import Any

from helpers_models import TESTS

# The files that take longest, the longest first. pytest-xdist's workers take them in this order (`make test` says
# --no-loadscope-reorder), so that none is left with a long one when the others have nothing more to do.
LONGEST = (
    "shipped/test_documents.py",
    "superb/test_demo.py",
    "superb/test_jobs.py",
    "superb/test_command.py",
    "s3prl_plugin/test_pretrain_road.py",
    "s3prl_plugin/test_plug.py",
    "shipped/test_wheel.py",
    "shipped/test_shipped_recipes.py",
    "shipped/test_contributing.py",
    "superb/test_real_corpora.py",
    "s3prl_compat/test_new_processes.py",
    "training/test_resume.py",
    "training/test_run.py",
    "target_cache/test_cache_targets.py",
    "test_fuzz.py",
)


def longest_first(items: list[Any]) -> None:
    """Put the tests of the longest files first, those of the others by how many there are."""
    place = {TESTS / name: number for number, name in enumerate(LONGEST)}
    size = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (place.get(item.path, len(LONGEST)), -size[item.path], str(item.path)))
