"""How every process of this package begins and ends."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable

from s3prl_ekd.errors import EXIT_USER_ERROR, UserError, printable_line

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it (128 + SIGINT)."""


def run_command(
    prog: str, work: Callable[[], int | None], *, go_on: str = "the same command goes on", silent: bool = False
) -> int:
    """Do ``work`` as a command does: log to stderr, and say in one line there what needs no traceback.

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
    status = EXIT_USER_ERROR
    try:
        return work() or 0
    except KeyboardInterrupt as interrupt:
        line, status = f"interrupted; {str(interrupt) or go_on}", EXIT_INTERRUPTED
    except UserError as error:
        line = f"error: {error}"
    except OSError as error:
        if error.filename is None:
            raise
        logger.debug("where it happened", exc_info=True)
        line = f"error: {printable_line(f'{error.filename}: {error.strerror or error}')}"
    if not silent:
        print(f"{prog}: {line}", file=sys.stderr)
    return status


def die_with_parent() -> None:
    """Have this process, started by multiprocessing, killed as soon as the process that asked for it is gone.

    The kernel could do so too (prctl), but for the direct parent only: with a forkserver that is another process, which
    lives as long as its children do.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
