"""docs/students.md: its Python runs as it stands, for a student whose layers differ in size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from helpers_documents import blocks
from helpers_models import ROOT
from helpers_pruned import pruned_student

from s3prl_ekd import load_student
from s3prl_ekd.student.folder import save_student

DOC = (ROOT / "docs/students.md").read_text(encoding="utf-8")

# What the snippets, one after the other, must have given.
CHECKS = """
assert len(hidden_states) == len(features) == len(outputs.hidden_states) == 4
alone = student(waveforms[:1]).hidden_states[-1]
assert torch.allclose(features[-1][:1, : alone.shape[1]], alone, atol=1e-5)
assert torch.allclose(model(waveforms[:1]).last_hidden_state, alone, atol=1e-5)
assert torch.isfinite(loss) and type(recognizer).__name__.endswith("ForCTC")
"""


def test_python_runs(tmp_path):
    save_student(tmp_path / "ekd_student", pruned_student("wavlm"))
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    snippets = [block.text for block in blocks(DOC, "python")]
    assert len(snippets) == 4
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*snippets, CHECKS])],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "recognizer/modeling_ekd.py").is_file()
    assert load_student(tmp_path / "recognizer").config.kind == "wavlm"


def test_the_keys_are_those_of_config_json(tmp_path):
    save_student(tmp_path / "student", pruned_student("wavlm"))
    table = DOC.split("| key | meaning |")[1].split("\n\n")[0]
    text = (tmp_path / "student/config.json").read_text()
    keys = [line.split("`")[1] for line in table.splitlines()[2:]]
    assert len(keys) == 6
    for key in keys:
        assert f'"{key}"' in text
