"""``s3prl-ekd superb``: upstreams on downstream tasks, through s3prl's stock runner."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd import s3prl_hub
from s3prl_ekd.command_line import SEEDS, OptionsFile, Repeated, whole_number
from s3prl_ekd.cost import costs_of
from s3prl_ekd.devices import check_device
from s3prl_ekd.errors import UserError, nearest, shorten
from s3prl_ekd.files import parse_yaml, write_yaml
from s3prl_ekd.s3prl_compat.upstream_names import check_file
from s3prl_ekd.superb.cluster import ENGINES, Cluster, Resources
from s3prl_ekd.superb.evaluation import Evaluation, label_of
from s3prl_ekd.superb.grid import UNITS, Upstream, units
from s3prl_ekd.superb.summary import Row, write_summary
from s3prl_ekd.superb.tables import tables
from s3prl_ekd.tasks import DEFAULT, TASKS, inputs
from s3prl_ekd.tasks.corpora import Corpora, Split, mini_corpora
from s3prl_ekd.tasks.task import RATE

logger = logging.getLogger(__name__)

_ON_SLURM = 256
"""Trainings at a time there, if nothing is said: submitit's own default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--grid",
        action=OptionsFile,
        type=Path,
        metavar="FILE",
        help="a YAML file of options, its keys are their names: {upstream: [fbank, {upstream: ekd_student, ckpt:"
        " demo/student}], tasks: [pr, sid], lr: {pr: [1e-3, 1e-2]}, seeds: 3}; what is said here replaces it",
    )
    parser.add_argument(
        "--upstream",
        action=_OfUpstream,
        metavar="NAME",
        help="an s3prl upstream, such as ekd_student, fbank; may be repeated, each before its --ckpt and --label",
    )
    parser.add_argument(
        "--ckpt",
        action=_OfUpstream,
        metavar="WHERE",
        help="its weights: a student folder, a states-*.ckpt or a hub id",
    )
    parser.add_argument(
        "--label", action=_OfUpstream, metavar="LABEL", help="name in tables (default: made from upstream and ckpt)"
    )
    parser.add_argument(
        "--tasks", default=",".join(DEFAULT), help=f"comma-separated, of {', '.join(TASKS)} (default: %(default)s)"
    )
    parser.add_argument("--corpus", required=True, choices=["mini", "real"], help="which corpora")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for everything written")
    parser.add_argument(
        "--split",
        type=_splits,
        default=_splits("public"),
        metavar="public|hidden|both",
        help="which test sets judge (default: public)",
    )
    parser.add_argument(
        "--baseline",
        metavar="LABEL",
        help="mark what is better or worse than this upstream, where a 95 %% interval of the difference says so",
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
    training.add_argument(
        "--seeds",
        type=_seeds,
        metavar="N|A,B,...",
        help="train with N seeds from --seed on, or with those in a list, and give 95 %% intervals",
    )
    training.add_argument(
        "--lr",
        action="extend",
        nargs="+",
        default=[],
        metavar="[TASK=]A,B,...",
        help="learning rates to try, for all tasks or for one; tables show the best on the development set, such as"
        " --lr 1e-4,1e-3 sid=1e-2,1e-1",
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
    training.add_argument(
        "--jobs", type=whole_number(1), help=f"trainings at a time (default: 1; with --cluster slurm {_ON_SLURM})"
    )
    training.add_argument("--threads", type=whole_number(1), default=1, help="threads of each (default: %(default)s)")
    cluster = parser.add_argument_group("cluster (needs submitit)")
    cluster.add_argument(
        "--cluster",
        choices=ENGINES,
        help="run each training as a job of SLURM, or of this machine as a rehearsal; Ctrl-C leaves SLURM's jobs alone,"
        " and the same command waits for them again",
    )
    cluster.add_argument("--partition", metavar="NAME", help="SLURM's partition")
    cluster.add_argument("--gpus", type=whole_number(0), metavar="N", help="GPUs of each job")
    cluster.add_argument(
        "--hours",
        type=_amount,
        metavar="H",
        help="time limit of each job, which then goes on as a new one (default: 24)",
    )
    cluster.add_argument("--memory", type=_amount, metavar="GIB", help="memory of each job")
    cluster.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another option of sbatch, such as account=speech or cpus-per-task=8; may be repeated",
    )


class _OfUpstream(Repeated):
    """``--upstream``, ``--ckpt`` and ``--label`` of one upstream after another, as a list of what was said of each."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest="upstreams", **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name = self.option_strings[0].removeprefix("--")
        said: list[dict[str, str]] = namespace.upstreams or [{}]
        if name in said[-1]:
            if name != "upstream":
                raise UserError(f"--{name} is there twice for one upstream; put each after its own --upstream")
            said = [*said, {}]
        said[-1][name] = values
        namespace.upstreams = said


def run(args: argparse.Namespace) -> int:
    """Train and evaluate what is not there yet, write ``OUT/summary.json``, print the table; or only prepare that."""
    from s3prl_ekd.superb.jobs import JobError, run_jobs

    said = args.upstreams or [{}]
    if not args.prepare and not all("upstream" in one for one in said):
        raise UserError("--upstream is missing: an s3prl upstream, such as ekd_student, fbank")
    for one in said:
        if "upstream" in one:
            s3prl_hub.check_name(one["upstream"], "--upstream")
    tasks = _tasks(args.tasks)
    rates = _rates(args.lr, tasks)
    options = [_option(text) for text in args.options]
    if rates and any(key == RATE and task in (None, *rates) for task, key, _ in options):
        raise UserError(f"--set {RATE} and --lr: leave one of the two out")
    base = _base(args, said[0], tasks, options)
    several = len(said) > 1 or args.seeds is not None or bool(rates)
    if args.prepare:
        if several:
            raise UserError("--prepare writes one configuration per task: leave --lr, --seeds, other upstreams out")
        return _prepare(base)
    if args.baseline is not None and not several:
        raise UserError("--baseline compares upstreams of one call; for those of several: s3prl-ekd report --baseline")
    evaluations = [base]
    if several:
        upstreams = [_upstream(one) for one in said]
        _check_baseline(args.baseline, upstreams)
        evaluations = units(base, upstreams, rates, _all_seeds(args))
    judged = dict.fromkeys((one.upstream, one.ckpt) for one in evaluations)
    costs = {(upstream, ckpt): _check_weights(upstream, ckpt) for upstream, ckpt in judged}
    cluster = _cluster(args)
    elsewhere = cluster.at_work if cluster else frozenset()
    jobs = [job for one in evaluations for job in one.jobs(prefix=_prefix(one, base), elsewhere=elsewhere)]
    status = 0
    try:
        if cluster:
            cluster.run(jobs, title="superb")
        else:
            run_jobs(jobs, at_a_time=args.jobs or 1, threads=args.threads, title="superb", keep_going=several)
    except JobError as error:
        print(f"s3prl-ekd: {error}", file=sys.stderr)
        status = 1
    finished = [one for one in evaluations if one.finished]
    if not finished:
        return status
    found = [row.of_cost(costs[one.upstream, one.ckpt]) for one in finished for row in one.rows()]
    rows = write_summary(base.out / "summary.json", found)
    if several:
        rows = _with_outcomes(rows)
    made = tables(rows, intervals=several, baseline=args.baseline)
    print("\n\n".join(table.text() for table in made))
    print(f"\n{base.out / 'summary.json'}")
    return status


def _base(
    args: argparse.Namespace,
    said: Mapping[str, str],
    tasks: tuple[str, ...],
    options: Sequence[tuple[str | None, str, Any]],
) -> Evaluation:
    """The first upstream, with what all have in common."""
    return Evaluation(
        upstream=said.get("upstream", ""),
        ckpt=None if args.prepare else _where(said),
        label=said.get("label", ""),
        tasks=tasks,
        corpora=_corpora(args),
        splits=args.split,
        out=args.out.resolve(),
        seed=args.seed,
        steps=dict(_steps(text) for text in args.steps),
        options=options,
        fine_tune=args.fine_tune,
        remember_features=_remember(args),
        device=args.device and check_device(args.device),
    )


def _with_outcomes(rows: Sequence[Row]) -> list[Row]:
    """Those that can have intervals: a summary may hold results of an earlier version too."""
    found = [row for row in rows if row.outcomes]
    if len(found) < len(rows):
        logger.warning(
            "%d earlier results have no outcomes per utterance: left out of the table", len(rows) - len(found)
        )
    return found


def _cluster(args: argparse.Namespace) -> Cluster | None:
    """Where the jobs run, if not here."""
    given = {name: getattr(args, name) for name in ("partition", "gpus", "hours", "memory")}
    slurm = dict(_option_of_sbatch(text) for text in args.slurm)
    if args.cluster is None:
        alone = [name for name, value in {**given, "slurm": slurm or None}.items() if value is not None]
        if alone:
            raise UserError(f"--{alone[0]} is for jobs of a cluster: give --cluster {' or '.join(ENGINES)} too")
        return None
    at_a_time = args.jobs or (_ON_SLURM if args.cluster == "slurm" else 1)
    given = {name: value for name, value in given.items() if value is not None}
    resources = Resources(**given, threads=args.threads, at_a_time=at_a_time, slurm=slurm)
    return Cluster(args.cluster, args.out.resolve() / "cluster", resources)


def _option_of_sbatch(text: str) -> tuple[str, str | bool]:
    key, equals, value = text.removeprefix("--").partition("=")
    if not key.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"--slurm {text}: expected an option of sbatch, such as account=speech")
    return key, value if equals else True


def _amount(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (amount := float(text)) < 1e6:
            return amount
    raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")


def _prefix(evaluation: Evaluation, base: Evaluation) -> str:
    """What comes before the names of its jobs: where it is below ``OUT/units``, for one of several."""
    return "" if evaluation is base else f"{evaluation.out.relative_to(base.out / UNITS)}/"


def _prepare(evaluation: Evaluation) -> int:
    for experiment in evaluation.experiments:
        path = evaluation.out / "configs" / f"{experiment.name}.yaml"
        write_yaml(path, experiment.config)
        print(f"{path}  (run_downstream -d {TASKS[experiment.task].downstream} -c ...)")
    return 0


def _upstream(said: Mapping[str, str]) -> Upstream:
    name, ckpt = said["upstream"], _where(said)
    return Upstream(name=name, ckpt=ckpt, label=said.get("label") or label_of(name, ckpt))


def _check_baseline(baseline: str | None, upstreams: Sequence[Upstream]) -> None:
    labels = [upstream.label for upstream in upstreams]
    if baseline is not None and baseline not in labels:
        raise UserError(f"--baseline {baseline}: no upstream has this label; {nearest(baseline, labels)}")


def _all_seeds(args: argparse.Namespace) -> list[int]:
    """The seeds of ``--seeds``: a list of them, or so many from ``--seed`` on."""
    if args.seeds is None:
        return [args.seed]
    if isinstance(args.seeds, int):
        return [(args.seed + number) % (SEEDS[1] + 1) for number in range(args.seeds)]
    return list(dict.fromkeys(args.seeds))


def _seeds(text: str) -> int | list[int]:
    """How many, or, with a comma, which."""
    seed = whole_number(*SEEDS)
    return [seed(part) for part in text.split(",") if part] if "," in text else whole_number(1, 1000)(text)


def _splits(text: str) -> frozenset[Split]:
    names = list(Split) if text == "both" else text.split(",")
    for name in names:
        if name not in list(Split):
            raise argparse.ArgumentTypeError(f"unknown value {name!r}; {nearest(name, [*Split, 'both'])}")
    return frozenset(map(Split, names))


def _rates(words: Sequence[str], tasks: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Learning rates by task; those that name no task are for all that have none of their own."""
    own: dict[str | None, list[float]] = {}
    for word in words:
        before, equals, after = word.rpartition("=")
        if equals:
            _check_task("--lr", before)
            if before not in tasks:
                raise UserError(f"--lr {word}: {before} is not among --tasks {','.join(tasks)}")
        value = parse_yaml(after)
        parts = value if isinstance(value, list) else after.split(",")
        own.setdefault(before if equals else None, []).extend(map(_rate, map(str, parts)))
    found = {task: own.get(task) or own.get(None, []) for task in tasks}
    return {task: tuple(dict.fromkeys(rates)) for task, rates in found.items() if rates}


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (rate := float(text)) < math.inf:
            return rate
    raise UserError(f"--lr: {text.strip()!r} is no learning rate; expected a number above 0, such as 1e-3")


def _remember(args: argparse.Namespace) -> bool:
    if args.remember_features and args.fine_tune:
        raise UserError("--remember-features: the features change with --fine-tune; leave one of the two out")
    return not args.fine_tune and args.corpus == "mini" if args.remember_features is None else args.remember_features


def _where(said: Mapping[str, str]) -> str | None:
    """``--ckpt``, made absolute if it is a local path, since the runner works in folders of its own."""
    ckpt = said.get("ckpt")
    if ckpt is None:
        if said.get("upstream") == "ekd_student":
            raise UserError("--upstream ekd_student needs --ckpt: a student folder, a states-*.ckpt or a hub id")
        return None
    path = Path(ckpt).expanduser()
    is_path = path.is_absolute() or ckpt.startswith(".") or path.suffix in {".ckpt", ".pt"}
    if is_path and not path.exists():
        raise UserError(f"--ckpt {path}: there is no such file or folder")
    return str(path.resolve()) if path.exists() else ckpt


def _check_weights(upstream: str, ckpt: str | None) -> dict[str, float]:
    """Open the weights once here, or see that they are there: each process would say the same much later. Returns what
    a student costs, by the keys of :data:`s3prl_ekd.cost.COSTS`.

    Raises:
        UserError: they are no weights of this upstream.
    """
    if upstream in s3prl_hub.NAMES:
        from s3prl_ekd import upstream as ours

        try:
            return costs_of(getattr(ours, upstream)(ckpt).student.config)
        except UserError as error:
            raise UserError(f"--ckpt {error}" if ckpt else str(error)) from error
    check_file(upstream, ckpt, options=("--upstream", "--ckpt"))
    return {}


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
