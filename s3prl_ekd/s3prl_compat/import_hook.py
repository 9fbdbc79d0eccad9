"""Waits for s3prl to be imported, and then makes it work.

Every start of Python in a plugged environment pays for this module, so it imports nothing that is not loaded anyway.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

also: list[str] = []
"""Functions, as ``module:name``, that are called once s3prl is patched, here and in the processes started from here."""
first: list[str] = []
"""Functions, as ``module:name``, that a process started from here calls before it does anything else."""


def call(*names: str) -> None:
    """Call these functions, given as ``module:name``."""
    import pkgutil

    for name in names:
        pkgutil.resolve_name(name)()


def patch_s3prl(module: ModuleType) -> None:
    """Apply all patches, and call what is in :data:`also`."""
    from s3prl_ekd.s3prl_compat import patches

    patches.apply()
    call(*also)


# Module -> what to do after it has been imported.
_AFTER: dict[str, list[Callable[[ModuleType], None]]] = {}


class _Finder:
    """First in ``sys.meta_path``: lets the others find, and only adds something to do afterwards."""

    def find_spec(self, name: str, path: object = None, target: object = None):
        if name not in _AFTER:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _Finder) else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    def __init__(self, loader: object) -> None:
        self._loader = loader

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec: object) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # from here on it is as if we had not been there
        self._loader.exec_module(module)
        for action in _AFTER[module.__name__]:
            action(module)


def install(*names: str) -> None:
    """Start waiting for s3prl; once it is patched, the functions of these ``names`` are called (:data:`also`)."""
    also.extend(name for name in names if name not in also)
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
