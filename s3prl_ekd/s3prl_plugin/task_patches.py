"""Data sets of s3prl's downstream tasks: two that carry something from one use to the next, one that loses utterances.

These faults are as old as the tasks and still there in s3prl 0.4.18. Nothing else of the tasks is changed.
"""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path
from typing import Any

from s3prl_ekd.files import read_lines


def apply() -> None:
    """Apply all of them, once; s3prl must be importable."""
    _voxceleb1_file_lists()
    _ctc_workers()
    _asr_transcripts()


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


def _asr_transcripts() -> None:
    """Let ``-d asr`` read transcripts as everything here does.

    s3prl stops at a blank line; behind a byte order mark it does not know the utterance and leaves it out, silently.
    """
    from s3prl.downstream.asr import dataset

    dataset.open = _open_lines  # the module opens nothing else


def _open_lines(path: str | Path, mode: str = "r") -> io.StringIO:
    return io.StringIO("".join(f"{line}\n" for _, line in read_lines(path)))


def _once(owner: Any, name: str, replacement: Any) -> None:
    """Put ``replacement(original, ...)`` in the place of ``owner.name``, unless that was done before."""
    original = getattr(owner, name)
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    setattr(owner, name, patched)
