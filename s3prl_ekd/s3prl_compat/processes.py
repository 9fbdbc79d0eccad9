"""Lets the processes that multiprocessing starts, by whatever method, run s3prl as the process that starts them.

A forked process inherits the patches. One that is started anew (``spawn``, ``forkserver``), such as a data loader's
worker on macOS, imports s3prl when it unpickles what it has to do, and nothing of ours would run there before. But
multiprocessing first sends it a mapping that prepares it (``multiprocessing.spawn.get_preparation_data``). That mapping
gets three entries more, which act when they are unpickled and are then ignored: the first makes this package
importable, the others let our import hook wait for s3prl as it does here.
"""

from __future__ import annotations

import functools
import multiprocessing.spawn
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_ekd.s3prl_compat import import_hook


class _Call:
    """Unpickled, it is what ``function(*arguments)`` returns there."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def reach_new_processes() -> bool:
    """Let every process that this one starts, and their own, be patched; returns False if they are already."""
    original = multiprocessing.spawn.get_preparation_data
    if hasattr(original, "of_s3prl_ekd"):
        return False

    @functools.wraps(original)
    def get_preparation_data(name: str) -> dict[str, Any]:
        ours = {
            "s3prl_ekd": _Call(runpy.run_path, str(Path(__file__).with_name("new_process.py"))),
            "s3prl_ekd.first": _Call(import_hook.call, *import_hook.first),
            "s3prl_ekd.also": _Call(import_hook.install, *import_hook.also),
        }
        data = original(name)
        if str(data.get("init_main_from_name")).startswith("s3prl."):
            del data["init_main_from_name"]  # a script that defines nothing for a worker, and takes seconds to import
        return ours | data

    get_preparation_data.of_s3prl_ekd = True
    multiprocessing.spawn.get_preparation_data = get_preparation_data
    return True
