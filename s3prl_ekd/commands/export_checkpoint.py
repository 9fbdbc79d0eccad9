"""``s3prl-ekd export-checkpoint``: a student folder from a training checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "checkpoint", help="a checkpoint of run_pretrain or distill, or a run's folder for its last one"
    )
    parser.add_argument("folder", help="the student folder to write")
    parser.add_argument("--half", action="store_true", help="store fp16: half the size, read back as fp32")


def run(args: argparse.Namespace) -> int:
    """Write the folder, and print which checkpoint it was made of.

    Raises:
        UserError: no such checkpoint, one of another kind, or the folder holds something else.
    """
    import torch

    from s3prl_ekd.student.checkpoint import read_recipe
    from s3prl_ekd.student.folder import load_student_and_heads, save_student

    checkpoint = _last(Path(args.checkpoint))
    student, heads = load_student_and_heads(checkpoint)
    dtype = torch.float16 if args.half else torch.float32
    save_student(args.folder, student, heads, read_recipe(checkpoint), dtype=dtype)
    print(f"{args.folder}: the student of {checkpoint}")
    return 0


def _last(where: Path) -> Path:
    """The checkpoint itself, or the furthest readable one of a run's folder (of either road)."""
    if not where.is_dir():
        return where
    from s3prl_ekd.training.checkpoints import newest_readable
    from s3prl_ekd.training.run_folder import stage_folders

    for folder in reversed(stage_folders(where)):
        found = newest_readable(folder / "checkpoints")
        if found is not None:
            return found[0]
    from s3prl_ekd.s3prl_plugin.runners.checkpoints import newest_checkpoint

    return Path(newest_checkpoint(str(where), "export-checkpoint"))
