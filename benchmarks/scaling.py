"""What a run costs: hours of audio and a measured step in, GPU hours, storage and loader workers out.

    python benchmarks/scaling.py                                       # the tables of docs/scaling.md
    python benchmarks/scaling.py --step-ms 65 --batch-seconds 288      # your own measurement

Arithmetic only. Without --step-ms the step is what the matrix products alone take at a GPU's peak (GMAC per second of
audio: teacher 7.5, student forward and backward 3 x 3.7): a floor that no run reaches.
"""

from __future__ import annotations

import argparse
import sys

TEACHER_GMAC, STUDENT_GMAC = 7.5, 3 * 3.7  # base size, per second of audio
FRAMES_PER_HOUR = 50 * 3600
FLAC_GB_PER_HOUR = 0.062  # LibriSpeech's 961 h of training speech are 59.3 GB
HOURS = (960, 60_000, 1_000_000)


def floor_ms(teachers: int, batch_seconds: float, tflops: float) -> float:
    """A step's matrix products at ``tflops`` (10^12 multiplications and additions per second), in ms."""
    return 2 * batch_seconds * (teachers * TEACHER_GMAC + STUDENT_GMAC) * 1e9 / (tflops * 1e12) * 1e3


def cache_gb_per_hour(heads: int, width: int = 768) -> float:
    """Targets in float16."""
    return FRAMES_PER_HOUR * heads * width * 2 / 1e9


def table(rows: list[list[str]]) -> str:
    """Markdown."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def steps_table(args: argparse.Namespace) -> str:
    """Step time, and what it asks of the loader."""
    kinds = {"1 teacher": 1, "3 teachers": 3, "cached targets": 0}
    rows = [["step", "ms", "audio per second and GPU", "loader workers per GPU"]]
    for kind, teachers in kinds.items():
        ms = floor_ms(teachers, args.batch_seconds, args.tflops) if args.step_ms is None else args.step_ms
        speed = args.batch_seconds / ms * 1e3
        rows.append([kind, f"{ms:.1f}", f"{speed:,.0f} s", f"{speed / args.worker_speed:.1f}"])
        if args.step_ms is not None:
            rows[-1][0] = "yours"
            break
    return table(rows)


def hours_table(args: argparse.Namespace) -> str:
    """One pass over each amount of audio."""
    rows = [
        [
            "hours of audio",
            "steps of a pass",
            "GPU hours of a pass",
            "audio (FLAC)",
            "cache, average",
            "cache, separate",
        ]
    ]
    for hours in HOURS:
        steps = hours * 3600 / args.batch_seconds
        ms = floor_ms(3, args.batch_seconds, args.tflops) if args.step_ms is None else args.step_ms
        sizes = (FLAC_GB_PER_HOUR, cache_gb_per_hour(3), cache_gb_per_hour(9))
        storage = [f"{hours * gb / 1e3:,.1f} TB" for gb in sizes]
        rows.append([f"{hours:,}", f"{steps:,.0f}", f"{steps * ms / 3.6e6:,.1f}", *storage])
    return table(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batch-seconds", type=float, default=288.0, help="audio of a step and GPU (default: 24 x 12 s)"
    )
    parser.add_argument("--step-ms", type=float, help="measured; default: the floor at --tflops")
    parser.add_argument("--tflops", type=float, default=790.0, help="peak, dense bf16 (default: an H200's 790)")
    parser.add_argument(
        "--worker-speed", type=float, default=868.0, help="seconds of audio a worker reads and distorts per second"
    )
    args = parser.parse_args()
    print(steps_table(args), hours_table(args), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
