"""``s3prl-ekd unplug``: takes back what plug did, and nothing else."""

from __future__ import annotations

import argparse

from s3prl_ekd.commands.plug import add_target
from s3prl_ekd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Unplug the checkout that ``--s3prl`` names, or this environment."""
    from s3prl_ekd.s3prl_plugin.plug import unplug_checkout, unplug_environment

    try:
        if args.s3prl is None:
            unplug_environment()
        else:
            unplug_checkout(args.s3prl)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return 0
