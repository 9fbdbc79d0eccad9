"""Python commands in processes forked off one that has imported what they import, as the package's own jobs are run.

``python -m helpers_warm SOCKET`` is that process; :func:`client` writes a program that sends it a command line. The
command runs with the client's folder, environment and streams, and the client ends with the command's status.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

_CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    status = server.recv(1)
sys.exit(status[0] if status else 128)  # the process was killed
"""

# Whatever the commands of this package import that takes long.
_IMPORTED = (
    "lightning.pytorch",
    "lhotse",
    "transformers",
    "matplotlib.backends.backend_agg",
    "s3prl_ekd.superb.preload",
    "s3prl_ekd.training.run",
    "s3prl_ekd.s3prl_plugin.pretrain.ekd_student.pretrain_expert",
)


def start(address: Path, python: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start the process by an interpreter and wait until it listens; to be killed by the caller."""
    process = subprocess.Popen(
        [python, "-m", "helpers_warm", address, str(os.getpid())],
        env=environment,
        cwd=address.parent,  # where no s3prl_ekd is that would be imported instead
        stdin=subprocess.DEVNULL,
    )
    while not address.exists():
        if process.poll() is not None:
            raise RuntimeError("the warm process did not start")
        time.sleep(0.05)
    return process


def client(address: Path) -> str:
    """A Python program whose arguments are those of ``python -m``."""
    return _CLIENT.format(address=str(address))


def _serve(address: str, parent: int) -> None:
    """Fork a process for each command, until the process that has asked for this one is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children's ends need no waiting for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address + ".new")
        listener.listen()
        os.rename(address + ".new", address)
        listener.settimeout(1)
        while os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _be_the_command(connection)
                connection.close()


def _be_the_command(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as stream:
        arguments, folder, environment = json.loads(stream.read(int.from_bytes(header, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder  # as ``python -m`` has it
    sys.argv = arguments
    status = 1
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # as at an interpreter's end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([status % 256]))
        os._exit(status % 256)


if __name__ == "__main__":
    for name in _IMPORTED:
        importlib.import_module(name)
    _serve(sys.argv[1], int(sys.argv[2]))
