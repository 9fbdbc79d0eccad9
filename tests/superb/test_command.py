"""``s3prl-ekd superb``: what it refuses, in one line and before anything is written."""

from __future__ import annotations

import pytest
import torch
from helpers_models import TESTS
from helpers_processes import another_at_work
from helpers_s3prl import python

from s3prl_ekd import cli
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin import hub
from s3prl_ekd.superb import run_experiment

HERE = str(TESTS)


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
        (["--upstream", "hubert_local", "--ckpt", "nowhere"], "--ckpt nowhere: no such file or folder"),
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
    monkeypatch.setattr("s3prl_ekd.superb.jobs.run_jobs", interrupted)
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
