"""``s3prl-ekd cluster-layers``: finds the groups of layers that a recipe asks for, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ekd import recipe_files
from s3prl_ekd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("recipe", help="YAML: a file or one of s3prl-ekd recipes, as for distill")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="settings that replace the recipe's"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="also write each teacher's similarities there: JSON, picture"
    )
    parser.add_argument("--device", help="such as cuda:1 (default: as the recipe's trainer.accelerator)")


def run(args: argparse.Namespace) -> int:
    """Find the groups and print them as the recipe has them.

    Raises:
        UserError: no teacher asks for clusters of layers.
    """
    from s3prl_ekd.config.training import RunConfig

    config = RunConfig.from_yaml(recipe_files.find(args.recipe), args.overrides)
    from s3prl_ekd.calibration import groups
    from s3prl_ekd.calibration.find import find
    from s3prl_ekd.devices import check_device

    if not any(groups.asked_of(teacher) for teacher in config.teachers):
        raise UserError(f"{args.recipe}: no teacher asks for groups of layers; give one layers: {{clusters: 4}}")
    device = check_device(args.device) if args.device else None
    calibration = find(config, device)
    for one in calibration.groups:
        print(f"# {one.teacher}: {len(one.groups)} groups of {len(one.similarity)} hidden states")
        print(f"layers: {groups.line(one.groups)}")
    if args.out is not None:
        calibration.draw(args.out)
        print(f"# {args.out}: similarities and pictures")
    return 0
