"""Lets the processes that multiprocessing starts, by whatever method, run s3prl as the process that starts them.

A forked process inherits the patches. One that is started anew (``spawn``, ``forkserver``), such as a data loader's
worker on macOS, imports s3prl when it unpickles what it has to do, and nothing of ours would run there before. But
multiprocessing first sends it a mapping that prepares it (``multiprocessing.spawn.get_preparation_data``). We add three
entries to that mapping. Each is an object that, while it is unpickled in the new process, calls a function; what comes
out is then ignored. The first entry makes this package importable, the second calls
:data:`~.import_hook.in_new_processes`, the third starts waiting for s3prl as :func:`.import_hook.install` does here.
"""

from __future__ import annotations

import multiprocessing.spawn
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_ekd.s3prl_compat import import_hook


class _Call:
    """Becomes what ``function(*arguments)`` returns where it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def reach_new_processes() -> bool:
    """Let every process that this one starts, and their own, be patched; returns False if they are already."""
    original = multiprocessing.spawn.get_preparation_data
    if original.__module__ == __name__:
        return False

    def get_preparation_data(name: str) -> dict[str, Any]:
        ours = {
            "s3prl_ekd": _Call(runpy.run_path, str(Path(__file__).with_name("new_process.py"))),
            "s3prl_ekd.in_new_processes": _Call(import_hook.call, *import_hook.in_new_processes),
            "s3prl_ekd.after_patches": _Call(import_hook.install, *import_hook.after_patches),
        }
        data = original(name)
        if str(data.get("init_main_from_name")).startswith("s3prl."):
            del data["init_main_from_name"]  # a script that defines nothing for a worker, and takes seconds to import
        return ours | data

    multiprocessing.spawn.get_preparation_data = get_preparation_data
    return True
