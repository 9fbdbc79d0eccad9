"""The job script: what it starts, and when it queues itself again."""

from __future__ import annotations

import os
import subprocess

import pytest

from s3prl_ekd import assets
from s3prl_ekd.training.run import EXIT_PREEMPTED

SCRIPT = assets.recipe("slurm") / "distill.sbatch"


def test_it_is_bash():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    settings = [line.split("#SBATCH ")[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "--requeue" in settings
    assert any(setting.startswith("--signal=USR1@") for setting in settings)


@pytest.mark.parametrize("status", [0, 2, EXIT_PREEMPTED])
def test_only_preemption_queues_again(status, tmp_path):
    for name, ending in (("srun", status), ("scontrol", 0)):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\nexit {ending}\n')
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "8"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(SCRIPT), "recipe.yaml", "optimizer.lr=1e-4"], env=environment)
    assert done.returncode == status
    started, *after = (tmp_path / "calls").read_text().splitlines()
    assert started.endswith(
        "s3prl-ekd distill recipe.yaml optimizer.lr=1e-4 trainer.num_nodes=3 trainer.devices=8 --resume"
    )
    assert after == (["scontrol requeue 42"] if status == EXIT_PREEMPTED else [])
