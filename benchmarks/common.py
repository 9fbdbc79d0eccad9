"""What the benchmarks share: options, timing in turns, extra memory, a description of the machine, the JSON file.

Time is CPU time of this process (``time.process_time``; all threads together) on the CPU and the time between two CUDA
events on a GPU. Candidates take turns, each round starting with another one, and a median is taken over the rounds, so
that whatever else the machine does meets all of them alike.

Extra memory is what a call needs beyond what was resident before it. On the CPU: a forked child warms up on a short
input, hands freed memory back to the system, resets the kernel's peak (``/proc/self/clear_refs``), calls once, and
compares the peak (VmHWM) with the resident size before (VmRSS). Its malloc takes blocks of 128 kB and more from the
system and returns them at once, so that the peak is that of tensors alive; with glibc's own settings it keeps some of
what is freed, how much depends on what the process did before, and the peak is higher. On a GPU:
``torch.cuda.max_memory_allocated`` likewise.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.files import write_json

LOAD_BEFORE = os.getloadavg()[0]  # what else the machine did when this began
RESULTS = Path(__file__).parent / "results"
Work = Callable[[], object]

# What torch has to say about s3prl's code at every call.
_NOISE: tuple[tuple[type[Warning], str], ...] = ((FutureWarning, ""), (UserWarning, "Support for mismatched key_padd"))


def parser(description: str, *, repeats: int = 5) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    result.add_argument("--threads", type=int, default=1, help="torch's threads on the CPU (default: 1)")
    result.add_argument("--repeats", type=int, default=repeats, help=f"rounds to take medians of (default: {repeats})")
    result.add_argument("--json", type=Path, help="result file (default: benchmarks/results/<benchmark>_<device>.json)")
    result.add_argument("--quick", action="store_true", help="tiny models: shows that it runs, not how fast it is")
    return result


def prepare(args: argparse.Namespace) -> torch.device:
    """Set threads and seed; the device."""
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU")
    for category, message in _NOISE:
        warnings.filterwarnings("ignore", category=category, message=message)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return torch.device(args.device)


def speech(seconds: Iterable[float]) -> list[Tensor]:
    """Waveforms (S,) of these lengths: noise, which costs what speech costs."""
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(round(length * SAMPLE_RATE), generator=generator) for length in seconds]


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 inside the block, so that a GPU's outputs can be compared."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


# --- time -------------------------------------------------------------------------------------------------------------


def seconds(work: Work, device: torch.device) -> float:
    """What one call takes."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    began = time.process_time()
    work()
    return time.process_time() - began


def interleaved(
    candidates: Mapping[str, Work], repeats: int, device: torch.device, *, warm_up: int | None = None
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round.

    Args:
        candidates: what to call.
        repeats: rounds.
        device: where the work is done.
        warm_up: calls before the first round; None: 1 on the CPU, 3 on a GPU.
    """
    names = list(candidates)
    for name in names:
        for _ in range((3 if device.type == "cuda" else 1) if warm_up is None else warm_up):
            candidates[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(repeats):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(candidates[name], device))
        _progress(f"round {round_ + 1} of {repeats}", times)
    return times


def _progress(what: str, times: Mapping[str, Sequence[float]]) -> None:
    print(f"{what}: " + ", ".join(f"{name} {values[-1]:.3f} s" for name, values in times.items()), file=sys.stderr)


def summary(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Median, extremes and all values of each candidate."""
    return {
        name: {"median_s": statistics.median(values), "min_s": min(values), "max_s": max(values), "all_s": values}
        for name, values in times.items()
    }


def ratio(times: Mapping[str, Sequence[float]], slower: str, faster: str) -> float | None:
    """Median over median, or None where one of them was not measured."""
    if slower not in times or faster not in times:
        return None
    return statistics.median(times[slower]) / statistics.median(times[faster])


def ratio_range(times: Mapping[str, Sequence[float]], slower: str, faster: str) -> list[float] | None:
    """Least and greatest quotient of two candidates in the same round, or None where one of them was not measured."""
    if slower not in times or faster not in times:
        return None
    quotients = [one / other for one, other in zip(times[slower], times[faster], strict=True)]
    return [min(quotients), max(quotients)]


# --- memory -----------------------------------------------------------------------------------------------------------


def extra_memory_mb(work: Work, warm_up: Work, device: torch.device, *, default_malloc: bool = False) -> float:
    """Megabytes that ``work`` needs at its peak beyond what was there before, its result included.

    Args:
        work: what to call.
        warm_up: the same on a short input.
        device: where it is done.
        default_malloc: on the CPU, leave malloc's settings as they are.
    """
    if device.type == "cuda":
        warm_up()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    context = multiprocessing.get_context("fork")  # shares the models, so that nothing has to be loaded again
    answers = context.SimpleQueue()
    child = context.Process(target=_measure_in_child, args=(work, warm_up, answers, default_malloc))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"the process that measures memory ended with {child.exitcode}")
    return answers.get()


_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def _measure_in_child(work: Work, warm_up: Work, answers: Any, default_malloc: bool) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    libc = ctypes.CDLL(None)
    if not default_malloc:
        libc.mallopt(_M_MMAP_THRESHOLD, 128 * 1024)
    warm_up()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    result = work()
    answers.put((_status_kb("VmHWM") - before) / 1000)
    del result


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


# --- result -----------------------------------------------------------------------------------------------------------


def result(args: argparse.Namespace, what: str) -> dict[str, Any]:
    """The part of a result that says when, where and with what it was measured."""
    packages = ("torch", "torchaudio", "s3prl", "transformers", "numpy")
    return {
        "what": what,
        "date": datetime.date.today().isoformat(),
        "quick": args.quick,
        "machine": machine(args.device),
        "device": args.device,
        "threads": args.threads,
        "repeats": args.repeats,
        "load_average": LOAD_BEFORE,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def machine(device: str) -> str:
    """Processor, or GPU and processor, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = f"{platform.machine()}, {name}, {os.cpu_count()} logical CPUs, {memory:.0f} GiB"
    return processor if device == "cpu" else f"{torch.cuda.get_device_name()}; {processor}"


def finish(args: argparse.Namespace, name: str, values: Mapping[str, Any], checked: str = "max_differences") -> int:
    """Write the result, print what matters; 1 if a value under ``checked`` is above its limit, else 0.

    A quick run is only written where ``--json`` says so.
    """
    path = args.json or (None if args.quick else RESULTS / f"{name}_{args.device}.json")
    values = rounded(values)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values)
    shown = {key: value for key, value in values.items() if key not in ("timings", "points")}
    print(json.dumps(shown, indent=2))
    found, limits = values.get(checked, {}), values.get("limits", {})
    wrong = [key for key, limit in limits.items() if not found[key] <= limit]
    for key in wrong:
        print(f"{checked}: {key} is {found[key]}, more than {limits[key]}", file=sys.stderr)
    return int(bool(wrong))


def rounded(value: Any) -> Any:
    """Floats to four significant digits, wherever they are."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value
