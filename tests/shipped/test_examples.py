"""The scripts under examples/ run, and what they train learns."""

from __future__ import annotations

import re

import soundfile
from helpers_models import ROOT, speech_like
from helpers_s3prl import python

from s3prl_ekd import load_student


def test_plain_loop(tmp_path):
    (tmp_path / "audio").mkdir()
    for seed in range(3):
        soundfile.write(tmp_path / f"audio/{seed}.wav", speech_like(16000 + 4000 * seed, seed).numpy(), 16000)
    script = ROOT / "examples/plain_loop.py"
    done = python(str(script), "audio", "student", "--steps", "21", "--batch-size", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", done.stdout)]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.05
    assert load_student(tmp_path / "student").config.hidden_size == 192
