"""``s3prl-ekd distill``: trains a student as a recipe says, on one device or many."""

from __future__ import annotations

import argparse
import sys

from s3prl_ekd import recipe_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("recipe", help="YAML: a file, or one of s3prl-ekd recipes, such as mini/ekd.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="settings that replace the recipe's"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest readable checkpoint of the recipe's output; from the start if there is none",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")


def run(args: argparse.Namespace) -> int:
    """Train a student, or print the recipe."""
    from s3prl_ekd.config.training import RunConfig

    config = RunConfig.from_yaml(recipe_files.find(args.recipe), args.overrides)
    if args.print_config:
        import yaml

        print(f"# {config.step_size()}\n# {config.student_size()}")
        yaml.safe_dump(config.to_mapping(), sys.stdout, sort_keys=False, allow_unicode=True)
        return 0
    from s3prl_ekd.training.run import train

    return train(config, resume=args.resume)
