"""Waiting for workers: those that end, hang, cannot start or cannot hand over a batch."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time

import pytest
import torch
from helpers_cuts import assert_no_process_stays
from torch.utils.data import Dataset

from s3prl_ekd.audio.workers import make_loader, patient
from s3prl_ekd.errors import UserError

ENDED = r"a process that reads has ended.*--shm-size.*--ipc=host.*num_workers=0"


class Numbers(Dataset):
    """Each key itself, in whatever way."""

    def __init__(self, give=lambda key: key):
        self.give = give

    def __getitem__(self, key):
        return self.give(key)


def read(give=lambda key: key, workers=1, limit=60.0):
    return patient(make_loader(Numbers(give), sampler=range(100), workers=workers), limit)


def test_everything_comes_in_order():
    assert list(read(workers=0)) == list(read(workers=2)) == list(range(100))
    assert_no_process_stays()


def test_a_worker_that_dies_is_noticed():
    items = read()
    next(items)
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=ENDED):
        list(items)
    assert_no_process_stays()


def test_a_batch_that_cannot_be_handed_over_is_named():
    """As torch fails where shared memory is full; the batch is not waited for."""

    class NoRoom:
        def __reduce__(self):
            raise RuntimeError("unable to write to file </torch_1>:\nNo space left on device (28)")

    with pytest.raises(UserError, match=r"hand over a batch \(unable to .*: No space .*/dev/shm \(\d+ MiB in all\)"):
        next(read(lambda key: NoRoom()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from torch's unfinished iterator
def test_workers_that_cannot_be_started_are_named(monkeypatch):
    """The queues' semaphores are in shared memory too; the worker that has started does not stay."""
    made, make = itertools.count(), torch.multiprocessing.Queue

    def full():
        if next(made) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make()

    monkeypatch.setattr(torch.multiprocessing, "Queue", full)
    with pytest.raises(UserError, match=r"workers cannot be started or heard \(No space left on device\).*--shm-size"):
        list(read(workers=2))
    assert_no_process_stays()


def test_a_wait_has_an_end():
    with pytest.raises(UserError, match=r"no batch has come for [12] s \(timeout_seconds"):
        list(read(lambda key: time.sleep(600), limit=0.5))
    assert_no_process_stays()


def test_the_thread_that_pins_memory_ends_before_the_workers_do():
    """It reads what they send, and could wait for the rest of half a batch for ever. Torch starts it for GPUs only."""

    class Pinning:
        def __init__(self):
            self.worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            self.worker.start()
            self._worker_result_queue = queue.Queue()
            self._pin_memory_thread_done_event = threading.Event()
            self._pin_memory_thread = threading.Thread(target=self.pin, daemon=True)
            self._pin_memory_thread.start()

        def pin(self):
            self.last = self._worker_result_queue.get(timeout=60)
            self.told = self._pin_memory_thread_done_event.is_set()
            time.sleep(0.1)
            self.worker_lived = self.worker.is_alive()

        def __iter__(self):
            return self

        def __next__(self):
            return 1

    made = []

    class Loader:
        def __iter__(self):
            made.append(Pinning())
            return made[0]

    items = patient(Loader(), 60)
    assert next(items) == 1
    items.close()
    made[0].worker.join(60)
    assert (made[0].last, made[0].told, made[0].worker_lived) == ((None, None), True, True)
    assert made[0].worker.exitcode == -signal.SIGKILL
