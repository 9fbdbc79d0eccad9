"""``s3prl-ekd cache-targets``: runs a recipe's teachers once over all its speech and stores the targets."""

from __future__ import annotations

import argparse

from s3prl_ekd import recipe_files
from s3prl_ekd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("recipe", help="YAML: a file or one of s3prl-ekd recipes, as for distill")
    parser.add_argument("out", metavar="OUT", help="folder for the targets; what it holds already is kept")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="settings that replace the recipe's"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="measure a few utterances, print GB and hours, write nothing"
    )
    parser.add_argument(
        "--part",
        default="0/1",
        metavar="K/N",
        help="do the K-th of N parts, from 0, beside other processes; once all are done, run without it",
    )
    parser.add_argument(
        "--shard-gb", type=float, default=1.0, metavar="GB", help="size of a file (default: %(default)s)"
    )
    parser.add_argument("--device", help="such as cuda:1 (default: as the recipe's trainer.accelerator)")
    parser.add_argument("--verify", action="store_true", help="first read what is there and check all of it")


def run(args: argparse.Namespace) -> int:
    """Compute what is missing, or print what that would take."""
    from s3prl_ekd.config.training import RunConfig

    config = RunConfig.from_yaml(recipe_files.find(args.recipe), args.overrides)
    part = _part(args.part)
    if not args.shard_gb > 0:
        raise UserError(f"--shard-gb: must be positive, found {args.shard_gb}")
    from s3prl_ekd.target_cache.filling import Caching

    caching = Caching(config, args.out, part=part, device=args.device)
    if args.estimate:
        print(caching.estimate())
    else:
        caching.run(shard_bytes=args.shard_gb * 1e9, verify=args.verify)
    return 0


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise UserError(f"--part: expected K/N with K from 0 to N - 1, such as 0/8, found {text!r}")
    return int(number), int(count)
