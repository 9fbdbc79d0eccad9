"""The whole way, offline, in minutes: corpus, distillation, evaluation, one table.

``python examples/mini/demo.py --out demo`` synthesizes the mini corpus, distils the tiny HuBERT, RobustHuBERT and WavLM
that come with the package into a student (through s3prl's run_pretrain), and judges FBANK, the undistilled student and
the distilled one on PR, SID, ER and ASR (through s3prl's run_downstream). Started again, it goes on where it stopped.
It fails if the distilled student is no better than chance on one of the tasks.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from s3prl_ekd import assets
from s3prl_ekd.command_line import SEEDS, whole_number
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path, only_writer, read_yaml, write_yaml
from s3prl_ekd.mini_corpus.build import OtherCorpusError, build
from s3prl_ekd.mini_corpus.config import MiniCorpusConfig
from s3prl_ekd.pictures import save
from s3prl_ekd.processes import run_command
from s3prl_ekd.superb import picture
from s3prl_ekd.superb.evaluation import Evaluation
from s3prl_ekd.superb.jobs import Job, JobError, run_jobs
from s3prl_ekd.superb.summary import Row, write_summary
from s3prl_ekd.superb.tables import Table, tables
from s3prl_ekd.tasks import DEFAULT, TASKS
from s3prl_ekd.tasks.corpora import Split, mini_corpora
from s3prl_ekd.training import curve

DISTORTED = ("-noisy",)
"""Endings of test sets on which the student may be at chance: the table shows them, the verdict leaves them out."""


def main(argv: list[str] | None = None) -> int:
    """Run it: 0 if the student is off chance everywhere, 1 if not or if a part failed, 2 for bad input, 130 if
    interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for everything (default: demo)"
    )
    parser.add_argument("--hidden", action="store_true", help="judge on the hidden test sets too")
    parser.add_argument(
        "--jobs",
        type=whole_number(1),
        default=min(2, os.cpu_count() or 1),
        help="processes at a time (default: %(default)s)",
    )
    parser.add_argument("--threads", type=whole_number(1), default=1, help="threads of each (default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=whole_number(*SEEDS),
        default=1337,
        help="of distillation and downstream training (default: %(default)s)",
    )
    parser.add_argument(
        "--tiny", action="store_true", help=argparse.SUPPRESS
    )  # for tests: a few steps on hardly any speech
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return run_command("demo", lambda: demonstrate(args))
    except JobError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def demonstrate(args: argparse.Namespace) -> int:
    """All parts, in an order that keeps ``args.jobs`` processes busy."""
    out = args.out.resolve()
    with only_writer(out):
        return _demonstrate(out, args)


def _demonstrate(out: Path, args: argparse.Namespace) -> int:
    started = time.monotonic()
    corpus = MiniCorpusConfig.tiny() if args.tiny else MiniCorpusConfig()
    try:
        build(out / "corpus", corpus, jobs=args.jobs)
    except OtherCorpusError as error:
        where = out / "corpus"
        raise UserError(f"{where} is another corpus, or a part of one: give another --out, or delete {out}") from error
    distillation = _distillation(out, args)
    splits = frozenset(Split) if args.hidden else frozenset({Split.PUBLIC})
    candidates = [
        ("fbank", "fbank", None, ()),
        ("undistilled", "ekd_student", out / "undistilled_student", ("init",)),
        ("ekd_student", "ekd_student", out / "student", ("export",)),
    ]
    evaluations = [
        Evaluation(
            upstream=upstream,
            ckpt=str(ckpt) if ckpt else None,
            label=label,
            corpora=mini_corpora(out / "corpus"),
            splits=splits,
            out=out / "results" / label,
            seed=args.seed,
            remember_features=True,
            steps=dict.fromkeys(DEFAULT, 4) if args.tiny else {},
        )
        for label, upstream, ckpt, _ in candidates
    ]
    unfinished = {job.name for job in distillation}
    jobs = list(distillation)
    for evaluation, (label, _, _, after) in zip(evaluations, candidates, strict=True):
        jobs += evaluation.jobs(prefix=f"{label}/", after=tuple(name for name in after if name in unfinished))
    run_jobs(jobs, at_a_time=args.jobs, threads=args.threads, title="demo")
    rows = []
    for evaluation in evaluations:
        rows += write_summary(evaluation.out / "summary.json", evaluation.rows())
    return _conclude(rows, out, time.monotonic() - started)


def _distillation(out: Path, args: argparse.Namespace) -> list[Job]:
    """The undistilled student, the distillation, the distilled student as a folder: what of it is still to be done."""
    folder, run = out / "distillation", out / "distillation" / "run"
    model, runner = _recipe(out, args.tiny)
    model_yaml, runner_yaml = folder / "config_model.yaml", folder / "config_runner.yaml"
    for path, config in ((model_yaml, model), (runner_yaml, runner)):
        if path.is_file() and read_yaml(path) != config:
            raise UserError(f"{path} is of another demonstration: give another --out, or delete {out}")
        write_yaml(path, config)
    steps = runner["runner"]["total_steps"]
    jobs = [
        Job(
            name="distil",
            module="s3prl_ekd.run_pretrain",
            arguments=(
                "-u", "ekd_student", "-n", "demo", "-p", str(run), "-a",
                "-g", str(model_yaml), "-c", str(runner_yaml), "--seed", str(args.seed),
            ),
            log=folder / "distil.txt",
            steps=steps,
        ),
        Job(
            name="init",
            module="s3prl_ekd",
            arguments=("init-student", str(model_yaml), str(out / "undistilled_student")),
            log=folder / "init.txt",
            steps=1,
        ),
        Job(
            name="export",
            module="s3prl_ekd",
            arguments=("export-checkpoint", str(run), str(out / "student")),
            log=folder / "export.txt",
            steps=1,
            after=("distil",),
        ),
    ]  # fmt: skip
    made = {"distil": out / "student", "init": out / "undistilled_student", "export": out / "student"}
    return [job for job in jobs if not made[job.name].is_dir()]


def _recipe(out: Path, tiny: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe beside this script, on the corpus in ``out``."""
    model, runner = (read_yaml(assets.recipe(f"mini/{name}.yaml")) for name in ("config_model", "config_runner"))
    model["distortion"]["noise"]["folder"] = str(out / "corpus" / "noise")
    data = runner["pretrain_expert"]["datarc"]
    data["libri_root"] = str(out / "corpus" / "LibriSpeech")
    data["file_path"] = str(out / "corpus" / "len_for_bucket")
    if tiny:
        runner["runner"] |= {"total_steps": 4, "log_step": 1, "save_step": 2}
        runner["scheduler"]["num_warmup_steps"] = 1
    return model, runner


def _pictures(made: list[Table], out: Path) -> list[Path]:
    """Draw the tables, and the distillation if its log was not deleted since; returns where."""
    run, results, losses = out / "distillation" / "run", out / "results.png", out / "curve.png"
    save(picture.draw(made), results)
    if not run.is_dir():
        return [results]
    curve.plot([run], losses)
    return [results, losses]


def _conclude(rows: list[Row], out: Path, seconds: float) -> int:
    """Write the summary and the tables, say where everything is, and judge the student."""
    rows = [row for row in write_summary(out / "summary.json", rows) if row.label in {row.label for row in rows}]
    made = tables(rows)
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text("\n\n".join(table.markdown() for table in made) + "\n", encoding="utf-8")
    pictures = _pictures(made, out) if importlib.util.find_spec("matplotlib") else []
    print("\n" + "\n\n".join(table.text() for table in made))
    print(
        "\nchance is the best constant answer;"
        " FBANK is at chance on SID and ER because s3prl's features have zero mean.\n"
        f"The student: {out / 'student'} (undistilled: {out / 'undistilled_student'})\n"
        f"The table:   {out / 'table.md'}, {out / 'summary.json'}\n"
        f"Pictures:    {', '.join(map(str, pictures)) or 'none (pip install matplotlib)'}\n"
        f"The rest:    {out / 'corpus'}, {out / 'distillation'}, {out / 'results'}\n"
        f"{seconds / 60:.1f} minutes"
    )
    at_chance = [
        row
        for row in rows
        if row.label == "ekd_student"
        and not row.test_set.endswith(DISTORTED)
        and not TASKS[row.task].off_chance(row.value, row.chance, row.chance_error)
    ]
    for row in at_chance:
        print(
            f"demo: error: ekd_student is at chance on {row.task.upper()} {row.test_set}:"
            f" {row.metric} {row.value:.1f} %, the best constant answer {row.chance:.1f} %"
            f" (standard error {row.chance_error:.1f})",
            file=sys.stderr,
        )
    return 1 if at_chance else 0


if __name__ == "__main__":
    sys.exit(main())
