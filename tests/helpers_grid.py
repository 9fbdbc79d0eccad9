"""``s3prl-ekd superb`` on a corpus without sound, its trainings replaced by made-up outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from s3prl_ekd.superb import run_experiment
from s3prl_ekd.superb.outcomes import OUTCOMES, write_outcomes
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.scores import accuracy

UTTERANCES = 40
Made = Callable[[str, float, int], tuple[float, int]]
"""(label of the unit's folder, learning rate, seed) -> (score on the development set, errors on the test set)."""


def silent_corpus(folder: Path) -> Path:
    """What ER and SID look at in a mini corpus before anything is trained."""
    (folder / "IEMOCAP/meta_data").mkdir(parents=True)
    lines = []
    for part in (1, 2, 3):
        name = f"id10001/video/{part}.wav"
        wav = folder / "VoxCeleb1/dev/wav" / name
        wav.parent.mkdir(parents=True, exist_ok=True)
        wav.touch()
        lines.append(f"{part} {name}\n")
    (folder / "VoxCeleb1/iden_split.txt").write_text("".join(lines))
    (folder / "corpus.json").write_text(json.dumps({"audio_sha256": "0" * 64}))
    return folder


def write_results(folder: Path, made: Made) -> None:
    """What a process leaves in the folder of its experiment."""
    description = json.loads((folder / run_experiment.EXPERIMENT).read_text())
    experiment, settings = description["experiment"], description["settings"]
    dev, wrong = made(settings["upstream"], experiment["config"]["optimizer"]["lr"], settings["seed"])
    run_experiment.check_weights(folder, settings["ckpt"])
    trained = {"checkpoint": TASKS[experiment["task"]].best, "dev": dev, "seconds": 1}
    (folder / run_experiment.TRAINED).write_text(json.dumps(trained))
    for test in experiment["tests"]:
        place = folder / run_experiment.TESTS / test["name"]
        place.mkdir(parents=True)
        names = [f"utterance{number:02}" for number in range(UTTERANCES)]
        answers = ["wrong" if number < wrong else "right" for number in range(UTTERANCES)]
        outcome = accuracy(answers, ["right"] * UTTERANCES)
        write_outcomes(place / OUTCOMES, names, outcome.errors, outcome.lengths)
        score = {"value": outcome.value, "value_error": outcome.value_error, "chance": 25.0, "chance_error": 4.0}
        result = {**score, "utterances": UTTERANCES, "changes": test["changes"], "seconds": 1}
        (place / run_experiment.RESULT).write_text(json.dumps(result))
