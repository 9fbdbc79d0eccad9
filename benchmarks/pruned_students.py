"""How good a student is against its size: pruned to a budget, or EKD's shallow student of the same size.

    python benchmarks/pruned_students.py --out build/pruned --corpus mini-corpus

Trains recipes/mini/ekd_pruned.yaml with budgets of 100 (not pruned), 50 and 25 % of the teacher's parameters, and
recipes/mini/ekd_groups.yaml with shallow students of as many parameters, on the same speech and for as many steps, with
three seeds; judges each by `s3prl-ekd superb`. What is there already is not made again, so that it can be stopped and
started. Writes benchmarks/results/pruned_students.json and docs/images/pruned_students.png.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

from s3prl_ekd import assets, cost
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.files import write_json
from s3prl_ekd.pictures import COLOURS, new_figure
from s3prl_ekd.student.folder import load_student

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/pruned_students.json"
PICTURE = ROOT / "docs/images/pruned_students.png"
SHARES = (1.0, 0.5, 0.25)
STEPS = 500
TASKS = ("pr", "sid", "er", "asr")
METHODS = {"pruned": "EKD, pruned copy of WavLM", "shallow": "EKD, shallow student of that size"}


def parameters(config: StudentConfig) -> int:
    """By the package's table."""
    return int(cost.parameters(cost.FixedSizes.of(config), cost.UnitCounts.of(config)))


def shallow(config: StudentConfig, target: float) -> list[str]:
    """Overrides that make a shallow student of so many parameters: as few layers as can have them, feed-forward blocks
    as wide as fits; where one layer is too much already, with a quarter of the position convolution's taps."""
    for positions in (config.num_conv_pos_embeddings, config.num_conv_pos_embeddings // 4):
        for layers in range(1, 5):
            sizes = replace(config, num_hidden_layers=layers, num_conv_pos_embeddings=positions)
            widest = 4 * config.hidden_size
            least, most = (parameters(replace(sizes, intermediate_size=width)) for width in (1, widest))
            if least <= target <= most * 1.02:
                width = min(widest, 1 + round((target - least) / (most - least) * (widest - 1)))
                changed = {
                    "num_hidden_layers": layers,
                    "num_conv_pos_embeddings": positions,
                    "intermediate_size": width,
                }
                return [f"student.{key}={value}" for key, value in changed.items()]
    raise SystemExit(f"no shallow student has {target:.0f} parameters")


def run(*command: str | Path, log: Path) -> None:
    """A command in one thread, its output in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", *map(str, command)], stdout=file, stderr=file, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: status {done.returncode}, see {log}")


def distilled(method: str, share: float, seed: int, out: Path, full: float, cuts: Sequence[str]) -> Path:
    """The folder of a trained student."""
    folder = out / f"{method}-{share:g}-{seed}"
    if (folder / "student/config.json").exists():
        return folder / "student"
    recipe = "mini/ekd_groups.yaml" if method == "shallow" else "mini/ekd_pruned.yaml"
    changes = [*cuts, f"output={folder}", f"seed={seed}", "data.num_workers=0"]
    if method == "shallow":
        changes += [
            f"trainer.max_steps={STEPS}",
            *shallow(RunConfig.from_yaml(ROOT / "recipes" / recipe).student, share * full),
        ]
    else:
        changes += [f"targets.cache={out / 'targets'}"]
        changes += (
            ["pruning=null", "stages=[]", f"trainer.max_steps={STEPS}"]
            if share == 1
            else [f"pruning.budget={{parameters: {share * full:.0f}}}"]
        )
    run("s3prl_ekd.cli", "distill", recipe, *changes, "--resume", log=folder.with_suffix(".log"))
    return folder / "student"


def judged(student: Path, seed: int, out: Path, corpus: Path) -> dict[str, float]:
    """Its metrics on the public and hidden sets, by their names."""
    folder = out / "results" / student.parent.name
    run(
        *("s3prl_ekd.cli", "superb", "--upstream", "ekd_student", "--ckpt", student),
        *("--corpus", "mini", "--data", corpus, "--out", folder),
        *("--split", "both", "--jobs", "1", "--threads", "1", "--seed", str(seed)),
        *("--tasks", ",".join(TASKS), "--label", student.parent.name),
        log=folder.with_suffix(".log"),
    )  # fmt: skip
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    return {f"{row['task']} {row['split']} {row['test_set']} {row['metric']}": row["value"] for row in rows}


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--corpus", type=Path, required=True, help="made by s3prl-ekd mini-corpus")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each (default: 2)")
    options = parser.parse_args()
    out, corpus = options.out.resolve(), options.corpus.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    if not (out / "cuts").exists():
        parts = ("--parts", "distil-train", "dev-clean")
        run("s3prl_ekd.cli", "data", "librispeech", corpus / "LibriSpeech", "cuts", *parts, log=out / "data.log")
    cuts = [f"distortion.noise.folder={corpus / 'noise'}"]
    run("s3prl_ekd.cli", "cache-targets", "mini/ekd_pruned.yaml", "targets", *cuts, log=out / "targets.log")
    full = parameters(load_student(assets.folder("teachers/wavlm")).config)
    units = [(m, share, seed) for seed in range(options.seeds) for share in SHARES for m in METHODS]
    rows: list[dict[str, Any]] = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:

        def one(unit: tuple[str, float, int]) -> dict[str, Any]:
            student = distilled(*unit, out, full, cuts)
            config = load_student(student).config
            sizes, counts = cost.FixedSizes.of(config), cost.UnitCounts.of(config)
            row = {"method": unit[0], "share": unit[1], "seed": unit[2]}
            row |= {kind: int(count(sizes, counts)) for kind, count in cost.COSTS.items()}
            row["metrics"] = judged(student, unit[2], out, corpus)
            print(json.dumps(row), flush=True)
            return row

        rows = list(pool.map(one, units))
    write_json(
        RESULT,
        {
            "what": "students of three sizes, pruned or shallow",
            "date": datetime.date.today().isoformat(),
            "machine": common.machine("cpu"),
            "steps": STEPS,
            "rows": rows,
        },
    )
    draw(rows)


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """Metrics against parameters, and against multiply-adds: the mean over seeds, and from the least to the most."""
    names = list(rows[0]["metrics"])
    figure = new_figure(3.2 * len(names), 6.4)
    axes = figure.subplots(2, len(names), squeeze=False)
    for line, kind in enumerate(cost.COSTS):
        for column, name in enumerate(names):
            place = axes[line][column]
            for number, (method, label) in enumerate(METHODS.items()):
                points = []
                for share in SHARES:
                    same = [row for row in rows if (row["method"], row["share"]) == (method, share)]
                    values = [row["metrics"][name] for row in same]
                    points.append(
                        (statistics.mean(row[kind] for row in same), statistics.mean(values), min(values), max(values))
                    )
                x, mean, low, high = zip(*points, strict=True)
                place.plot(x, mean, color=COLOURS[number], marker="os"[number], label=label)
                place.vlines(x, low, high, color=COLOURS[number])
            place.set(title=name if line == 0 else None, xlabel=cost.IN_WORDS[kind], xlim=(0, None))
            place.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
