"""Waits for s3prl to be imported, and then makes it work: what ``s3prl-ekd plug`` runs at the start of Python.

Every start of Python in the environment pays for this module, so it imports nothing that is not loaded anyway.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType, TracebackType


also: list[str] = []
"""Functions, as ``module:name``, that are called once s3prl is patched, here and in the processes started from here."""


def _patch_s3prl(module: ModuleType) -> None:
    import pkgutil

    from s3prl_ekd.s3prl_plugin import compat

    report_user_errors()
    compat.apply()
    for name in also:
        pkgutil.resolve_name(name)()


def _patch_checkout(module: ModuleType) -> None:
    """For ``python run_pretrain.py`` in a checkout, which imports s3prl's parts at top level."""
    if hasattr(sys.modules.get("optimizers"), "_LRSchedule"):  # somebody else's 'pretrain.runner' is left alone
        from s3prl_ekd.s3prl_plugin import trust

        _patch_s3prl(module)
        trust.guard(module, trust.check_stock_pretraining)


def _guard_downstream(module: ModuleType) -> None:
    from s3prl_ekd.s3prl_plugin import trust

    trust.guard(module, trust.check_stock_downstream)


def _add_upstreams(module: ModuleType) -> None:
    from s3prl_ekd.s3prl_plugin import hub

    hub.register()


# Module -> what to do after it has been imported.
_AFTER: dict[str, Callable[[ModuleType], None]] = {}


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
        _AFTER[module.__name__](module)


def install(*names: str) -> None:
    """Start waiting for s3prl; once it is patched, the functions of these ``names`` are called (:data:`also`)."""
    also.extend(name for name in names if name not in also)
    after("s3prl", _patch_s3prl)
    after("s3prl.hub", _add_upstreams)
    after("s3prl.downstream.runner", _guard_downstream)
    after("pretrain.runner", _patch_checkout)


def after(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action`` with the module of this name once it is imported, or at once if it is there."""
    if name in sys.modules:
        action(sys.modules[name])
        return
    _AFTER[name] = action
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def report_user_errors() -> None:
    """Let an uncaught :class:`~s3prl_ekd.errors.UserError` end the process with one line instead of a traceback."""
    if getattr(sys.excepthook, "of_s3prl_ekd", False):
        return
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        from s3prl_ekd.errors import UserError
        from s3prl_ekd.s3prl_plugin.stock import close_event_files

        if isinstance(error, UserError):
            close_event_files(traceback)
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    excepthook.of_s3prl_ekd = True
    sys.excepthook = excepthook
