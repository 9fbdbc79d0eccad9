"""Using a student needs no more than ``requirements/student.txt`` names."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

from helpers_models import ROOT

import s3prl_ekd

IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn"}

# The modules that its arguments name cannot be imported, as if they were not installed.
USE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import soundfile, torch
import s3prl_ekd
from s3prl_ekd import assets, load_student
from s3prl_ekd.upstream import ekd_student

where = assets.folder("student_mini")
soundfile.write("speech.wav", 0.1 * torch.randn(16000).numpy(), 16000)
waveform = torch.from_numpy(soundfile.read("speech.wav", dtype="float32")[0])
with torch.no_grad():
    states = load_student(where)(waveform[None]).hidden_states
    for upstream in (ekd_student(where), torch.hub.load("{root}", "ekd_student", ckpt=str(where), source="local")):
        features = upstream([waveform])["hidden_states"]
        assert all(torch.equal(a[:, : b.shape[1]], b) for a, b in zip(features, states, strict=True))
print("used", len(states))
"""


def names(requirements: str) -> set[str]:
    """The packages that lines of requirements name, as Python imports them."""
    found = {re.match(r"[\w-]+", line)[0].lower() for line in requirements.splitlines() if re.match(r"\w", line)}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in found}


def test_student_with_four_packages(tmp_path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    everything = names(setup["options"]["install_requires"])
    few = names((ROOT / "requirements/student.txt").read_text())
    assert few == {"torch", "safetensors", "yaml", "soundfile"}
    missing = sorted(everything - few)
    assert {"s3prl", "transformers", "torchaudio", "lightning", "lhotse", "tqdm"} <= set(missing)
    done = subprocess.run(
        [sys.executable, "-c", USE.replace("{root}", str(ROOT)), *missing],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["used", "3"]


def test_public_names_are_listed_and_typed():
    assert set(s3prl_ekd.__all__) <= set(dir(s3prl_ekd))
    assert all(getattr(s3prl_ekd, name) is not None for name in s3prl_ekd.__all__)
    assert (Path(s3prl_ekd.__file__).parent / "py.typed").is_file()
