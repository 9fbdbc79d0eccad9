"""Paths of the files that come with the package: weights, vocabularies, recipes."""

from __future__ import annotations

from pathlib import Path

from s3prl_ekd.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the top-level recipes/ as s3prl_ekd/recipes/; a checkout has it beside s3prl_ekd/.
_RECIPES = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


def folder(name: str) -> Path:
    """The packaged file or folder ``s3prl_ekd/assets/<name>``."""
    path = _PACKAGE / "assets" / name
    if not path.exists():
        raise UserError(f"{path} is missing: the installation is incomplete, reinstall s3prl-ekd")
    return path


def recipe(name: str = "") -> Path:
    """The packaged file or folder ``recipes/<name>``."""
    for root in _RECIPES:
        if (root / name).exists():
            return root / name
    raise UserError(f"no recipe {name!r} comes with s3prl-ekd; look into {next(r for r in _RECIPES if r.exists())}")
