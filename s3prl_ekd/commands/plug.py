"""``s3prl-ekd plug``: lets the unmodified s3prl of this environment, or of a checkout, find ``ekd_student``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ekd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_target(parser)
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="with --s3prl: the packaged recipe whose YAML become the checkout's defaults (default: mini)",
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """The option that plug and unplug share."""
    parser.add_argument(
        "--s3prl",
        metavar="DIR",
        type=Path,
        help="a checkout of s3prl, for its run_pretrain.py; without it: the s3prl of this Python environment, for"
        " python -m s3prl.run_downstream and s3prl.nn.S3PRLUpstream",
    )


def run(args: argparse.Namespace) -> int:
    """Plug the checkout that ``--s3prl`` names, or this environment."""
    from s3prl_ekd.s3prl_plugin.plug import plug_checkout, plug_environment

    if args.s3prl is None:
        if args.recipe is not None:
            raise UserError("--recipe goes with --s3prl DIR")
        plug_environment()
    else:
        plug_checkout(args.s3prl, args.recipe or "mini")
    return 0
