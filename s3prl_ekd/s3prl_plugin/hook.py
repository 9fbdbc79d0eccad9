"""What a plugged Python runs when it starts: s3prl, once imported, knows the student and what not to trust.

Every start of Python in the environment pays for this module, so it imports nothing that is not loaded anyway. Its
address stands in the line that plug writes, so it stays where it is.
"""

from __future__ import annotations

import sys

from s3prl_ekd.s3prl_compat import import_hook

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from types import ModuleType, TracebackType


def install() -> None:
    """Start waiting for s3prl, its hub and its runners, here and in the processes started from here."""
    name = f"{__name__}:{install.__name__}"
    if name not in import_hook.first:
        import_hook.first.append(name)
    import_hook.after("s3prl", _report_user_errors)
    import_hook.install()
    import_hook.after("s3prl.hub", _add_upstreams)
    import_hook.after("s3prl.downstream.runner", _guard_downstream)
    import_hook.after("pretrain.runner", _patch_checkout)


def _report_user_errors(module: ModuleType) -> None:
    report_user_errors()


def _patch_checkout(module: ModuleType) -> None:
    """For ``python run_pretrain.py`` in a checkout, which imports s3prl's parts at top level."""
    if hasattr(sys.modules.get("optimizers"), "_LRSchedule"):  # somebody else's 'pretrain.runner' is left alone
        from s3prl_ekd.s3prl_plugin import trust

        report_user_errors()
        import_hook.patch_s3prl(module)
        trust.guard(module, trust.check_stock_pretraining)


def _guard_downstream(module: ModuleType) -> None:
    from s3prl_ekd.s3prl_plugin import trust

    trust.guard(module, trust.check_stock_downstream)


def _add_upstreams(module: ModuleType) -> None:
    from s3prl_ekd.s3prl_plugin import hub

    hub.register()


def report_user_errors() -> None:
    """Let an uncaught :class:`~s3prl_ekd.errors.UserError` end the process with one line instead of a traceback."""
    if getattr(sys.excepthook, "of_s3prl_ekd", False):
        return
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        from s3prl_ekd.errors import UserError
        from s3prl_ekd.s3prl_plugin.runners.support import close_event_files

        if isinstance(error, UserError):
            close_event_files(traceback)
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    excepthook.of_s3prl_ekd = True
    sys.excepthook = excepthook
