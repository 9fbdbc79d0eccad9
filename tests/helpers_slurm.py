"""A SLURM of shell and Python scripts: ``sbatch`` runs an array's tasks in the background, ``sacct`` tells of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SBATCH = """#!{python}
import os, re, subprocess, sys, time
from pathlib import Path
root, script = Path({root!r}), Path(sys.argv[1]).read_text()
if "--partition=nowhere" in script:
    sys.exit("sbatch: error: invalid partition specified: nowhere")
number = 11 + len(list(root.glob("*.sh")))
(root / f"{{number}}.sh").write_text(script)
array = re.search(r"--array=0-(\\d+)%(\\d+)", script)
tasks = [f"{{number}}_{{task}}" for task in range(int(array[1]) + 1)] if array else [str(number)]
for task in tasks:
    (root / f"{{task}}.state").write_text("PENDING")
print(f"Submitted batch job {{number}}", flush=True)
if os.fork():
    sys.exit()
os.setsid()
null = os.open(os.devnull, os.O_RDWR)
for stream in range(3):
    os.dup2(null, stream)
while (root / "hold").exists():
    time.sleep(0.05)
for task in tasks:  # one after another
    number, _, place = task.partition("_")
    own = {{"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0",
           "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "here"}}
    own |= {{"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": place}} if place else {{}}
    (root / f"{{task}}.state").write_text("RUNNING")
    status = subprocess.call(["bash", root / f"{{number}}.sh"], env=os.environ | own)
    (root / f"{{task}}.state").write_text("FAILED" if status else "COMPLETED")
"""
_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    case $1 in
        --error) error=$2; shift 2 ;;
        --output) shift 2 ;;
        *) shift ;;
    esac
done
error=${error//%j/$SLURM_JOB_ID}; error=${error//%A/$SLURM_JOB_ID}; error=${error//%a/$SLURM_ARRAY_TASK_ID}
exec "$@" 2> "${error//%t/0}"
"""
_SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for file in {root}/*.state; do
    [[ -f $file ]] || continue
    name=${{file##*/}}
    echo "${{name%.state}}|$(cat "$file")|here"
done
"""


class FakeSlurm:
    """Its scripts are put on ``PATH``; every submitted script is kept."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root = root
        (root / "bin").mkdir(parents=True)
        for name, text in (
            ("sbatch", _SBATCH.format(python=sys.executable, root=str(root))),
            ("srun", _SRUN),
            ("sacct", _SACCT.format(root=root)),
        ):
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")

    @property
    def scripts(self) -> list[str]:
        """What was submitted."""
        return [path.read_text() for path in sorted(self.root.glob("*.sh"))]

    def hold(self, hold: bool = True) -> None:
        """Let what is submitted wait, or let it run."""
        (self.root / "hold").touch() if hold else (self.root / "hold").unlink()
