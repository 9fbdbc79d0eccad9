"""``s3prl-ekd export-checkpoint``: a student folder from a training checkpoint."""

from __future__ import annotations

import argparse

HELP = "make a student folder from a states-*.ckpt of run_pretrain (ours, or s3prl's own distiller's)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="states-*.ckpt")
    parser.add_argument("folder", help="the student folder to write")
    parser.add_argument("--half", action="store_true", help="store fp16: half the size, read back as fp32")


def run(args: argparse.Namespace) -> int:
    import torch

    from s3prl_ekd.student.checkpoint import read_recipe
    from s3prl_ekd.student.folder import load_student_and_heads, save_student

    student, heads = load_student_and_heads(args.checkpoint)
    recipe = read_recipe(args.checkpoint)
    save_student(args.folder, student, heads, recipe, dtype=torch.float16 if args.half else torch.float32)
    return 0
