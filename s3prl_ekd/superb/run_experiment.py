"""One experiment in a process of its own: s3prl's stock runner trains, then judges every test set asked for.

``python -m s3prl_ekd.superb.run_experiment FOLDER`` does what ``FOLDER/experiment.json`` says. Training goes to
``FOLDER/train``, each evaluation to ``FOLDER/tests/NAME``; paths are relative to FOLDER, because s3prl's checkpoints
remember them. What is already there is not done again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import only_writer, write_json, write_yaml
from s3prl_ekd.processes import run_command
from s3prl_ekd.superb.outcomes import OUTCOMES, write_outcomes
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.task import Experiment, TestSet, changed

logger = logging.getLogger(__name__)

EXPERIMENT = "experiment.json"
WEIGHTS = "weights.json"
TRAINED = "trained.json"
RESULT = "result.json"
TRAIN = Path("train")
TESTS = Path("tests")
_WEIGHTS_SUFFIXES = frozenset({".safetensors", ".bin", ".json"})  # of a student's folder, also as transformers has it


def run(folder: Path) -> None:
    """Train and evaluate what is not yet there.

    Raises:
        UserError: bad input, or another process is at work in the folder.
    """
    with only_writer(folder):
        description = json.loads((folder / EXPERIMENT).read_text(encoding="utf-8"))
        experiment = Experiment.from_mapping(description["experiment"])
        settings = description["settings"]
        options = _runner_options(experiment, settings)
        check_weights(folder, settings["ckpt"])
        with contextlib.chdir(folder):
            if not Path(TRAINED).is_file():
                write_json(TRAINED, _train(experiment, options, remember=settings["remember_features"]))
            checkpoint = json.loads(Path(TRAINED).read_text(encoding="utf-8"))["checkpoint"]
            for test in experiment.tests:
                if not (TESTS / test.name / RESULT).is_file():
                    _evaluate(experiment, test, checkpoint, options)


def begun(folder: Path) -> bool:
    """Whether there is something in the folder that cost time: a checkpoint or a result."""
    patterns = (f"{TRAIN}/[!.]*.ckpt", TRAINED, f"{TESTS}/*/{RESULT}")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def check_weights(folder: Path, ckpt: str | None) -> None:
    """Note which weights are judged here, or make sure that they are still the same.

    Raises:
        UserError: the weights have changed since.
    """
    path, now = folder / WEIGHTS, fingerprint(ckpt)
    if not path.is_file():
        write_json(path, {"sha256": now})
    elif json.loads(path.read_text(encoding="utf-8"))["sha256"] != now:
        raise UserError(f"{ckpt} has changed since {folder} was begun: give another --out, or delete that folder")


def fingerprint(ckpt: str | None) -> str:
    """SHA-256 over the weights in a local file or student folder; empty for what is not a local path."""
    path = Path(ckpt) if ckpt else None
    if path is None or not path.exists():
        return ""
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in _WEIGHTS_SUFFIXES)
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(_digest(file, status.st_size, status.st_mtime_ns, status.st_ino))
    return digest.hexdigest()


@functools.lru_cache(maxsize=1024)
def _digest(file: Path, *_: int) -> bytes:
    """SHA-256 of a file, which is read again only if its size, time or inode is another one: a grid asks for the same
    weights in each of its folders."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _runner_options(experiment: Experiment, settings: dict[str, Any]) -> list[str]:
    """Options of s3prl's ``run_downstream`` that training and evaluation share."""
    options = ["-d", TASKS[experiment.task].downstream, "-u", settings["upstream"], "--seed", str(settings["seed"])]
    options += ["-k", settings["ckpt"]] if settings["ckpt"] else []
    options += ["-f"] if settings["fine_tune"] else []
    return options + (["--device", settings["device"]] if settings["device"] else [])


def _train(experiment: Experiment, options: list[str], *, remember: bool) -> dict[str, Any]:
    """Train to the end (going on where an earlier process stopped); returns the checkpoint to judge, and the time."""
    started = time.monotonic()
    TRAIN.mkdir(exist_ok=True)
    write_yaml(TRAIN / "config.yaml", experiment.config)
    places = ["-p", str(TRAIN), "-c", str(TRAIN / "config.yaml")]
    _stock_runner(["-m", "train", *places, "-a", *options], remember=remember)
    task = TASKS[experiment.task]
    best, dev = task.best, None
    if (TRAIN / best).is_file():
        dev = _dev_score(TRAIN / best, task.scale)
    else:
        # s3prl keeps a best checkpoint only if accuracy rises above 0, or WER falls below 100 %.
        states = sorted(TRAIN.glob("states-*.ckpt"), key=lambda path: int(path.stem.split("-")[-1]))
        if not states:
            raise UserError(
                f"{experiment.name}: s3prl's runner left no checkpoint; save_step must not exceed the steps"
            )
        best = states[-1].name
        logger.warning(
            "%s: no evaluation was better than nothing; judging the last checkpoint, %s", experiment.name, best
        )
    return {"checkpoint": best, "dev": dev, "seconds": round(time.monotonic() - started, 1)}


def _dev_score(checkpoint: Path, scale: float) -> float:
    """The score on the development set that made s3prl keep the checkpoint as the best one, in percent."""
    from s3prl_ekd.weights.pickles import load_pickle_safely

    return scale * float(load_pickle_safely(checkpoint, mapped=True)["Downstream"]["best_score"])


def _evaluate(experiment: Experiment, test: TestSet, checkpoint: str, options: list[str]) -> None:
    """Judge one test set with ``-i``: with ``-e``, the checkpoint's own options and data would replace the test's."""
    task = TASKS[experiment.task]
    started = time.monotonic()
    folder = TESTS / test.name
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "config.yaml", changed(experiment.config, test.changes))
    places = ["-p", str(folder), "-c", str(folder / "config.yaml"), "-i", str(TRAIN / checkpoint)]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            _stock_runner(["-m", "evaluate", "-t", task.evaluate_split, *places, *options], remember=False)
    finally:
        print(output.getvalue(), end="")
    score = asdict(task.outcome(folder, output.getvalue()))
    write_outcomes(folder / OUTCOMES, *(score.pop(name) for name in ("names", "errors", "lengths")))
    seconds = round(time.monotonic() - started, 1)
    write_json(folder / RESULT, {**score, "changes": test.changes, "seconds": seconds})


def _stock_runner(argv: list[str], *, remember: bool) -> None:
    from s3prl_ekd import s3prl_hub
    from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner

    s3prl_hub.register()  # s3prl cannot be imported before
    from s3prl_ekd.superb.cached_features import features_remembered

    with features_remembered() if remember else contextlib.nullcontext():
        downstream_runner.run(argv)


if __name__ == "__main__":
    sys.exit(run_command("s3prl-ekd", lambda: run(Path(sys.argv[1]))))
