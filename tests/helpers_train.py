"""A tiny teacher and a synthetic stream behind the interfaces of the real ones, and runs in processes of their own."""

from __future__ import annotations

import csv
import functools
import multiprocessing
import os
import resource
import signal
import socket
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers_models import TESTS, TINY, FakeTeacher, batch_of, speech_like
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.audio.batch import Batch, empty_batch
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.training import checkpoints
from s3prl_ekd.training.module import Inputs
from s3prl_ekd.training.run import train

BATCHES = 5  # of an epoch, of all processes together
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


class TinyTeacher(FakeTeacher):
    def to(self, device):
        return self


class SyntheticStream:
    """Batches that depend on seed, epoch and index alone; process r takes every world_size-th of them.

    Args:
        batches: of an epoch.
        odd: (epoch, index) -> what is wrong with that batch: "nan" or "empty".
        bad: recordings that the last process counts as bad among 20 that each counts with each batch.
        fed: a file that grows by a byte with each batch.
        stuck: (epoch, index) of a batch that never comes.
    """

    def __init__(self, config, rank=0, world_size=1, *, batches=BATCHES, odd=None, bad=0, fed=None, stuck=None) -> None:
        self.seed, self.rank, self.world_size, self.batches = config.seed, rank, world_size, batches
        self.odd, self.fed, self.stuck = odd or {}, fed, stuck
        self.bad = [(f"bad{i}", "no good") for i in range(bad)] if rank == world_size - 1 else []
        self.bad_recordings = BadRecordings(alone=world_size == 1)

    def identity(self) -> dict[str, str]:
        return {"batches": str(self.batches)}

    def require_identity(self, stored) -> None:
        if stored != self.identity():
            raise UserError("cannot resume exactly: other data")

    def loader(self, epoch: int, consumed: int = 0):
        for step in range(consumed, self.batches // self.world_size):
            torch.rand(7)  # a DataLoader may draw too, whenever it starts
            if self.fed is not None:
                with open(self.fed, "ab") as file:
                    file.write(b".")
            self.bad_recordings.note(20, self.bad)
            index = step * self.world_size + self.rank
            while (epoch, index) == self.stuck:
                time.sleep(60)
            yield self.batch(epoch, index)

    def batch(self, epoch: int, index: int) -> Batch:
        key = 1000 * self.seed + 100 * epoch + index
        if self.odd.get((epoch, index)) == "empty":
            return empty_batch()
        batch = batch_of(speech_like(3200 + 160 * (key % 7), key), speech_like(2400 + 320 * (key % 3), key + 50))
        if self.odd.get((epoch, index)) == "nan":
            batch.clean[0, 100] = torch.nan
        names = tuple(f"{epoch}-{index}-{name}" for name in batch.utterances)
        return Batch(batch.clean, batch.distorted, batch.lengths, names)


def recipe(
    output, *, student: dict | None = None, data: dict | None = None, more: dict | None = None, **trainer
) -> RunConfig:
    """A recipe of a dozen steps on a CPU; ``trainer`` replaces its settings, ``more`` whole sections."""
    settings = {
        "max_steps": 12, "precision": "32", "accelerator": "cpu", "devices": 1, "log_every": 1, "dev_every": 4,
        "checkpoint_every": 3, "wandb_project": None,
    }  # fmt: skip
    mapping = {
        "student": {**TINY, **(student or {})},
        "teachers": [{"name": "fake", "transformers": "unused", "layers": [1, 2]}],
        "data": {
            "cuts": ["train"],
            "dev_cuts": ["dev"],
            "batch_seconds": 1.0,
            "max_crop_samples": 16000,
            **(data or {}),
        },
        "optimizer": {"lr": 3e-3},
        "trainer": {**settings, **trainer},
        "output": str(output),
        **(more or {}),
    }
    return RunConfig.from_mapping(mapping)


def build(config: RunConfig, kind: type[Distiller] = Distiller) -> Distiller:
    torch.manual_seed(config.seed)
    return kind(config.distill, [TinyTeacher(one.name, one.computed_layers) for one in config.teachers])


def open_inputs(config: RunConfig, rank: int, world_size: int, *, kind: type[Distiller] = Distiller, **options):
    """As s3prl_ekd.training.run.open_inputs; four dev batches for all processes together."""
    stream = SyntheticStream(config, rank, world_size, **options)
    dev = SyntheticDevData(stream, world_size) if config.data.dev_cuts else None
    return Inputs(stream, dev, build(config, kind))


class SyntheticDevData:
    """Every ``world_size``-th of four; one that is ``stuck`` is looked for in epoch 99."""

    def __init__(self, stream: SyntheticStream, world_size: int) -> None:
        self.stream, self.world_size = stream, world_size
        self.bad_recordings = BadRecordings()

    def __iter__(self):
        for index in range(self.stream.rank, 4, self.world_size):
            while (99, index) == self.stream.stuck:
                Path(self.stream.fed).write_bytes(b"." * 100)
                time.sleep(60)
            yield self.stream.batch(99, index)


def run(config: RunConfig, *, resume: bool = False, **options) -> int:
    """A run in this process; ``options`` are those of :func:`open_inputs`."""
    return train(config, resume=resume, open_inputs=functools.partial(open_inputs, **options))


def logged(output, column: str = "train/loss") -> dict[int, float]:
    """step -> value, from all CSV files of a run, those of resumed runs last."""
    found = {}
    for path in sorted(Path(output, "logs", "csv").glob("*/metrics.csv")):
        with path.open(newline="") as file:
            found |= {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}
    return found


def checkpoint(output, name: str = "last.ckpt") -> dict[str, Any]:
    """Read without trusting it."""
    return torch.load(Path(output, "checkpoints", name), weights_only=True)


# Processes that are cheap to start, since torch and Lightning are imported once for all of them. The server that forks
# them finds this module by PYTHONPATH alone (until Python 3.13).
# No empty entry, which would be the working folder.
_PATHS = (str(TESTS), os.environ.get("PYTHONPATH"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATHS))
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["helpers_train"])


def start(
    config: RunConfig,
    *,
    environment: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
    **options,
) -> multiprocessing.Process:
    """:func:`run` in a process of its own; its exit status is the command line's, ``<output>.error`` its message.

    Args:
        config: the recipe.
        environment: added to the process's.
        before: called there first.
        options: of :func:`run`.
    """
    process = _context.Process(target=_child, args=(config, environment or {}, before, options))
    process.start()
    return process


def _child(config: RunConfig, environment: dict[str, str], before: Callable | None, options: dict[str, Any]) -> None:
    os.environ.update(environment)
    # Lightning has looked for it when the server imported it.
    rank_zero_only.rank = int(environment.get("RANK") or environment.get("SLURM_PROCID") or 0)
    torch.set_num_threads(1)
    try:
        if before is not None:
            before()
        status = run(config, **options)
    except UserError as error:
        Path(f"{config.output}.error").write_text(str(error))
        status = 2
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)


def finish(process: multiprocessing.Process) -> int:
    """Its exit status; negative: the signal that ended it."""
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def signal_after(process: multiprocessing.Process, fed: Path, batches: int, number: int) -> int:
    """Send a signal when the run has been fed so many batches; its exit status."""
    while process.is_alive() and (not fed.exists() or fed.stat().st_size < batches):
        time.sleep(0.002)
    if process.is_alive():
        os.kill(process.pid, number)
    return finish(process)


def at_fsync(count: int, action: Callable[[], None]) -> None:
    """Let something happen just before so many syncs; a checkpoint takes two, its file's and its folder's."""
    calls = iter(range(1, 1_000_000))

    def fsync(handle: int) -> None:
        if next(calls) == count:
            action()
        os.fsync(handle)

    checkpoints.os = types.SimpleNamespace(**{**vars(os), "fsync": fsync})


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    """From now on no file can be larger than 100 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def torchrun(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process of one node."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip


def slurm(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What srun sets for a task of one node."""
    return {
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NTASKS": str(world_size),
        "SLURM_NTASKS_PER_NODE": str(world_size), "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "distill",
        "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def start_all(config: RunConfig, launcher: Callable[..., dict[str, str]] = torchrun, **options) -> list:
    """One process for each of ``trainer.devices``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    count = config.trainer.devices
    return [start(config, environment=launcher(rank, count, port), **options) for rank in range(count)]


def two_processes(output, launcher=torchrun, **settings):
    """Train in two processes; their exit statuses."""
    options = {key: settings.pop(key) for key in ("batches", "odd", "bad") if key in settings}
    config = recipe(output, student=NO_DROPOUT, devices=2, **settings)
    return [finish(process) for process in start_all(config, launcher, **options)]


def assert_same_run(output, reference):
    """All losses, weights, optimizer, schedule, scaler, place in the data and random states are equal bit for bit."""
    for column in ("train/loss", "dev/loss", "train/grad_norm"):
        assert logged(output, column) == logged(reference, column)
    ours, theirs = checkpoint(output), checkpoint(reference)
    for states in (ours, theirs):
        states["EKD_Run"]["recipe"].pop("output")
    assert_equal(ours, theirs)


def assert_equal(a, b, path=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list):
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{path}[{index}]")
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=path)
    else:
        assert a == b, path
