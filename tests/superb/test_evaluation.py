"""Tasks through s3prl's stock runner: trained, judged, reused, resumed; and which folders are kept."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from helpers_models import TINY

from s3prl_ekd import cli
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.mini_corpus.config import MiniCorpusConfig
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.model import Student
from s3prl_ekd.superb import run_experiment
from s3prl_ekd.superb.evaluation import Evaluation
from s3prl_ekd.superb.outcomes import read_outcomes
from s3prl_ekd.superb.summary import read_summary
from s3prl_ekd.tasks import DEFAULT, TASKS
from s3prl_ekd.tasks.corpora import mini_corpora

PUBLIC = {("pr", "test-clean"), ("pr", "test-noisy"), ("sid", "test"), ("er", "test"),
          ("asr", "test-clean"), ("asr", "test-noisy")}  # fmt: skip
HIDDEN = {("pr", "hidden-clean"), ("pr", "hidden-noisy"), ("sid", "test"), ("er", "hidden"),
          ("asr", "hidden-clean"), ("asr", "hidden-noisy")}  # fmt: skip


@pytest.fixture
def in_process(monkeypatch) -> list[str]:
    """Let the command run its processes in this one (a start of s3prl costs seconds); the names of those it ran."""
    names = []

    def run(jobs, **_):
        for job in jobs:
            names.append(job.name)
            run_experiment.run(Path(job.arguments[-1]))

    monkeypatch.setattr("s3prl_ekd.superb.jobs.run_jobs", run)
    return names


def superb(student: Path, corpus: Path, out: Path, *more: str) -> int:
    steps = [word for task in DEFAULT for word in ("--steps", f"{task}=3")]
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
            assert row.metric == TASKS[row.task].metric
            assert row.value >= 0
            assert row.seconds > 0
            outcomes = read_outcomes(Path(row.outcomes[0]))  # of s3prl's own names and answers
            assert len(outcomes) == row.utterances
            errors, length = map(sum, zip(*outcomes.values(), strict=True))
            assert TASKS[row.task].percent(errors, length) == pytest.approx(row.value, abs=0.01)
        asr = next(row for row in rows if row.task == "asr")
        assert asr.value >= 90  # nothing is learnt in three steps, so no evaluation is better than 100 %
        assert asr.checkpoint == "states-3.ckpt"
        assert asr.dev is None
        assert all((row.dev is None) == (row.checkpoint != TASKS[row.task].best) for row in rows)
        assert all(row.dev > 50 for row in rows if row.task == "pr")  # percent
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


def test_rates_are_compared_by_what_s3prl_saw_on_the_development_set(corpus, tmp_path, in_process, capfd):
    words = ["--upstream", "fbank", "--tasks", "er", "--lr", "1e-3,0.1", "--steps", "er=3", "--device", "cpu"]
    arguments = ["superb", "--corpus", "mini", "--data", str(corpus), "--out", str(tmp_path / "out"), *words]
    assert cli.main(arguments) == 0
    assert in_process == ["fbank/lr-0.001/seed-1337/er", "fbank/lr-0.1/seed-1337/er"]
    rows = read_summary(tmp_path / "out")
    for row, rate in zip(rows, ("0.001", "0.1"), strict=True):
        log = (tmp_path / f"out/units/fbank/lr-{rate}/seed-1337/er/train/log.log").read_text()
        best = re.findall(r"New best on dev at step \d+: (\S+)", log)
        assert row.dev == (pytest.approx(100 * float(best[-1])) if best else None)
    assert "with one seed, an interval knows nothing of how trainings scatter" in capfd.readouterr().out


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
    stored = json.loads((folder / run_experiment.EXPERIMENT).read_text())
    del stored["settings"]["remember_features"]  # as if this setting had not been there
    (folder / run_experiment.EXPERIMENT).write_text(json.dumps(stored))
    asked("fbank")


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
