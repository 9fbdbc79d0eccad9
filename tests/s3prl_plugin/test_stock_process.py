"""Around s3prl's scripts: what is put back, what is left behind, how a run ends."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from helpers_s3prl import python

from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner
from s3prl_ekd.s3prl_plugin.runners import pretrain as pretrain_runner
from s3prl_ekd.s3prl_plugin.runners import stock_process


def test_a_mistake_that_s3prl_stumbles_over_is_one_line_until_training_has_begun(here, monkeypatch):
    package = here / "s3prl"
    package.mkdir()
    (package / "failing.py").write_text(
        "import argparse, sys\n"
        "class pbar:\n"
        "    n = 0\n"
        "def train(pbar, init_step, settings):\n"
        "    pbar.n += int(sys.argv[1])\n"
        "    settings['save_step']\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('steps', type=int)\n"
        "pbar.n = init = parser.parse_args([sys.argv[1].lstrip('+')]).steps and 3\n"
        "train(pbar, init, {'runner': 1})\n"
    )

    def run(steps: str) -> None:
        with stock_process.stock_process(["failing.py", steps]):
            runpy.run_path(str(package / "failing.py"))

    said = (
        r"s3prl stopped with KeyError: 'save_step' \(.*s3prl/failing.py, line 6: settings\['save_step'\]\); python -X"
    )
    with pytest.raises(UserError, match=said):
        run("0")
    with pytest.raises(KeyError, match="save_step"):  # after a step, the traceback tells more
        run("+1")
    with pytest.raises(UserError, match=r"argument steps: invalid int value: 'x'; .* --help shows how"):
        run("x")


def test_a_folder_with_something_of_worth_is_kept(here):
    settings, result = ("config_2026.yaml", "events.out.tfevents.1"), ("states-1.ckpt",)

    def fail_with(*files: str) -> None:
        with stock_process.forget_new_folder("result/run"):
            Path("result/run").mkdir(parents=True, exist_ok=True)
            for name in files:
                Path("result/run", name).touch()
            raise KeyError("late")  # of s3prl, as likely as not

    for files, left in ((settings, []), (settings + result, [Path("result")])):
        with pytest.raises(KeyError, match="late"):
            fail_with(*files)
        assert list(Path().iterdir()) == left
    Path("result/run/states-1.ckpt").unlink()
    with pytest.raises(KeyError, match="late"):
        fail_with(*settings)
    assert Path("result/run").exists()  # it was there before


@pytest.mark.parametrize("module", ["s3prl_ekd.run_downstream", "s3prl_ekd.run_pretrain"])
def test_commands_answer_a_mistake_with_one_line_and_status_2(here, module):
    done = python("-m", module, *(["-m", "evaluate"] if "downstream" in module else []), "-e", "no.ckpt")
    assert done.returncode == 2
    error = f"python -m {module}: error: -e no.ckpt: no such checkpoint file or folder (working folder: {here})\n"
    assert done.stderr == error
    assert done.stdout == ""


def test_a_file_system_that_refuses_is_said_in_one_line(place, here, capsys):
    folder = f"{place}/pr.yaml/run"  # below a file
    downstream, pretrain = "-m train -u fbank -d ctc -c {place}/pr.yaml", "-u ekd_student -g {place}/config_model.yaml"
    for runner, options in ((downstream_runner, downstream), (pretrain_runner, pretrain)):
        assert runner.main([*options.format(place=place).split(), "-p", folder]) == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith(f": error: {folder}: Not a directory")
