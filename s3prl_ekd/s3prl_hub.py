"""Puts this package's upstreams among s3prl's."""

from __future__ import annotations

import importlib
from typing import Any

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.s3prl_compat import import_hook, patches, upstream_names

NAMES = ("ekd_student", "ekd_student_mini")


def register() -> None:
    """Let ``s3prl.hub``, and with it s3prl's runners and ``s3prl.nn.S3PRLUpstream``, find :data:`NAMES`."""
    patches.apply()
    import_hook.repeat_in_new_processes(f"{__name__}:{wait.__name__}")
    with patches.quiet():
        # Not `import s3prl.hub`: in the middle of its own import the package does not have the attribute yet.
        s3prl_hub = importlib.import_module("s3prl.hub")
    for name in NAMES:
        setattr(s3prl_hub, name, _entry(name))


def wait() -> None:
    """:func:`register` once s3prl's hub is imported."""
    import_hook.after("s3prl.hub", lambda hub: register())


def _entry(name: str) -> Any:
    def entry(*args: Any, **kwargs: Any) -> Any:
        from s3prl_ekd import upstream

        return getattr(upstream, name)(*args, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"See :func:`s3prl_ekd.upstream.{name}`."
    return entry


def check_name(name: str, option: str) -> None:
    """Refuse an upstream, given by ``option``, that does not exist; s3prl is not imported for that.

    Raises:
        UserError: neither s3prl's hub nor this package has it.
    """
    theirs = upstream_names.names()
    if theirs and name not in theirs.union(NAMES):
        hint = nearest(name, theirs.union(NAMES)).partition("valid:")[0].strip()  # the whole list is some 200 names
        hint = hint or "python -m s3prl_ekd.run_downstream -h lists them"
        raise UserError(f"{option} {name}: s3prl has no such upstream; {hint}")
