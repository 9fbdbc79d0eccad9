"""``s3prl-ekd export``: the folder of a student, from another folder, a run or a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s3prl_ekd.config.recipe import DistillConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "student",
        help="a student's folder or hub id, a checkpoint of run_pretrain or distill, or a run's folder for its last",
    )
    parser.add_argument("folder", help="the student folder to write")
    parser.add_argument(
        "--flat",
        action="store_true",
        help="pad layers of different size with zeros, so that stock models of transformers open it: the same function,"
        " without what pruning saved on attention heads and feed-forward units",
    )
    parser.add_argument("--half", action="store_true", help="store fp16: half the size, read back as fp32")


def run(args: argparse.Namespace) -> int:
    """Write the folder, and print what it was made of.

    Raises:
        UserError: there is no student, or one that cannot be made flat; or the folder holds something else.
    """
    import torch

    from s3prl_ekd.student.flat import flatten
    from s3prl_ekd.student.folder import load_student_and_heads, save_student

    source = _source(args.student)
    student, heads = load_student_and_heads(source)
    recipe = _recipe(Path(source))
    if args.flat:
        student = flatten(student)
    dtype = torch.float16 if args.half else torch.float32
    save_student(args.folder, student, heads, recipe, dtype=dtype)
    print(f"{args.folder}: the student of {source}")
    return 0


def _source(where: str) -> str:
    """The student itself, or what a run's folder (of either road) has that is furthest: the newest readable checkpoint
    of a stage, or the student that an earlier stage has ended with."""
    folder = Path(where).expanduser()
    if not folder.is_dir() or (folder / "config.json").is_file():
        return where
    from s3prl_ekd.training.checkpoints import newest_readable
    from s3prl_ekd.training.run_folder import stage_folders

    *earlier, last = stage_folders(folder)
    for stage in (last, *reversed(earlier)):
        if stage is not last and (stage / "student" / "config.json").is_file():
            return str(stage / "student")
        found = newest_readable(stage / "checkpoints")
        if found is not None:
            return str(found[0])
    from s3prl_ekd.s3prl_plugin.runners.checkpoints import newest_checkpoint

    return newest_checkpoint(str(folder), "export")


def _recipe(source: Path) -> DistillConfig | None:
    """What the student was distilled with, where its folder or its checkpoint says so."""
    from s3prl_ekd.config.recipe import DistillConfig
    from s3prl_ekd.student.checkpoint import read_recipe

    source = source.expanduser()
    if source.is_file():
        return read_recipe(source)
    recipe = source / "recipe.yaml"
    return DistillConfig.from_yaml(recipe) if recipe.is_file() else None
