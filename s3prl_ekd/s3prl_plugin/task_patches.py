"""Two data sets of s3prl's downstream tasks that carry something from one use to the next, cured of it.

Both faults are as old as the tasks and still there in s3prl 0.4.18. Nothing else of the tasks is changed.
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any


def apply() -> None:
    """Apply both, once; s3prl must be importable."""
    _voxceleb1_file_lists()
    _ctc_workers()


def _voxceleb1_file_lists() -> None:
    """Give each data set of ``-d voxceleb1`` a cache of its own, for as long as it is built.

    s3prl pickles the lists of files it found into its own folder, under the name of the split alone: a second corpus
    silently gets the first one's files, site-packages must be writable, and runs at one time disturb each other.
    Finding the files takes seconds.
    """
    from s3prl.downstream.voxceleb1 import dataset

    _once(dataset.SpeakerClassifiDataset, "__init__", functools.partial(_build_with_new_cache, dataset))


def _build_with_new_cache(module: Any, original: Any, *args: Any, **kwargs: Any) -> None:
    before = module.CACHE_PATH
    with tempfile.TemporaryDirectory(prefix="voxceleb1-") as folder:
        module.CACHE_PATH = folder
        try:
            original(*args, **kwargs)
        finally:
            module.CACHE_PATH = before


def _ctc_workers() -> None:
    """Let every loader of ``-d ctc`` have the ``num_workers`` of the configuration.

    s3prl takes the key out of the configuration when it makes the first loader, so that later ones, and those of a
    resumed run, get 12.
    """
    from s3prl.downstream.ctc import data, expert

    _once(data, "load_dataset", _load_with_copy)
    expert.load_dataset = data.load_dataset


def _load_with_copy(original: Any, split: str, tokenizer: Any, corpus: dict[str, Any]) -> Any:
    return original(split, tokenizer, dict(corpus))


def _once(owner: Any, name: str, replacement: Any) -> None:
    """Put ``replacement(original, ...)`` in the place of ``owner.name``, unless that was done before."""
    original = getattr(owner, name)
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    setattr(owner, name, patched)
