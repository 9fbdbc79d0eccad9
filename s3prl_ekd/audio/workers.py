"""Waiting for a loader's workers, but not for ever: for those that ended, that cannot hand over a batch, or hang.

What torch does by itself: a batch that a worker's queue cannot send (no room in shared memory, no file handle left) is
dropped, and waited for without end; a worker's death raises a RuntimeError wherever the training process happens to be.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Set
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from s3prl_ekd.errors import UserError, one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 1.0
"""A loader's ``timeout``: so often :func:`patient` looks after its workers."""
SAID_AFTER = 60.0
"""Seconds of waiting after which a line says so."""

_PIN_SECONDS = 10.0  # the thread looks every five whether it should end
_SHARED_MEMORY = "/dev/shm"
_SHORT = (errno.ENOSPC, errno.EMFILE, errno.ENFILE)  # from torch; what a data set raises has no number by then
_at_work: set[tuple[int, BaseProcess]] = set()  # with the process that started them


def prepare_worker(worker: int) -> None:
    """A loader's ``worker_init_fn``.

    A scheduler's signals go to all processes; the training process acts on them and still needs its workers.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # multiprocessing's hook (CPython's documentation has it, typeshed not), called where an item is dropped.
    Queue._on_queue_feeder_error = _send_the_problem  # type: ignore[attr-defined]


def _send_the_problem(queue: Queue[Any], error: Exception, item: Any) -> None:
    if not isinstance(item, tuple) or isinstance(item[-1], UserError):
        os._exit(1)  # not even this can be sent: that the worker is gone will be noticed
    problem = UserError(f"data: a worker cannot hand over a batch ({one_line(error)}); {_remedy()}")
    queue.put((item[0], problem))


def _remedy() -> str:
    """What a user can do where processes cannot share a batch."""
    size = ""
    with contextlib.suppress(OSError):
        size = f" ({shutil.disk_usage(_SHARED_MEMORY).total / 2**20:.0f} MiB in all)"
    return (
        f"most often shared memory, {_SHARED_MEMORY}{size}, is too small: give more (docker run --shm-size=8g or"
        " --ipc=host), or set num_workers=0 in the recipe's data section, which needs none"
    )


def make_loader(
    dataset: Dataset[T],
    *,
    workers: int,
    sampler: Iterable[Any] | None = None,
    prefetch: int | None = None,
    generator: torch.Generator | None = None,
    pin_memory: bool = True,
) -> DataLoader[T]:
    """A loader for :func:`patient`, of a data set whose items are whole batches.

    ``sampler`` gives the keys of the items, and ``prefetch`` says how many each worker prepares ahead. The workers'
    seeds come from ``generator``, or torch's global one.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=generator,
        timeout=POLL_SECONDS if workers else 0,
        worker_init_fn=prepare_worker if workers else None,
    )


def patient(loader: DataLoader[T | UserError], limit: float) -> Iterator[T]:
    """The items of a loader, see :func:`make_loader`.

    Args:
        loader: iterated once.
        limit: seconds that one item may take.

    Raises:
        UserError: a worker has ended, an item takes longer than ``limit``, or is a UserError: data sets return theirs,
            since what a worker raises would reach the user wrapped in its traceback.
    """
    before = set(multiprocessing.active_children())
    workers: set[BaseProcess] = set()
    iterator: Iterator[T | UserError] = iter(())
    try:
        try:
            with _ends_are_named(workers):
                iterator = iter(loader)
        finally:
            _drop_torchs_signal_handler()
            workers |= set(multiprocessing.active_children()) - before
            _at_work.update((os.getpid(), worker) for worker in workers)
        while True:
            try:
                item = _next(iterator, workers, limit)
            except StopIteration:
                return
            if isinstance(item, UserError):
                raise item
            yield item
    finally:
        _end_pinning(iterator)
        _end(workers)


def _end_pinning(iterator: Iterator[Any]) -> None:
    """End torch's thread that copies batches into pinned memory, if there is one, while the workers are still alive.

    It reads what they send. Were they killed first, half a batch could be left in their queue; the thread would wait
    for the other half, and torch, when it clears up the iterator, for the thread, both without end. This is the order
    of torch's own ``_shutdown_workers``, which is not called since it also waits for the workers.
    """
    thread = getattr(iterator, "_pin_memory_thread", None)
    if thread is not None:
        iterator._pin_memory_thread_done_event.set()  # type: ignore[attr-defined]  # private to torch
        iterator._worker_result_queue.put((None, None))  # type: ignore[attr-defined]  # so that it wakes up
        thread.join(_PIN_SECONDS)


def _end(workers: Iterable[BaseProcess]) -> None:
    """Kill them: one that waits for storage would not end when asked, and this process would wait for it."""
    for worker in workers:
        worker.kill()
        _at_work.discard((os.getpid(), worker))


@atexit.register  # and so before multiprocessing waits for them
def _end_all() -> None:
    _end([worker for parent, worker in _at_work if parent == os.getpid()])


def _next(iterator: Iterator[Any], workers: Set[BaseProcess], limit: float) -> Any:
    start, said = time.monotonic(), False
    while True:
        try:
            with _ends_are_named(workers) if workers else contextlib.nullcontext():
                return next(iterator)
        except _NotYet:
            waited = time.monotonic() - start
        if waited > limit:
            raise UserError(
                f"data: no batch has come for {waited:.0f} s (timeout_seconds of the recipe's data section): storage"
                f" that hangs, or a worker that does; if all recordings can be read, {_remedy()}"
            )
        if waited > SAID_AFTER and not said:
            said = True
            logger.warning("waiting for a batch since %.0f s; storage may be slow, or hang", waited)


class _NotYet(Exception):  # noqa: N818 (it is no error)
    """No item has come within :data:`POLL_SECONDS`."""


@contextlib.contextmanager
def _ends_are_named(workers: Set[BaseProcess]) -> Iterator[None]:
    """Raise a UserError where torch says that a worker has ended, or the connection to one breaks off."""
    try:
        yield
    except RuntimeError as error:
        text = one_line(error)
        if text.startswith("DataLoader timed out"):
            raise _NotYet from None
        if not text.startswith(("DataLoader worker", "Pin memory thread exited")):
            raise
        raise UserError(f"data: a process that reads has ended ({text.partition('. ')[0]}); {_remedy()}") from error
    except (EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _SHORT:  # semaphores and queues live there too
            raise UserError(f"data: workers cannot be started or heard ({error.strerror}); {_remedy()}") from error
        if not multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=POLL_SECONDS):
            raise
        raise UserError(f"data: a process that reads has ended; {_remedy()}") from error


def _drop_torchs_signal_handler() -> None:
    """Take away the signal handler that torch sets when it starts workers.

    It would raise an error wherever the program happens to be when a worker ends. :func:`patient` looks for ended
    workers itself, at a place where it can say what has happened.
    """
    in_main = threading.current_thread() is threading.main_thread()  # torch sets it in no other thread
    if in_main and getattr(signal.getsignal(signal.SIGCHLD), "__module__", "").startswith("torch.utils.data"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
