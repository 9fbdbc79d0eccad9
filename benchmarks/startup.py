"""How long things take to start: CPU time of fresh processes.

    python benchmarks/startup.py

Also counts how many of s3prl's modules each of them loads.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

LIMITS = {"import s3prl_ekd": 0.1, "s3prl-ekd --help": 0.3}
HUB = "from s3prl_ekd.s3prl_plugin import hub; hub.register(); import s3prl.hub"


def commands(student: str) -> dict[str, list[str]]:
    """What is started."""
    program = Path(sysconfig.get_path("scripts")) / "s3prl-ekd"
    code = {
        "python": "pass",
        "import s3prl_ekd": "import s3prl_ekd",
        "import torch": "import torch",
        "ekd_student, no s3prl": f"from s3prl_ekd.upstream import ekd_student; ekd_student({student!r})",
        "s3prl.hub": HUB,
        "ekd_student in s3prl.hub": f"{HUB}; s3prl.hub.ekd_student({student!r})",
    }
    count = "; import sys; print(sum(name.split('.')[0] == 's3prl' for name in sys.modules))"
    return {name: [sys.executable, "-c", line + count] for name, line in code.items()} | {
        "s3prl-ekd --help": [str(program), "--help"]
    }


def run(command: Sequence[str]) -> tuple[float, str]:
    """CPU seconds of a process, and the last line that it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout.splitlines()[-1]


def measure(student: str, repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each start, and how many modules of s3prl it loads."""
    times: dict[str, list[float]] = {}
    loaded: dict[str, int] = {}
    for _ in range(repeats + 1):  # the first only warms the disk's cache
        for name, command in commands(student).items():
            seconds, last = run(command)
            times.setdefault(name, []).append(seconds)
            loaded[name] = int(last) if last.isdigit() else 0
    return {name: values[1:] for name, values in times.items()}, loaded


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv, argparse.Namespace(device="cpu", threads=1, quick=False))

    import common

    from s3prl_ekd.config.recipe import StudentConfig
    from s3prl_ekd.student.folder import save_student
    from s3prl_ekd.student.model import Student

    tiny = {"conv_dim": [16] * 7, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 48,
            "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        student = save_student(Path(folder) / "student", Student(StudentConfig.from_mapping(tiny)))
        times, loaded = measure(str(student), args.repeats)
    timings = common.summary(times)
    result = common.result(args, "CPU seconds from process start to the end of the process") | {
        "timings": timings,
        "fastest_s": {name: values["min_s"] for name, values in timings.items()},
        "s3prl_modules": loaded,
        "limits": LIMITS,
    }
    return common.finish(args, "startup", result, checked="fastest_s")


if __name__ == "__main__":
    sys.exit(main())
