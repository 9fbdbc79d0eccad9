"""How long until the first batch of a manifest of a million cuts, and until the last ones of that epoch.

    python benchmarks/startup_million_cuts.py

writes the manifest to a temporary folder (its cuts share 50 short recordings), starts a fresh process for each
measurement, and saves what it finds in benchmarks/results/startup_million_cuts.json. Memory is the proportional set
size (shared pages counted once) of the process, its planner and its workers, sampled; the libraries' own is in it.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

RECORDINGS = 50
LIMITS = {"first_batch_s": 10, "resumed_at_end_s": 60, "memory_mb": 1000}


def write_corpus(folder: Path, cuts: int) -> Path:
    """Recordings of 2 to 20 s and a manifest that names them ``cuts`` times."""
    import soundfile
    import torch

    torch.manual_seed(0)
    sizes = [32000 + 5877 * number for number in range(RECORDINGS)]
    for number, samples in enumerate(sizes):
        soundfile.write(folder / f"{number}.wav", 0.05 * torch.randn(samples).numpy(), 16000)
    draw, manifest = random.Random(0), folder / "cuts.jsonl.gz"
    with gzip.open(manifest, "wt", compresslevel=3) as lines:
        for index in range(cuts):
            number = draw.randrange(RECORDINGS)
            samples = sizes[number]
            recording = {
                "id": f"recording-{index:09d}",
                "sources": [{"type": "file", "channels": [0], "source": str(folder / f"{number}.wav")}],
                "sampling_rate": 16000,
                "num_samples": samples,
                "duration": samples / 16000,
                "channel_ids": [0],
            }
            cut = {"id": f"cut-{index:09d}", "start": 0.0, "duration": samples / 16000, "channel": 0}
            lines.write(json.dumps(cut | {"supervisions": [], "recording": recording, "type": "MonoCut"}) + "\n")
    return manifest


class Memory(threading.Thread):
    """Samples the memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.start()

    def run(self) -> None:
        while True:
            self.sample()
            time.sleep(0.2)

    def sample(self) -> None:
        """Look once."""
        total = 0
        for process in ["self", *(child.pid for child in multiprocessing.active_children())]:
            try:
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has ended
                continue
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        self.peak_mb = max(self.peak_mb, total / 1000)


def measure(manifest: str, consumed: int | None, workers: int, started: float) -> dict[str, Any]:
    """In a fresh process: the first two batches after ``consumed`` ones; None: plan the whole epoch."""
    memory = Memory()
    from s3prl_ekd.audio.distortions import DistortionConfig
    from s3prl_ekd.config.data import DataConfig
    from s3prl_ekd.cuts.stream import BatchStream

    imported = time.time()
    stream = BatchStream(DataConfig(cuts=(manifest,), num_workers=workers), DistortionConfig(), seed=0)
    if consumed is None:
        steps = sum(1 for _ in stream.plan.rank_batches(0, 0, stream.rank))
        result = {"batches": steps, "planning_s": time.time() - imported}
    else:
        batches = iter(stream.loader(0, consumed))
        first = next(batches)
        seconds = time.time() - started
        result = {"seconds": seconds, "of_which_imports": imported - started, "utterances": len(first.utterances)}
        next(batches)
    memory.sample()
    return result | {"memory_mb": memory.peak_mb}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup_million_cuts.json")
    parser.add_argument("--measure", nargs=3, metavar=("MANIFEST", "CONSUMED", "STARTED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        manifest, consumed, started = args.measure
        consumed = None if consumed == "all" else int(consumed)
        print(json.dumps(measure(manifest, consumed, args.workers, float(started))))
        return 0

    def fresh(consumed: object) -> Any:
        command = [sys.executable, __file__, "--workers", str(args.workers), "--measure", str(manifest), str(consumed)]
        return json.loads(subprocess.run([*command, str(time.time())], check=True, stdout=subprocess.PIPE).stdout)

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_corpus(Path(folder), args.cuts)
        size = manifest.stat().st_size
        epoch = fresh("all")
        first = fresh(0)
        last = fresh(epoch["batches"] - 2)

    import lhotse
    import torch

    from s3prl_ekd.files import write_json

    result = {
        "what": "process start to first batch, 1 rank",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {_processor()}, {multiprocessing.cpu_count()} logical CPUs",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "lhotse": lhotse.__version__},
        "load_average": load,
        "cuts": args.cuts,
        "workers": args.workers,
        "manifest_mb": size / 1e6,
        "batches": epoch["batches"],
        "planning_us_per_cut": epoch["planning_s"] / args.cuts * 1e6,
        "first_batch_s": first["seconds"],
        "resumed_at_end_s": last["seconds"],
        "of_which_imports_s": first["of_which_imports"],
        "memory_mb": max(first["memory_mb"], last["memory_mb"]),
        "limits": LIMITS,
    }
    result = {name: round(value, 2) if isinstance(value, float) else value for name, value in result.items()}
    write_json(args.out, result)
    print(json.dumps(result, indent=2))
    return int(any(result[name] > limit for name, limit in LIMITS.items()))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
