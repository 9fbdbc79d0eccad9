"""The command lines of s3prl's two runners: their options, taken apart and put together again."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from s3prl_ekd.command_line import OneLineParser, unknown_word
from s3prl_ekd.devices import check_device
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.runners import override

TRUST = "trust_checkpoint"
TRUST_FLAG = "--trust-checkpoint"
"""How the user writes it: the one flag that is not s3prl's."""


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """Which options a runner knows; abbreviations and joined short options work as they do there."""

    prog: str
    """How the command is started, for messages."""
    values: dict[str, str]
    """Options with a value: long name (without dashes, underscores inside) -> short ones such as ``-c``, or nothing."""
    flags: dict[str, str]
    """The same for options without a value."""
    kept: tuple[str, ...]
    """Options that are fixed when a run begins: s3prl takes them from the checkpoint of a run that goes on."""
    more_help: str
    """What to add to s3prl's own help."""

    def parse(self, argv: Sequence[str]) -> Options:
        """Split ``argv``; what is not known here is kept.

        Raises:
            UserError: a value is missing, or an abbreviation stands for several options.
        """
        parser = OneLineParser(prog=self.prog, add_help=False, argument_default=SUPPRESS)
        for name, short in self.values.items():
            parser.add_argument(*short.split(), f"--{name}", dest=name)
        for name, short in self.flags.items():
            parser.add_argument(*short.split(), f"--{name}", dest=name, action="store_true")
        parser.add_argument(TRUST_FLAG, dest=TRUST, action="store_true")
        known, rest = parser.parse_known_args(list(argv))
        options = Options(vars(known))
        options.rest = rest
        return options

    def check(self, options: Options) -> None:
        """Refuse an unknown option or device before s3prl is imported, and write ``-o`` as s3prl reads it.

        Raises:
            UserError: unknown.
        """
        if options.rest:
            known = [f"--{name}" for name in (*self.values, *self.flags)]
            raise UserError(unknown_word(options.rest[0], [*known, TRUST_FLAG]))
        if "override" in options:
            options["override"] = override.in_python(options["override"])
        if "device" in options:
            check_device(options["device"])

    def spelling(self, name: str) -> str:
        """How a user writes an option."""
        short = (self.values | self.flags).get(name, "").split()
        return short[0] if short and len(short[0]) == 2 else f"--{name}"

    def show_help(self, show: Callable[[], None]) -> None:
        """s3prl's own help, which ``show`` prints, and after it what we add."""
        try:
            show()
        finally:
            accepts = "accept upstreams, teachers and settings that a checkpoint names and that could run code"
            print(f"\n{self.prog} is s3prl's runner with these options and, besides:")
            print(f"  {TRUST_FLAG}  {accepts}\n{self.more_help}")


class Options(dict[str, Any]):
    """The options that were given, long name -> value, or True for a flag; change them and call :meth:`argv`."""

    rest: list[str]
    """Words that belong to no known option."""

    def overrides(self, name: str) -> bool:
        """Whether ``-o`` sets ``args.<name>``, so that the option's own value does not count."""
        parts = (self.get("override") or "").split(",,")
        return any(part.partition("=")[0].strip() == f"args.{name}" for part in parts)

    def argv(self) -> list[str]:
        """s3prl's command line again."""
        given = {name: value for name, value in self.items() if name != TRUST}
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()] + self.rest


DOWNSTREAM = Syntax(
    prog="python -m s3prl_ekd.run_downstream",
    values={
        "mode": "-m",
        "evaluate_split": "-t",
        "override": "-o",
        "backend": "",
        "local_rank": "--local-rank",  # as python -m torch.distributed.launch spells it
        "past_exp": "-e",
        "init_ckpt": "-i",
        "config": "-c",
        "downstream": "-d",
        "downstream_variant": "-v",
        "hub": "",
        "upstream": "-u",
        "upstream_ckpt": "-k",
        "upstream_model_config": "-g",
        "upstream_feature_selection": "-s",
        "upstream_layer_selection": "-l",
        "upstream_model_name": "",
        "upstream_revision": "",
        "expname": "-n",
        "expdir": "-p",
        "hf_hub_org": "",
        "push_to_hf_hub": "",
        "seed": "",
        "device": "",
        "cache_dir": "",
    },
    flags={
        "help": "-h",
        "upstream_refresh": "-r",
        "upstream_trainable": "-f",
        "upstream_feature_normalize": "",
        "auto_resume": "-a",
        "verbose": "",
        "disable_cudnn": "",
    },
    kept=(
        *("upstream", "hub", "upstream_model_name", "upstream_revision", "upstream_trainable"),
        *("upstream_feature_selection", "upstream_layer_selection", "upstream_feature_normalize"),
        *("downstream", "downstream_variant", "seed"),
    ),
    more_help="""\
  -u ekd_student -k WHERE  a student folder, a states-*.ckpt of run_pretrain or a hub id; -u ekd_student_mini: no -k
  -c                       a file, or one of s3prl-ekd recipes, such as downstream/real/er.yaml
  -e, -a                   -k, -g, -p and --cache_dir are followed, and what s3prl would ignore is refused
example:
  python -m s3prl_ekd.run_downstream -m train -n my_er -u ekd_student -k demo/student -d emotion -c my_er.yaml
  python -m s3prl_ekd.run_downstream -m evaluate -e result/downstream/my_er/dev-best.ckpt""",
)
PRETRAIN = Syntax(
    prog="python -m s3prl_ekd.run_pretrain",
    values={
        "past_exp": "-e",
        "override": "-o",
        "config": "-c",
        "upstream": "-u",
        "upstream_config": "-g",
        "expname": "-n",
        "expdir": "-p",
        "seed": "",
        "device": "",
    },
    flags={"help": "-h", "auto_resume": "-a", "multi_gpu": ""},
    kept=("upstream", "seed", "multi_gpu"),
    more_help="""\
  -u ekd_student  in any folder, on the CPU where there is no GPU, with mistakes in one line
  -g, -c          a file, or one of s3prl-ekd recipes, such as mini/config_model.yaml; one finds the other beside it
  -n, -p          one of them is enough
  -e, -a          -o is followed, and the run goes on in the checkpoint's folder
example:
  python -m s3prl_ekd.run_pretrain -u ekd_student -n ekd -g mini/config_model.yaml \\
      -o config.pretrain_expert.datarc.audio_folder=speech
  python -m s3prl_ekd.run_pretrain -e result/pretrain/ekd -o config.runner.total_steps=2000""",
)
