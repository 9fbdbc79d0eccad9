"""``s3prl-ekd init-student``: the student before any distillation, the control that every result needs."""

from __future__ import annotations

import argparse

from s3prl_ekd.command_line import SEEDS, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "recipe", help="config_model.yaml: a file, or one of s3prl-ekd recipes, such as mini/config_model.yaml"
    )
    parser.add_argument("folder", help="the student folder to write")
    parser.add_argument("--seed", type=whole_number(*SEEDS), default=0, help="for what no teacher initialises")


def run(args: argparse.Namespace) -> int:
    """Write the student's folder."""
    import torch

    from s3prl_ekd import recipe_files
    from s3prl_ekd.config.recipe import DistillConfig
    from s3prl_ekd.distiller import build_student
    from s3prl_ekd.student.folder import save_student
    from s3prl_ekd.teachers import load_teacher

    config = DistillConfig.from_yaml(recipe_files.find(args.recipe))
    torch.manual_seed(args.seed)
    student = config.student
    start = [
        load_teacher(teacher, initializes=student.origin_layers)
        for teacher in config.teachers
        if teacher.name == student.origin
    ]
    save_student(args.folder, build_student(config, start), recipe=config)
    return 0
