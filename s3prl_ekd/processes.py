"""How every process of this package begins and ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable

from s3prl_ekd.errors import EXIT_USER_ERROR, UserError, printable_line


def run_command(
    prog: str, work: Callable[[], int | None], *, go_on: str = "the same command goes on", silent: bool = False
) -> int:
    """Do ``work`` as a command does: log to stderr, and say in one line there what needs no traceback.

    Python's development mode (``python -X dev``) shows the traceback of an error all the same.

    Args:
        prog: begins the line.
        work: returns the exit status, or None for 0. It may raise a UserError or an OSError about a file (status 2), or
            be interrupted (status 130).
        go_on: what to say after an interruption, unless the KeyboardInterrupt itself says how to go on.
        silent: leave the line out, since another process says it.

    Returns:
        The exit status.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        return work() or 0
    except KeyboardInterrupt as interrupt:
        line, status = f"interrupted; {str(interrupt) or go_on}", 128 + signal.SIGINT  # as shells have it
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        if sys.flags.dev_mode:
            traceback.print_exc()
        said = str(error) if isinstance(error, UserError) else f"{error.filename}: {error.strerror or error}"
        line, status = f"error: {printable_line(said)}", EXIT_USER_ERROR
    if not silent:
        print(f"{prog}: {line}", file=sys.stderr)
    return status


def die_with_parent() -> None:
    """Have this process, started by multiprocessing, killed as soon as the process that asked for it is gone.

    The kernel could do so too (prctl), but for the direct parent only: with a forkserver that is another process, which
    lives as long as its children do.
    """
    import multiprocessing.connection
    import threading

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait_and_end(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_end, args=(parent.sentinel,), daemon=True).start()
