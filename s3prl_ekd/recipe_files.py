"""``s3prl-ekd recipes``: the recipes that come with the package, copies of them to edit, and their files by name."""

from __future__ import annotations

import argparse
import difflib
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from s3prl_ekd import assets
from s3prl_ekd.errors import UserError, nearest

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="one of the list, such as ls960_ekd_average (default: print the list)"
    )
    parser.add_argument(
        "out", nargs="?", metavar="DIR", type=Path, help="new folder for a copy (default: print where the recipe is)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the list, or copy one folder.

    Raises:
        UserError: there is no such recipe, or ``out`` exists.
    """
    found = folders()
    if args.name is None:
        for name, folder in found.items():
            print(f"{name:26s} {'  '.join(path.name for path in _files(folder.glob))}")
        print(f"\nin {assets.recipe()}\ns3prl-ekd recipes NAME DIR copies one")
        return 0
    if args.name not in found:
        raise UserError(f"no recipe {args.name!r}; {nearest(args.name, found)}")
    if args.out is None:
        print(found[args.name])
        return 0
    if args.out.exists():
        raise UserError(f"{args.out} exists; name another folder to copy the recipe to")
    shutil.copytree(found[args.name], args.out, ignore=shutil.ignore_patterns("__pycache__"))
    print(args.out)
    return 0


def folders() -> dict[str, Path]:
    """Folders that hold YAML or job scripts, by their path below ``recipes/``."""
    root = assets.recipe()
    return {str(folder.relative_to(root)): folder for folder in sorted({path.parent for path in _files(root.rglob)})}


def find(path: str, where: str = "") -> str:
    """A YAML file of the user's, or else the packaged one of that name, which is said in the log.

    Args:
        path: a path, or below ``recipes/``, such as ``mini/ekd.yaml`` (``recipes/mini/ekd.yaml`` too).
        where: the option it belongs to, for the message.

    Raises:
        UserError: neither (said with the nearest packaged one).
    """
    if Path(path).is_file():
        return path
    root = assets.recipe()
    packaged = {file.relative_to(root).as_posix(): file for file in _files(root.rglob) if file.suffix == ".yaml"}
    name = path.removeprefix("recipes/")
    if name in packaged:
        _log.info("%s: not here, so the one that comes with s3prl-ekd: %s", path, packaged[name])
        return str(packaged[name])
    close = difflib.get_close_matches(name, packaged, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "s3prl-ekd recipes lists them"
    raise UserError(
        f"{f'{where} ' if where else ''}{path}: no such file (working folder: {Path.cwd()}), and none of s3prl-ekd's"
        f" recipes; {hint}"
    )


def _files(search: Callable[[str], Iterable[Path]]) -> list[Path]:
    return sorted(path for pattern in ("*.yaml", "*.sbatch") for path in search(pattern))
