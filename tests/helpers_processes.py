"""Another process that is at work in a folder, and whether a process still runs.

``python -m helpers_processes FILE`` runs FILE.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_WORK = """
import os, sys, time
from s3prl_ekd.files import only_writer
with only_writer(sys.argv[1]):
    worker = os.fork()
    if worker == 0:
        time.sleep(300)
        os._exit(0)
    print(worker, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_at_work(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that is the only writer of ``folder`` until the block ends; its forked worker outlives a kill."""
    command = [sys.executable, "-c", _WORK, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        try:
            yield process
        finally:
            os.kill(worker, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    runpy.run_path(sys.argv[1])
