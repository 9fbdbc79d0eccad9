"""``s3prl-ekd superb``: one upstream on downstream tasks, through s3prl's stock runner."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from s3prl_ekd import s3prl_hub
from s3prl_ekd.command_line import SEEDS, whole_number
from s3prl_ekd.devices import check_device
from s3prl_ekd.errors import UserError, nearest, shorten
from s3prl_ekd.files import parse_yaml, write_yaml
from s3prl_ekd.s3prl_compat.upstream_names import check_file
from s3prl_ekd.tasks import DEFAULT, TASKS, inputs
from s3prl_ekd.tasks.corpora import Corpora, Split, mini_corpora


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--upstream", metavar="NAME", help="an s3prl upstream, such as ekd_student, fbank")
    parser.add_argument("--ckpt", metavar="WHERE", help="its weights: a student folder, a states-*.ckpt or a hub id")
    parser.add_argument("--label", default="", help="name in tables (default: made from upstream and ckpt)")
    parser.add_argument(
        "--tasks", default=",".join(DEFAULT), help=f"comma-separated, of {', '.join(TASKS)} (default: %(default)s)"
    )
    parser.add_argument("--corpus", required=True, choices=["mini", "real"], help="which corpora")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for everything written")
    parser.add_argument(
        "--split", choices=[*Split, "both"], default="public", help="which test sets judge (default: %(default)s)"
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="run nothing: write the configurations, lexicon, lists and folds for s3prl's run_downstream into --out",
    )
    mini = parser.add_argument_group("mini corpus")
    mini.add_argument("--data", type=Path, metavar="DIR", help="folder written by s3prl-ekd mini-corpus")
    real = parser.add_argument_group("real corpora")
    for one in inputs():
        one.add_to(real)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--seed", type=whole_number(*SEEDS), default=1337, help="seed of s3prl's runner (default: %(default)s)"
    )
    training.add_argument("--steps", action="append", default=[], metavar="TASK=N", help="optimizer steps of a task")
    training.add_argument("--set", action="append", default=[], dest="options", metavar="[TASK:]KEY=VALUE",
                          help="a key of the downstream configuration, such as sid:optimizer.lr=0.1")  # fmt: skip
    training.add_argument("--fine-tune", action="store_true", help="train the upstream too (s3prl's -f)")
    training.add_argument(
        "--remember-features",
        action=argparse.BooleanOptionalAction,
        help="compute an utterance's features once and keep them (default: on the mini corpus, unless --fine-tune)",
    )
    training.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    training.add_argument("--jobs", type=whole_number(1), default=1, help="trainings at a time (default: %(default)s)")
    training.add_argument("--threads", type=whole_number(1), default=1, help="threads of each (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Train and evaluate what is not there yet, write ``OUT/summary.json``, print the table; or only prepare that."""
    from s3prl_ekd.superb.evaluation import Evaluation
    from s3prl_ekd.superb.jobs import JobError, run_jobs
    from s3prl_ekd.superb.summary import write_summary
    from s3prl_ekd.superb.tables import tables

    if args.upstream is None and not args.prepare:
        raise UserError("--upstream is missing: an s3prl upstream, such as ekd_student, fbank")
    if args.upstream is not None:
        s3prl_hub.check_name(args.upstream, "--upstream")
    evaluation = Evaluation(
        upstream=args.upstream or "",
        ckpt=None if args.prepare else _where(args),
        label=args.label,
        tasks=_tasks(args.tasks),
        corpora=_corpora(args),
        splits=frozenset(Split) if args.split == "both" else frozenset({Split(args.split)}),
        out=args.out.resolve(),
        seed=args.seed,
        steps=dict(_steps(text) for text in args.steps),
        options=[_option(text) for text in args.options],
        fine_tune=args.fine_tune,
        remember_features=_remember(args),
        device=args.device and check_device(args.device),
    )
    if args.prepare:
        for experiment in evaluation.experiments:
            path = evaluation.out / "configs" / f"{experiment.name}.yaml"
            write_yaml(path, experiment.config)
            print(f"{path}  (run_downstream -d {TASKS[experiment.task].downstream} -c ...)")
        return 0
    _check_weights(evaluation.upstream, evaluation.ckpt)
    try:
        run_jobs(evaluation.jobs(), at_a_time=args.jobs, threads=args.threads, title="superb")
    except JobError as error:
        print(f"s3prl-ekd: {error}", file=sys.stderr)
        return 1
    rows = write_summary(evaluation.out / "summary.json", evaluation.rows())
    print("\n\n".join(table.text() for table in tables(rows)))
    print(f"\n{evaluation.out / 'summary.json'}")
    return 0


def _remember(args: argparse.Namespace) -> bool:
    if args.remember_features and args.fine_tune:
        raise UserError("--remember-features: the features change with --fine-tune; leave one of the two out")
    return not args.fine_tune and args.corpus == "mini" if args.remember_features is None else args.remember_features


def _where(args: argparse.Namespace) -> str | None:
    """``--ckpt``, made absolute if it is a local path, since the runner works in folders of its own."""
    if args.ckpt is None:
        if args.upstream == "ekd_student":
            raise UserError("--upstream ekd_student needs --ckpt: a student folder, a states-*.ckpt or a hub id")
        return None
    path = Path(args.ckpt).expanduser()
    is_path = path.is_absolute() or args.ckpt.startswith(".") or path.suffix in {".ckpt", ".pt"}
    if is_path and not path.exists():
        raise UserError(f"--ckpt {path}: there is no such file or folder")
    return str(path.resolve()) if path.exists() else args.ckpt


def _check_weights(upstream: str, ckpt: str | None) -> None:
    """Open the weights once here, or see that they are there: each process would say the same much later.

    Raises:
        UserError: they are no weights of this upstream.
    """
    if upstream in s3prl_hub.NAMES:
        from s3prl_ekd import upstream as ours

        try:
            getattr(ours, upstream)(ckpt)
        except UserError as error:
            raise UserError(f"--ckpt {error}" if ckpt else str(error)) from error
    else:
        check_file(upstream, ckpt, options=("--upstream", "--ckpt"))


def _tasks(text: str) -> tuple[str, ...]:
    tasks = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in tasks:
        _check_task("--tasks", name)
    if not tasks:
        raise UserError(f"--tasks: name at least one of {', '.join(TASKS)}")
    return tasks


def _check_task(option: str, name: str) -> None:
    if name not in TASKS:
        raise UserError(f"{option}: unknown task {name!r}; {nearest(name, TASKS)}")


def _steps(text: str) -> tuple[str, int]:
    task, _, count = text.partition("=")
    _check_task("--steps", task)
    if not count.isdigit() or int(count) < 1:
        raise UserError(f"--steps {text}: expected TASK=N with N of 1 or more, such as pr=1000")
    return task, int(count)


def _option(text: str) -> tuple[str | None, str, Any]:
    key, found, value = text.partition("=")
    task, colon, rest = key.partition(":")
    if not found or not key:
        raise UserError(f"--set {text}: expected [TASK:]KEY=VALUE, such as sid:optimizer.lr=0.1")
    if colon:
        _check_task("--set", task)
    try:
        parsed = parse_yaml(value)
    except UserError as error:
        raise UserError(f"--set {shorten(text)}: the value is {error}") from error
    return (task, rest, parsed) if colon else (None, key, parsed)


def _corpora(args: argparse.Namespace) -> Corpora:
    if args.corpus == "mini":
        if args.data is None:
            raise UserError("--corpus mini needs --data DIR, a folder made by: s3prl-ekd mini-corpus DIR")
        return mini_corpora(args.data.resolve())
    given = {one.name: _absolute(getattr(args, one.name)) for one in inputs() if one.option}
    return Corpora(recipes="real", given=given)


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(path.resolve() for path in value)
    return value.resolve() if isinstance(value, Path) else value
