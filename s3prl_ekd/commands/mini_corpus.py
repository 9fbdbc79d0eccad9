"""``s3prl-ekd mini-corpus OUT``: a small synthetic speech corpus in the layouts that s3prl's tasks read."""

from __future__ import annotations

import argparse

from s3prl_ekd.command_line import SEEDS, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("out", metavar="OUT", help="folder to write; the same corpus already there is kept")
    other = "another seed gives other voices and sentences"
    parser.add_argument("--seed", type=whole_number(*SEEDS), default=0, help=other)
    parser.add_argument("--jobs", type=whole_number(1), default=1, help="processes; the corpus does not depend on it")
    parser.add_argument("--force", action="store_true", help="replace a mini corpus with other settings in OUT")
    parser.add_argument("--size", choices=["default", "tiny"], default="default", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Build the corpus."""
    from s3prl_ekd.mini_corpus.build import add_speech_commands, build
    from s3prl_ekd.mini_corpus.config import MiniCorpusConfig

    config = MiniCorpusConfig.tiny(args.seed) if args.size == "tiny" else MiniCorpusConfig(seed=args.seed)
    build(args.out, config, jobs=args.jobs, force=args.force)
    add_speech_commands(args.out, config, jobs=args.jobs)
    return 0
