"""``s3prl-ekd COMMAND``: finds the command's module, imports only that one, says in one line what a user can mend."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any, NamedTuple

from s3prl_ekd import __version__
from s3prl_ekd.command_line import Parser
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.processes import run_command


class Command(NamedTuple):
    """A command of ``s3prl-ekd``, whose module :func:`module_of` finds by its name."""

    summary: str
    """One line of help."""
    examples: tuple[str, ...]
    """Command lines for the end of its help, without ``s3prl-ekd``."""


COMMANDS: dict[str, Command] = {
    "mini-corpus": Command(
        "synthesize the small speech corpus that the demo and the tests use",
        ("mini-corpus mini-corpus",),
    ),
    "data": Command(
        "make manifests of speech, noise and impulse responses for distill",
        (
            "data librispeech /data/LibriSpeech cuts --parts train-clean-100 dev-clean",
            "data folder /data/speech cuts/speech.jsonl.gz",
        ),
    ),
    "distill": Command(
        "train a student from one YAML recipe: many devices, exact resume",
        (
            "distill mini/ekd.yaml output=runs/mini trainer.max_steps=100",
            "distill my_recipe/distill.yaml --resume output=runs/ekd",
        ),
    ),
    "curve": Command("draw the losses of a run of distill or run_pretrain", ("curve runs/ekd curve.png",)),
    "recipes": Command(
        "list the recipes that come with the package, or copy one to edit it",
        ("recipes", "recipes ls960_ekd_average my_recipe"),
    ),
    "cache-targets": Command(
        "run a recipe's teachers once and store the targets for distill",
        (
            "cache-targets ls960_ekd/distill.yaml targets --estimate",
            "cache-targets ls960_ekd/distill.yaml targets --part 0/8 data.num_workers=4",
        ),
    ),
    "cluster-layers": Command(
        "find the groups of a teacher's layers that are alike, for layers in a recipe",
        (
            "cluster-layers mini/ekd.yaml 'teachers.0.layers={clusters: 2}'",
            "cluster-layers my_recipe/distill.yaml -o layers",
        ),
    ),
    "superb": Command(
        "train and evaluate an upstream on SUPERB's tasks (PR, SID, ER, ASR, KS) with s3prl's runner",
        (
            "superb --upstream ekd_student --ckpt demo/student --corpus mini --data mini-corpus --out results/student",
            "superb --upstream fbank --corpus real --tasks sid --voxceleb1 /data/VoxCeleb1"
            " --iden-split /data/iden_split.txt --out results/fbank",
        ),
    ),
    "report": Command(
        "print one table from several summary.json files",
        ("report results/student results/fbank --plot results.png",),
    ),
    "plug": Command(
        "let the unmodified s3prl of this environment (or of a checkout) find ekd_student",
        ("plug", "plug --s3prl ~/s3prl --recipe ls960_ekd_average"),
    ),
    "unplug": Command("take back what plug did", ("unplug", "unplug --s3prl ~/s3prl")),
    "init-student": Command(
        "save the student that a recipe starts from: the undistilled control",
        ("init-student mini/config_model.yaml undistilled",),
    ),
    "export": Command(
        "make a student folder from a checkpoint, a run or another folder, also for stock models of transformers",
        ("export result/pretrain/ekd ekd_student", "export runs/pruned flat_student --flat"),
    ),
    "export-checkpoint": Command("the older name of export", ("export-checkpoint result/pretrain/ekd ekd_student",)),
}


def module_of(command: str) -> Any:
    """Import the module of a command, which has ``add_arguments(parser)`` and ``run(args) -> int``."""
    return importlib.import_module(f"s3prl_ekd.commands.{command.replace('-', '_')}")


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The command line, with the arguments of one command only: the others' modules are not imported."""
    parser = Parser(prog="s3prl-ekd", description="Ensemble knowledge distillation of self-supervised speech models.")
    parser.add_argument("--version", action="version", version=f"s3prl-ekd {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, examples) in COMMANDS.items():
        epilog = "\n  s3prl-ekd ".join((f"example{'s' if len(examples) > 1 else ''}:", *examples))
        subparser = subparsers.add_parser(name, help=summary, description=summary, epilog=epilog)
        if name == command:
            module_of(name).add_arguments(subparser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 for bad input, 130 after Ctrl-C, or what the command returns."""
    argv = sys.argv[1:] if argv is None else argv
    command = next((word for word in argv if not word.startswith("-")), None)

    def work() -> int:
        if command is not None and command not in COMMANDS:
            raise UserError(f"no command {command!r}; {nearest(command, COMMANDS)}")
        args = build_parser(command).parse_args(argv)
        return module_of(args.command).run(args)

    return run_command("s3prl-ekd", work)


if __name__ == "__main__":
    sys.exit(main())
