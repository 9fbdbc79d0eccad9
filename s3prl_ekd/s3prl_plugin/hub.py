"""Puts this package's upstreams among s3prl's."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.s3prl_compat import import_hook, patches

NAMES = ("ekd_student", "ekd_student_mini")
_HOOK = "s3prl_ekd.s3prl_plugin.hook:install"


def register() -> None:
    """Let ``s3prl.hub``, and with it s3prl's runners and ``s3prl.nn.S3PRLUpstream``, find :data:`NAMES`."""
    patches.apply()
    if _HOOK not in import_hook.first:
        import_hook.first.append(_HOOK)  # a process started from here has its hub
    with patches.quiet():
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


def check_name(name: str, option: str) -> None:
    """Refuse an upstream that there is not, without importing s3prl, which takes seconds.

    Args:
        name: as for s3prl's ``-u``.
        option: where it was given, for the message.

    Raises:
        UserError: neither s3prl's hub nor this package has it.
    """
    theirs = {found for found in _names_in_s3prl() if not found.startswith("_")}
    if theirs and name not in {*theirs, *NAMES}:
        hint = nearest(name, theirs | set(NAMES)).partition("valid:")[0].strip()  # the whole list is some 200 names
        raise UserError(
            f"{option} {name}: s3prl has no such upstream; {hint or 'python -m s3prl_ekd.run_downstream -h lists them'}"
        )


def _names_in_s3prl() -> Iterator[str]:
    """The functions that ``s3prl/hub.py`` imports from its upstreams' ``hubconf.py``, as their source says."""
    spec = importlib.util.find_spec("s3prl")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else Path()
    for module, name in _imports(folder / "hub.py"):
        if name != "*":
            yield name
            continue
        file = folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
        yield from (node.name for node in _statements(file) if isinstance(node, ast.FunctionDef))
        yield from (name for _, name in _imports(file))


def _imports(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name there, or ``*``) of what a file imports from a ``hubconf``."""
    for node in _statements(file):
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("hubconf"):
            yield from ((node.module, alias.asname or alias.name) for alias in node.names)


def _statements(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
