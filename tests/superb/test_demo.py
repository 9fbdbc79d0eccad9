"""examples/mini/demo.py, with a few steps on hardly any speech."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types

from helpers_models import ROOT
from helpers_processes import another_at_work

from s3prl_ekd import cli
from s3prl_ekd.superb.summary import read_summary

EXAMPLES = ROOT / "examples/mini"


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


def interrupted(*_, **__):
    raise KeyboardInterrupt


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
