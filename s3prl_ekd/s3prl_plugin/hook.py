"""What a plugged Python runs when it starts: s3prl, once imported, knows the student and what not to trust.

Every start of Python in the environment pays for this module, so it imports nothing that is not loaded anyway. The line
that ``s3prl-ekd plug`` writes into an environment names this module and :func:`install`, so both keep their names.
"""

from __future__ import annotations

import sys

from s3prl_ekd.s3prl_compat import import_hook

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from types import ModuleType, TracebackType


def install() -> None:
    """Start waiting for s3prl, its hub and its runners, here and in the processes started from here."""
    import_hook.repeat_in_new_processes(f"{__name__}:{install.__name__}")
    import_hook.after("s3prl", lambda s3prl: report_user_errors())
    import_hook.install()
    import_hook.after("s3prl.hub", _add_upstreams)
    import_hook.after("s3prl.downstream.runner", _prepare_downstream)
    import_hook.after("pretrain.runner", _prepare_checkout)


def _prepare_checkout(module: ModuleType) -> None:
    """For ``python run_pretrain.py`` in a checkout, which imports s3prl's parts at top level."""
    if hasattr(sys.modules.get("optimizers"), "_LRSchedule"):  # somebody else's 'pretrain.runner' is left alone
        from s3prl_ekd.s3prl_plugin.runners import guard

        report_user_errors()
        import_hook.patch_s3prl(module)
        guard.guard(module, guard.check_pretraining)


def _prepare_downstream(module: ModuleType) -> None:
    from s3prl_ekd.s3prl_compat import task_patches
    from s3prl_ekd.s3prl_plugin.runners import guard

    task_patches.apply()
    guard.guard(module, guard.check_downstream)


def _add_upstreams(module: ModuleType) -> None:
    from s3prl_ekd import s3prl_hub

    s3prl_hub.register()


def report_user_errors() -> None:
    """Let an uncaught :class:`~s3prl_ekd.errors.UserError` end the process with one line instead of a traceback."""
    previous = sys.excepthook
    if getattr(previous, "__module__", "") == __name__:
        return

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        from s3prl_ekd.errors import UserError
        from s3prl_ekd.s3prl_plugin.runners.stock_process import close_event_files

        if isinstance(error, UserError):
            close_event_files(traceback)
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = excepthook
