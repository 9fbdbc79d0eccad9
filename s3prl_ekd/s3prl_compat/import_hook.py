"""Waits for s3prl to be imported, and then makes it work.

Every start of Python in a plugged environment pays for this module, so it imports nothing that is not loaded anyway.
Functions are named as ``module:function`` here: a name can be sent to another process, and costs no import.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

after_patches: list[str] = []
"""Functions to call once s3prl is patched, here and in the processes started from here."""
in_new_processes: list[str] = []
"""Functions that a process started from here calls before it does anything else."""


def call(*functions: str) -> None:
    """Call these functions."""
    import pkgutil

    for function in functions:
        pkgutil.resolve_name(function)()


def repeat_in_new_processes(function: str) -> None:
    """Have a function called in every process that is started from here (:data:`in_new_processes`)."""
    if function not in in_new_processes:
        in_new_processes.append(function)


def patch_s3prl(module: ModuleType) -> None:
    """Apply all patches, and call what is in :data:`after_patches`."""
    from s3prl_ekd.s3prl_compat import patches

    patches.apply()
    call(*after_patches)


# Module -> what to do after it has been imported.
_AFTER: dict[str, list[Callable[[ModuleType], None]]] = {}


class _Finder:
    """First in ``sys.meta_path``: lets the others find, and only adds something to do afterwards."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _AFTER:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _Finder) else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _act_after(spec.loader)
                return spec
        return None


def _act_after(loader: Loader) -> None:
    """Have this loader, once, do what is in :data:`_AFTER` when it has imported a module."""
    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)
        original(module)
        for action in _AFTER[module.__name__]:
            action(module)

    vars(loader)["exec_module"] = exec_module


def install(*functions: str) -> None:
    """Start waiting for s3prl; once it is patched, these functions are called (:data:`after_patches`)."""
    after_patches.extend(function for function in functions if function not in after_patches)
    after("s3prl", patch_s3prl)


def after(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action`` with the module of this name once it is imported, or at once if it is there."""
    if name in sys.modules:
        action(sys.modules[name])
        return
    actions = _AFTER.setdefault(name, [])
    if action not in actions:
        actions.append(action)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
