"""Puts this package's upstreams among s3prl's."""

from __future__ import annotations

import importlib
from typing import Any

from s3prl_ekd.s3prl_plugin import compat

NAMES = ("ekd_student", "ekd_student_mini")


def register() -> None:
    """Let ``s3prl.hub``, and with it s3prl's runners and ``s3prl.nn.S3PRLUpstream``, find :data:`NAMES`."""
    compat.apply()
    with compat.quiet():
        # Not `import s3prl.hub`: in the middle of its own import the package does not have the attribute yet.
        s3prl_hub = importlib.import_module("s3prl.hub")
    for name in NAMES:
        setattr(s3prl_hub, name, _entry(name))


def _entry(name: str) -> Any:
    def entry(*args: Any, **kwargs: Any) -> Any:
        from s3prl_ekd import upstream

        return getattr(upstream, name)(*args, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"See :func:`s3prl_ekd.upstream.{name}`."
    return entry
