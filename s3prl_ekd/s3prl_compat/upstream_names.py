"""s3prl's upstreams by their names: which there are, and which of them load a file that the user names."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from s3prl_ekd.errors import UserError

# Upstreams that load the file (or address, or hub id) the user names; all others bring their own address.
_TAKE_FILE, _FETCH = ("_local", "_custom"), ("_url", "_gdriveid")


def takes_file(name: str) -> bool:
    """Whether the upstream loads weights that the user has to name."""
    return name.endswith(_TAKE_FILE + _FETCH)


def with_file(name: str, options: Sequence[str]) -> str | None:
    """The upstream of ``name``'s family that loads a file: ``hubert_local`` for ``hubert_base_robust_mgr``."""
    families = [option for option in options if option.endswith("_local") and name.startswith(option[: -len("_local")])]
    return max(families, key=len, default=None)


def check_file(name: str, ckpt: str | None, *, options: tuple[str, str]) -> None:
    """Check the weights of an upstream that loads them from a file, as far as that needs no look into it.

    Args:
        name: the upstream.
        ckpt: its weights, if any were named.
        options: how both were given, for the message, such as ``("-u", "-k")``.

    Raises:
        UserError: they are not named, or there is no such file.
    """
    if not takes_file(name):
        return
    if ckpt is None:
        raise UserError(f"{options[0]} {name} needs {options[1]}: its weights")
    elsewhere = name.endswith(_FETCH) or name.startswith("hf_") or "://" in ckpt
    if not elsewhere and not Path(ckpt).exists():
        raise UserError(f"{options[1]} {ckpt}: no such file or folder (working folder: {Path.cwd()})")


def s3prl_folder() -> Path | None:
    """Where s3prl is installed, None if it is not; it is not imported for that."""
    spec = importlib.util.find_spec("s3prl")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def names() -> set[str]:
    """All upstreams of s3prl: the functions that its ``hub.py`` imports from its upstreams' ``hubconf.py``.

    The source is read for that: to import it takes seconds.
    """
    folder = s3prl_folder()
    if folder is None:
        return set()
    found = set()
    for module, name in _imports(folder / "hub.py"):
        if name == "*":
            file = folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
            found |= {node.name for node in _statements(file) if isinstance(node, ast.FunctionDef)}
            found |= {name for _, name in _imports(file)}
        else:
            found.add(name)
    return {name for name in found if not name.startswith("_")}


def _imports(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name there, or ``*``) of what a file imports from a ``hubconf``."""
    for node in _statements(file):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith("hubconf"):
            for alias in node.names:
                yield node.module, alias.asname or alias.name


def _statements(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
