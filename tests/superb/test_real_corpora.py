"""``superb --corpus real`` as it is shipped, on small corpora in the layouts of the real ones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import soundfile
from helpers_corpora import LIBRISPEECH, iemocap, lexicon, librispeech, speech_commands, voxceleb1
from helpers_s3prl import python

from s3prl_ekd import cli
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_lines, read_yaml
from s3prl_ekd.s3prl_plugin.runners import downstream_config
from s3prl_ekd.superb.summary import read_summary
from s3prl_ekd.tasks import TASKS, sid
from s3prl_ekd.tasks import iemocap as labels
from s3prl_ekd.tasks.corpora import Corpora, Split

BOTH = frozenset(Split)
MACOS = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "  # how a ._ file begins


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The corpora with what comes along in practice: macOS' files, a list and labels from other editors."""
    root = tmp_path_factory.mktemp("real")
    librispeech(root / "LibriSpeech", LIBRISPEECH | {"train-clean-360": 0, "train-other-500": 0})
    lexicon(root / "librispeech-lexicon.txt")
    (voxceleb1(root / "VoxCeleb1") / "iden_split.txt").rename(root / "iden_split.txt")
    iemocap(root / "IEMOCAP_full_release")
    speech_commands(root)
    split = (root / "iden_split.txt").read_text()
    (root / "iden_split.txt").write_bytes(b"\xef\xbb\xbf" + split.replace("\n", "  \r\n\r\n").encode())
    for file in sorted((root / "IEMOCAP_full_release").rglob("EmoEvaluation/*.txt")):
        text = file.read_text().replace("()", "(d\u00e9\u00e7u)").replace("\n", "\r\n")
        file.write_bytes(text.encode("latin-1"))
        file.with_name(f"._{file.name}").write_bytes(MACOS)
    for file in sorted(root.rglob("*.wav")):
        file.with_name(f"._{file.name}").write_bytes(MACOS)
        file.with_name(".DS_Store").write_bytes(MACOS)
    return root


@pytest.fixture(scope="module")
def judged(root, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The command of the README, but for where things are and how long it trains."""
    out = tmp_path_factory.mktemp("judged")
    few = [word for task in TASKS for word in ("--steps", f"{task}=1")]
    narrow = ["--set", "asr:downstream_expert.modelrc.RNNs.dim=[64, 64]"]  # of 1024, which would take a minute
    # fmt: off
    done = python(
        "-m", "s3prl_ekd", "superb", "--upstream", "ekd_student_mini", "--corpus", "real", "--out", "results/ekd",
        "--tasks", "pr,sid,er,asr,ks",
        "--librispeech", str(root / "LibriSpeech"), "--lexicon", str(root / "librispeech-lexicon.txt"),
        "--voxceleb1", str(root / "VoxCeleb1"), "--iden-split", str(root / "iden_split.txt"),
        "--iemocap", str(root / "IEMOCAP_full_release"),
        "--speech-commands", str(root / "speech_commands_v0.01"),
        "--speech-commands-test", str(root / "speech_commands_test_set_v0.01"),
        "--jobs", "2", "--device", "cpu", *few, *narrow, cwd=out, timeout=600,
    )
    # fmt: on
    return out / "results/ekd", done


@pytest.mark.parametrize(
    ("task", "folder", "workers", "utterances"),
    [
        ("pr", "pr", "corpus", 4),
        ("sid", "sid", "datarc", 6),
        ("er", "er-fold5", "datarc", 5 * 2 * 5),
        ("asr", "asr", "datarc", 4),
        ("ks", "ks", "datarc", 12),
    ],
)
def test_each_task_is_trained_and_judged_with_the_workers_of_its_recipe(judged, task, folder, workers, utterances):
    out, done = judged
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in read_summary(out) if row.task == task]
    assert (row.utterances, row.steps, row.corpus) == (utterances, 1, "real")
    for config in (out / folder / "train/config.yaml", *(out / folder).glob("tests/*/config.yaml")):
        settings = read_yaml(config)["downstream_expert"][workers]
        assert settings["num_workers"] == TASKS[task].template("real")["downstream_expert"][workers]["num_workers"] == 4


# --- lists and labels as they come ------------------------------------------------------------------------------------


def test_what_the_runner_reads_can_be_had_alone(root, tmp_path, capsys):
    """``--prepare``: nothing is null any more, nothing is trained, and no upstream has to be named."""
    where = ["--librispeech", "LibriSpeech", "--lexicon", "librispeech-lexicon.txt", "--voxceleb1", "VoxCeleb1"]
    where += ["--iden-split", "iden_split.txt", "--iemocap", "IEMOCAP_full_release"]
    where = [word if word.startswith("--") else str(root / word) for word in where]
    out = tmp_path / "prepared"
    assert cli.main(["superb", "--prepare", "--corpus", "real", "--out", str(out), *where]) == 0
    names = {"pr": "ctc", "sid": "voxceleb1", "asr": "asr"} | {f"er-fold{fold}": "emotion" for fold in range(1, 6)}
    printed = capsys.readouterr().out
    for name, task in names.items():
        assert f"{out / 'configs' / name}.yaml  (run_downstream -d {task} -c ...)" in printed
        config = read_yaml(out / "configs" / f"{name}.yaml")
        downstream_config.check_filled_in(task, config)
        downstream_config.check_keys(task, config)
    assert {path.name for path in out.iterdir()} == {"configs", "prepared"}
    assert cli.main(["superb", "--corpus", "real", "--out", str(out), *where]) == 2
    assert "--upstream is missing" in capsys.readouterr().err


def test_a_split_list_of_any_editor_is_the_list(root, tmp_path):
    sid.check_split_file(root / "VoxCeleb1", root / "iden_split.txt")
    assert len(read_lines(root / "iden_split.txt")) == 18
    (tmp_path / "list.txt").write_bytes("1 id10001/\xe9/00001.wav\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"list\.txt, line 1: not UTF-8 \(byte 0xE9, Latin-1 perhaps\)"):
        sid.check_split_file(root / "VoxCeleb1", tmp_path / "list.txt")


def test_iemocap_is_read_beside_the_files_of_macos(root):
    turns = labels.session_labels(root / "IEMOCAP_full_release", "Session2")
    assert sorted(turn["label"] for turn in turns) == sorted(["neu", "hap", "hap", "ang", "sad"] * 2)
    assert all(soundfile.info(root / "IEMOCAP_full_release" / turn["path"]).frames > 0 for turn in turns)


# --- hidden sets in the layouts of the originals ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    hidden = tmp_path_factory.mktemp("hidden")
    librispeech(hidden / "LibriSpeech", {"test-other": 1, "dev-other": 1, "test-clean": 1})
    voxceleb1(hidden / "VoxCeleb1", speakers=2)
    iemocap(hidden / "IEMOCAP_full_release", turns=1)
    speech_commands(hidden, speakers=0)
    return hidden


def _planned(task: str, root: Path, hidden: Path, folder: Path) -> list:
    given = {
        "librispeech": root / "LibriSpeech",
        "lexicons": (root / "librispeech-lexicon.txt",),
        "voxceleb1": root / "VoxCeleb1",
        "iden_split": root / "iden_split.txt",
        "iemocap": root / "IEMOCAP_full_release",
        "speech_commands": root / "speech_commands_v0.01",
        "speech_commands_test": root / "speech_commands_test_set_v0.01",
        "hidden": hidden,
    }
    return TASKS[task].experiments(Corpora(recipes="real", given=given), BOTH, TASKS[task].template("real"), folder)


def test_hidden_read_speech_in_librispeechs_own_layout(root, originals, tmp_path):
    for task, key, path in (("pr", "corpus.test", "corpus.path"), ("asr", "datarc.test-clean", "datarc.libri_root")):
        (experiment,) = _planned(task, root, originals, tmp_path)
        hidden = {test.name: test.changes for test in experiment.tests if test.split == Split.HIDDEN}
        assert list(hidden) == ["hidden-test-clean", "hidden-test-other"]
        assert [test.name for test in experiment.tests if test.split == Split.PUBLIC] == ["test-clean"]
        assert hidden["hidden-test-clean"][f"downstream_expert.{key}"] == ["test-clean"]
        assert hidden["hidden-test-clean"][f"downstream_expert.{path}"] == str(originals / "LibriSpeech")
    public, hidden = (tmp_path / name / "test-clean.csv" for name in ("len_for_bucket", "len_for_bucket-hidden"))
    assert public.read_text() != hidden.read_text()


def test_public_test_sets_of_read_speech_are_not_hidden(root, tmp_path):
    with pytest.raises(UserError, match=f"--hidden {root}: has no test sets of read speech but the public ones"):
        _planned("pr", root, root, tmp_path)


@pytest.mark.parametrize("where", ["", "IEMOCAP_full_release"])
def test_hidden_emotional_speech_in_iemocaps_own_layout(root, originals, tmp_path, where):
    experiments = _planned("er", root, originals / where, tmp_path)
    (changes,) = {json.dumps(test.changes) for one in experiments for test in one.tests if test.split == Split.HIDDEN}
    data = {key.rpartition(".")[2]: value for key, value in json.loads(changes).items()}
    assert (data["root"], data["test_fold"]) == (str(originals / "IEMOCAP_full_release"), "fold1")
    for name in ("train", "test"):
        found = json.loads(Path(data["meta_data"], "Session1", f"{name}_meta_data.json").read_text())
        assert found["labels"] == labels.CLASSES
        assert sorted(turn["label"] for turn in found["meta_data"]) == sorted(["neu", "hap", "hap", "ang", "sad"] * 5)
        assert all(Path(data["root"], turn["path"]).is_file() for turn in found["meta_data"])


def test_hidden_speakers_in_voxcelebs_own_layout(root, originals, tmp_path):
    _, hidden = _planned("sid", root, originals, tmp_path)
    data = hidden.config["downstream_expert"]["datarc"]
    assert hidden.name == "sid-hidden"
    assert data["file_path"] == str(originals / "VoxCeleb1")
    assert data["meta_data"] == str(originals / "VoxCeleb1/iden_split.txt")


def test_hidden_keywords_in_speech_commands_own_layout(root, originals, tmp_path):
    (experiment,) = _planned("ks", root, originals, tmp_path)
    hidden = originals / "speech_commands_test_set_v0.01"
    assert {test.name: dict(test.changes) for test in experiment.tests} == {
        "test": {},
        "hidden": {"downstream_expert.datarc.speech_commands_test_root": str(hidden)},
    }


@pytest.mark.parametrize("task", TASKS)
def test_hidden_sets_of_neither_layout_are_one_line(root, tmp_path, task):
    (tmp_path / "hidden").mkdir()
    with pytest.raises(UserError, match=rf"--hidden {tmp_path}/hidden: expected .* laid out as the mini corpus or the"):
        _planned(task, root, tmp_path / "hidden", tmp_path)
