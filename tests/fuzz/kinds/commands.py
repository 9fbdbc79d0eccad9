"""Command lines of ``s3prl-ekd``, in one process with the case."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Callable
from pathlib import Path

import soundfile
from helpers_models import speech_like

from fuzz.change import Change
from fuzz.kinds.good import MODEL_KEYS, RECIPE, student
from fuzz.law import BrokenError
from s3prl_ekd import cli
from s3prl_ekd.errors import LONGEST_MESSAGE, UserError
from s3prl_ekd.files import write_yaml
from s3prl_ekd.student.folder import save_student

ABOUT = "command lines of s3prl-ekd: words left out, doubled, swapped, put in; values that options cannot have"

# Not plug and unplug, which change the environment, nor what takes minutes when it is right: mini-corpus, superb.
_LINES = (
    "distill GOOD/recipe.yaml --print-config output=x",
    "distill GOOD/recipe.yaml trainer.max_steps=5",
    "recipes",
    "recipes mini copy",
    "curve GOOD",
    "report GOOD/summary.json",
    "data folder GOOD/audio out/cuts.jsonl.gz",
    "data tsv GOOD/list.tsv out/cuts.jsonl.gz --rate 16000",
    "data librispeech GOOD out --parts dev-clean",
    "data shar GOOD/cuts.jsonl out --shard-size 2 --audio flac",
    "export-checkpoint GOOD/student student --half",
    "init-student GOOD/model.yaml student --seed 3",
    "cache-targets GOOD/recipe.yaml cache --part 0/1 --shard-gb 1 --device cpu",
    "cluster-layers GOOD/recipe.yaml -o layers --device cpu",
    "--version",
)
_WORDS = (
    "-h", "--help", "--", "-", "", "-1", "0", "²", "nan", "1e400", "--seed", "--rate", "--part", "--shard-gb", "--out",
    "--resume", "--parts", "--device", "GOOD", "GOOD/audio", "/dev/null", "absent", "a\x1b[31m", "x" * 3000, "é",
    "\udcff", "9" * 5000, "key=value", "=", "seed=-1", "output=null", "--shard-size", "inf", "../..", "a/b/c",
)  # fmt: skip
_LONGEST_LINE = LONGEST_MESSAGE + 100  # with the command's name


def prepare(good: Path) -> None:
    for command in cli.COMMANDS:
        cli.module_of(command)
    for module in (
        "s3prl_ekd.training.run",
        "s3prl_ekd.target_cache.filling",
        "s3prl_ekd.calibration.find",
        "s3prl_ekd.cuts.manifests",
        "torch._dynamo",
    ):
        importlib.import_module(module)  # here, so that no case has to wait for it
    (good / "audio").mkdir()
    for number in range(2):
        soundfile.write(good / "audio" / f"{number}.wav", speech_like(3000, number).numpy(), 16000)
    (good / "list.tsv").write_text(f"{good}/audio\n0.wav\t3000\n1.wav\t3000\n")
    write_yaml(good / "recipe.yaml", RECIPE)
    write_yaml(good / "model.yaml", {key: RECIPE[key] for key in MODEL_KEYS})
    save_student(good / "student", *student())


def draw(good: Path, change: Change) -> Callable[[], object]:
    rng = change.rng
    words = (rng.choice(_LINES) if not change.harmless else "recipes").split()
    for _ in range(0 if change.harmless else rng.randint(0, 3)):
        at = rng.randint(0, len(words))
        action = rng.choice(("put in", "put in", "leave out", "swap", "double", "replace"))
        if action == "put in" or not words:
            words.insert(at, rng.choice(_WORDS))
        elif action == "swap":
            rng.shuffle(words)
        elif action == "double":
            words += words[at:]
        else:
            words[at : at + 1] = [rng.choice(_WORDS)] if action == "replace" else []
    argv = [word.replace("GOOD", str(good)) for word in words]
    change.note(" ".join(words))
    return lambda: _run(argv)


def _run(argv: list[str]) -> None:
    said = io.StringIO()
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            status = cli.main(argv)
        except SystemExit as end:  # argparse's
            status = end.code
    last = (said.getvalue().strip().splitlines() or [""])[-1]
    if status == 2 and last:
        if len(last) > _LONGEST_LINE or not last.isprintable():
            raise BrokenError(f"said {last[:200]!r}")
        raise UserError(last)
    if status not in (0, None):
        raise BrokenError(f"status {status}: {last[:200]}")
