"""Every recipe that is shipped: loaded, its data read by its own workers, one step; with tiny models, on tiny corpora.

What is under recipes/ is found by walking, so that a recipe more is a test more. Replaced are the teachers, which would
be fetched, the student's sizes, the folder /data and the number of steps; all else is as shipped.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_corpora import iemocap, lexicon, librispeech, musan, speech_commands, voxceleb1
from helpers_recipes import with_tiny_teachers
from helpers_s3prl import python

from s3prl_ekd import assets, cli
from s3prl_ekd.audio.text import write_lengths
from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.files import read_yaml, write_yaml
from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner
from s3prl_ekd.superb.evaluation import with_steps
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.corpora import Corpora, Split

RECIPES = assets.recipe()
PRETRAIN = sorted(file.parent.relative_to(RECIPES).as_posix() for file in RECIPES.rglob("config_model.yaml"))
DOWNSTREAM = sorted(file.relative_to(RECIPES).as_posix() for file in RECIPES.glob("downstream/**/*.yaml"))
DISTILL = sorted(
    {file.relative_to(RECIPES).as_posix() for file in RECIPES.rglob("*.yaml")}
    - {f"{folder}/{name}" for folder in PRETRAIN for name in ("config_model.yaml", "config_runner.yaml")}
    - {*DOWNSTREAM}
)
SPLITS = {
    "train-clean-100": 1, "train-clean-360": 1, "train-other-500": 1, "train-clean": 2, "distil-train": 2,
    "dev-clean": 1, "test-clean": 1, "test-noisy": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """``data/`` with all corpora in the real layouts, and under the names that the recipes of the mini corpus have."""
    root = tmp_path_factory.mktemp("workplace")
    data = root / "data"
    librispeech(data / "LibriSpeech", SPLITS)
    for split in SPLITS:
        write_lengths(data / "LibriSpeech", split, data / "len_for_bucket" / f"{split}.csv")
    musan(data / "musan")
    lexicon(data / "lexicon.txt")
    voxceleb1(data / "VoxCeleb1")
    iemocap(data / "IEMOCAP", turns=1)
    speech_commands(data)
    (root / "mini-corpus").mkdir()
    for name, target in {"LibriSpeech": "LibriSpeech", "len_for_bucket": "len_for_bucket", "noise": "musan"}.items():
        (root / "mini-corpus" / name).symlink_to(data / target)
    assert cli.main(["data", "librispeech", str(data / "LibriSpeech"), str(root / "cuts"), "--parts", *SPLITS]) == 0
    return root


def tiny(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with packaged teachers and a student of their size."""
    if "copy" not in recipe["student"]:
        recipe["student"] |= {
            key: value for key, value in read_yaml(RECIPES / "mini/config_model.yaml")["student"].items()
            if key != "initialize_from"
        }  # fmt: skip
    return with_tiny_teachers(recipe)


def copied(name: str, root: Path, folder: Path) -> Path:
    """A shipped YAML file in ``folder`` whose /data is that of the workplace."""
    text = (RECIPES / name).read_text(encoding="utf-8").replace("/data/", f"{root}/data/")
    file = folder / Path(name).name
    write_yaml(file, yaml.safe_load(text))
    return file


def test_every_kind_of_recipe_is_found():
    assert {"mini", "ls960_distilhubert", "ls960_ekd_average"} <= set(PRETRAIN)
    methods = {"dphubert", "skill", "residual_ekd", "ekd_groups", "ekd_pruned"}
    assert {f"ls960_{name}/distill.yaml" for name in methods | {"ekd"}} < set(DISTILL)
    assert {f"mini/{name}.yaml" for name in methods | {"ekd"}} < set(DISTILL)
    assert {f"downstream/{kind}/{task}.yaml" for kind in ("mini", "real") for task in TASKS} == set(DOWNSTREAM)


# --- run_pretrain -----------------------------------------------------------------------------------------------------

# One process for all of them, since a start of s3prl takes seconds.
DRIVER = """
import json, sys, torch
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data import PretrainLoader
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.s3prl_plugin.runners import pretrain as pretrain_runner

def noting(original, key, value):
    def method(self, *args, **options):
        result = original(self, *args, **options)
        print("NOTE" + json.dumps({key: value(self, result)}), flush=True)
        return result
    return method

PretrainLoader._loader = noting(PretrainLoader._loader, "workers", lambda _, loader: loader.num_workers)
Distiller.forward = noting(Distiller.forward, "loss", lambda _, output: output.loss.item())
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    options = ["-u", "ekd_student", "-g", f"{folder}/config_model.yaml", "-p", f"{folder}/run", "--device", "cpu"]
    few = ",,".join(f"config.runner.{name}" for name in ("total_steps=2", "log_step=1", "save_step=1"))
    status = pretrain_runner.main([*options, "-o", few])
    print("NOTE" + json.dumps({"folder": folder, "status": status}), flush=True)
"""


@pytest.fixture(scope="module")
def pretrained(workplace) -> dict[str, dict[str, Any]]:
    """What each recipe of run_pretrain did: its workers, its losses, its status."""
    folders = {name: workplace / "pretrain" / name for name in PRETRAIN}
    for name, folder in folders.items():
        for file in ("config_model.yaml", "config_runner.yaml"):
            copied(f"{name}/{file}", workplace, folder)
        write_yaml(folder / "config_model.yaml", tiny(read_yaml(folder / "config_model.yaml")))
    (workplace / "driver.py").write_text(DRIVER)
    done = python("driver.py", *map(str, folders.values()), cwd=workplace, timeout=400)
    assert done.returncode == 0, done.stderr
    notes = [json.loads(line.partition("NOTE")[2]) for line in done.stdout.splitlines() if "NOTE" in line]
    found, seen = {}, {"loss": []}
    for note in notes:
        if "folder" in note:
            found[note["folder"]], seen = {**seen, **note, "stderr": done.stderr}, {"loss": []}
        else:
            seen = {**seen, **{key: [*seen["loss"], value] if key == "loss" else value for key, value in note.items()}}
    return {name: found[str(folder)] for name, folder in folders.items() if str(folder) in found}


@pytest.mark.parametrize("name", PRETRAIN)
def test_recipe_of_run_pretrain(pretrained, name):
    assert name in pretrained
    done, datarc = pretrained[name], read_yaml(RECIPES / name / "config_runner.yaml")["pretrain_expert"]["datarc"]
    assert done["status"] == 0, done["stderr"]
    assert done["workers"] == datarc["num_workers"] > 0
    assert len(done["loss"]) == 2
    assert all(0 < loss < 100 for loss in done["loss"])
    assert len(list(Path(done["folder"], "run").glob("states-*.ckpt"))) == 2


# --- distill ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTILL)
def test_recipe_of_distill(workplace, monkeypatch, name):
    monkeypatch.chdir(workplace)
    folder = workplace / "distill" / Path(name).with_suffix("")
    file = copied(name, workplace, folder)
    write_yaml(file, tiny(read_yaml(file)))
    assert (
        DataConfig.from_mapping(read_yaml(file)["data"]).num_workers == read_yaml(RECIPES / name)["data"]["num_workers"]
    )
    recipe = read_yaml(file)
    stages = [stage["name"] for stage in recipe.get("stages", ())]
    steps = [f"trainer.{key}=1" for key in ("max_steps", "log_every", "dev_every", "checkpoint_every")]
    steps += [f"stages.{number}.max_steps=2" for number, _ in enumerate(stages)]
    steps += ["pruning.warmup_steps=1"] if "pruning" in recipe else []
    if "targets" in recipe:
        assert cli.main(["cache-targets", str(file), recipe["targets"]["cache"], *steps]) == 0
    assert cli.main(["distill", str(file), f"output={folder / 'run'}", *steps]) == 0
    assert (folder / "run/student/model.safetensors").is_file()
    for place in [folder / "run" / name for name in stages] or [folder / "run"]:
        rows = [row for path in place.rglob("metrics.csv") for row in csv.DictReader(path.open(newline=""))]
        losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
        assert len(losses) == (2 if stages else 1)
        assert min(losses) > 0
        assert any(row.get("dev/loss") for row in rows)


# --- run_downstream ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOWNSTREAM)
def test_recipe_of_run_downstream(workplace, monkeypatch, name):
    _, kind, task = Path(name).with_suffix("").parts
    data, folder = workplace / "data", workplace / "downstream" / kind / task
    given = {
        "librispeech": data / "LibriSpeech",
        "lexicons": (data / "lexicon.txt",),
        "voxceleb1": data / "VoxCeleb1",
        "iden_split": data / "VoxCeleb1/iden_split.txt",
        "iemocap": data / "IEMOCAP",
        "speech_commands": data / "speech_commands_v0.01",
        "speech_commands_test": data / "speech_commands_test_set_v0.01",
    }
    corpora = Corpora(recipes=kind, given=given)
    template = with_steps(TASKS[task].template(kind), 1)
    if task == "asr" and kind == "real":
        template["downstream_expert"]["modelrc"]["RNNs"]["dim"] = [64, 64]
    experiment = TASKS[task].experiments(corpora, frozenset({Split.PUBLIC}), template, folder / "prepared")[0]
    write_yaml(folder / f"{task}.yaml", experiment.config)
    workers = []
    from torch.utils.data import DataLoader

    made = DataLoader.__iter__
    monkeypatch.setattr(DataLoader, "__iter__", lambda loader: (workers.append(loader.num_workers), made(loader))[1])
    options = ["-m", "train", "-d", TASKS[task].downstream, "-u", "ekd_student_mini", "-p", str(folder / "run")]
    downstream_runner.run([*options, "-c", str(folder / f"{task}.yaml"), "--device", "cpu"])
    shipped = read_yaml(RECIPES / name)["downstream_expert"]
    assert set(workers) == {(shipped.get("datarc") or shipped["corpus"])["num_workers"]}
    assert len(workers) >= 2  # training and development
    assert (folder / "run/states-1.ckpt").is_file()
