"""``s3prl-ekd unplug``: takes back what plug did, and nothing else."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin import plug


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    plug.add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Unplug one of the two."""
    try:
        if args.s3prl is None:
            unplug_environment()
        else:
            unplug_checkout(args.s3prl)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return 0


def unplug_environment() -> None:
    """Remove the line from site-packages."""
    path = plug.pth_file()
    if not path.is_file():
        print("not plugged: nothing to do")
        return
    path.unlink()
    print(f"unplugged: {path} removed")


def unplug_checkout(folder: Path) -> None:
    """Remove ``pretrain/ekd_student/``; what was edited or added there stays, and is named.

    Raises:
        UserError: no checkout, or an ``ekd_student`` that plug did not write.
    """
    target = plug.recipe_folder(folder)
    if not target.exists():
        print("not plugged: nothing to do")
        return
    if not any(plug.is_ours(target / name) for name in plug.FILES):
        raise UserError(f"{target} is not from s3prl-ekd plug; it stays")
    for name in plug.FILES:
        if plug.is_untouched(target / name):
            (target / name).unlink()
    shutil.rmtree(target / "__pycache__", ignore_errors=True)
    left = sorted(path.name for path in target.iterdir())
    if left:
        print(f"unplugged; in {target} these stay, since they were edited or added: {', '.join(left)}")
    else:
        target.rmdir()
        print(f"unplugged: {target} removed")
