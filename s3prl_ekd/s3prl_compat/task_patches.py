"""Faults in the data sets of s3prl's downstream tasks, mended.

They are as old as the tasks and still there in s3prl 0.4.18. Nothing else of the tasks is changed.
"""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ekd.files import read_lines
from s3prl_ekd.s3prl_compat import import_hook
from s3prl_ekd.s3prl_compat.patches import replaced


def apply() -> None:
    """Let each be mended when it is imported, or now; may be called repeatedly."""
    import_hook.after("s3prl.downstream.voxceleb1.dataset", _voxceleb1_file_lists)
    import_hook.after("s3prl.downstream.ctc.expert", _ctc_workers)
    import_hook.after("s3prl.downstream.asr.dataset", _text_files)
    import_hook.after("s3prl.downstream.speech_commands.dataset", _sorted_files)
    import_hook.after("s3prl.downstream.speech_commands.expert", _sorted_files)


def _voxceleb1_file_lists(dataset: ModuleType) -> None:
    """Give each data set of ``-d voxceleb1`` a cache of its own, for as long as it is built.

    s3prl pickles the lists of files it found into its own folder, under the name of the split alone: a second corpus
    silently gets the first one's files, site-packages must be writable, and runs at one time disturb each other.
    Finding the files takes seconds.
    """

    def build_with_new_cache(original: Any, *args: Any, **kwargs: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="voxceleb1-") as folder, replaced(dataset, CACHE_PATH=folder):
            original(*args, **kwargs)

    _text_files(dataset)
    _once(dataset.SpeakerClassifiDataset, "__init__", build_with_new_cache)


def _ctc_workers(expert: ModuleType) -> None:
    """Let every loader of ``-d ctc`` have the ``num_workers`` of the configuration.

    s3prl takes the key out of the configuration when it makes the first loader, so that later ones, and those of a
    resumed run, get 12.
    """
    _once(expert, "load_dataset", lambda original, split, tokenizer, corpus: original(split, tokenizer, dict(corpus)))


def _text_files(dataset: ModuleType) -> None:
    """Let the split list of ``-d voxceleb1`` and the transcripts of ``-d asr`` be read as everything here reads text.

    s3prl stops at a blank line and decodes as the locale says; behind a byte order mark it does not know the first
    utterance and leaves it out, silently.
    """
    vars(dataset)["open"] = _open


def _open(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    if mode != "r":
        return open(path, mode, *args, **kwargs)
    return io.StringIO("".join(f"{line}\n" for _, line in read_lines(path)))


def _sorted_files(module: ModuleType) -> None:
    """Let ``-d speech_commands`` list its files in one order everywhere, without those that macOS puts beside them."""
    vars(module)["Path"] = _SortedPath


class _SortedPath(type(Path())):  # type: ignore[misc]  # the class that Path makes on this system
    """A path whose folder has its visible entries only, sorted by name."""

    def iterdir(self) -> Iterator[Path]:
        return iter(sorted(path for path in super().iterdir() if not path.name.startswith(".")))

    def glob(self, pattern: str) -> Iterator[Path]:
        return iter(sorted(path for path in super().glob(pattern) if not path.name.startswith(".")))


def _once(owner: Any, name: str, replacement: Any) -> None:
    """Put ``replacement(original, ...)`` in the place of ``owner.name``, unless that was done before."""
    original = getattr(owner, name)
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    setattr(owner, name, patched)
