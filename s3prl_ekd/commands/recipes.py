"""``s3prl-ekd recipes``: the recipes that come with the package, and copies of them to edit."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from s3prl_ekd import assets, recipe_files
from s3prl_ekd.errors import UserError, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="one of the list, such as ls960_ekd_average (default: print the list)"
    )
    parser.add_argument(
        "out", nargs="?", metavar="DIR", type=Path, help="new folder for a copy (default: print where the recipe is)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the list or where one recipe is, or copy its folder.

    Raises:
        UserError: there is no such recipe, or ``out`` exists.
    """
    found = recipe_files.folders()
    if args.name is None:
        for name, folder in found.items():
            print(f"{name:26s} {'  '.join(path.name for path in recipe_files.files(folder.glob))}")
        print(f"\nin {assets.recipe()}\ns3prl-ekd recipes NAME DIR copies one")
        return 0
    if args.name not in found:
        raise UserError(f"no recipe {args.name!r}; {nearest(args.name, found)}")
    if args.out is None:
        print(found[args.name])
        return 0
    if args.out.exists():
        raise UserError(f"{args.out} exists; name another folder to copy the recipe to")
    shutil.copytree(found[args.name], args.out)
    print(args.out)
    return 0
