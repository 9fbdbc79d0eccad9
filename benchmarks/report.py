"""Writes the measured parts of docs/performance.md, and its images, from benchmarks/results/*.json.

    python benchmarks/report.py

In that file everything between ``<!-- measured: NAME -->`` and ``<!-- end -->`` is replaced; the rest is left alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plots

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/performance.md"
IMAGES = ROOT / "docs/images"

RATIOS = {
    "step_k1": "step, 1 teacher",
    "step_k1_as_shipped": "step, 1 teacher, against s3prl as shipped",
    "step_k3": "step, 3 teachers",
    "cached_over_online_k3": "step, 3 teachers: cached targets over our own online step",
    "infer_b1": "inference, one utterance of 10 s",
    "infer_b1_transformers": "the same against transformers",
    "infer_mixed8": "inference, 8 utterances, 72 s in 120 s with padding",
    "infer_mixed8_transformers": "the same against transformers",
    "memory_b1": "extra memory, one utterance of 10 s (ours / s3prl)",
    "memory_mixed8": "extra memory, 8 utterances (ours / s3prl)",
    "memory_b1_default_malloc": "extra memory, one utterance, with what malloc keeps (ours / s3prl)",
    "memory_mixed8_default_malloc": "extra memory, 8 utterances, with what malloc keeps (ours / s3prl)",
}
Result = Mapping[str, Any]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first row on top."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def named(name: str) -> str:
    """As a reader knows it."""
    return plots.NAMES.get(name, name)


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def conditions(result: Result) -> str:
    """Where and with what."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}, " if result["device"] == "cpu" else ""
    return (
        f"{result['date']}, {result['machine']}; {threads}medians of {result['repeats']}, load average"
        f" {result['load_average']:.1f} before; {versions}."
    )


def ratios(result: Result) -> str:
    """Ratios beside what was aimed at."""
    rows = [("ratio of medians", "measured", "in single rounds", "aim")]
    for name, what in RATIOS.items():
        if name in result["ratios"]:
            value, goal = result["ratios"][name], result["goals"].get(name)
            rounds = " to ".join(number(quotient) for quotient in result.get("ratio_ranges", {}).get(name, ()))
            at = "at most" if name.startswith("memory") else "at least"
            rows.append((what, number(value), rounds, f"{at} {number(goal)}" if goal else ""))
    return table(rows)


def equality(result: Result) -> str:
    """What was compared."""
    rows = [("largest difference", "found", "allowed")]
    found = result["max_differences"].items()
    rows += [(name.replace("_", " "), f"{value:.1e}", f"{result['limits'][name]:.0e}") for name, value in found]
    return table(rows)


def step(result: Result) -> str:
    image = IMAGES / f"step_{result['device']}.png"
    plots.write(plots.bars(result["timings"]), image)
    goals = result.get("goals_ms", {})
    rows = [("step", "median", "fastest to slowest", *(["aim"] if goals else []))]
    for name, timing in result["timings"].items():
        span = f"{number(timing['min_s'])} to {number(timing['max_s'])} s"
        aim = [f"{goals[name]} ms" if name in goals else ""] if goals else []
        rows.append((named(name), f"{number(timing['median_s'])} s", span, *aim))
    batch = " / ".join(f"{length:g}" for length in dict.fromkeys(result["batch_seconds"]))
    count = len(result["batch_seconds"])
    picture = f"![Step](images/{image.name})"
    parts = [f"{count} utterances of {batch} s.", table(rows), ratios(result), equality(result), picture]
    return "\n\n".join([*parts, conditions(result)])


def inference(result: Result) -> str:
    rows = [("input", "who", "median", "real-time factor", "extra memory", "with what malloc keeps")]
    kept = result.get("extra_memory_mb_default_malloc", result["extra_memory_mb"])
    for name, timings in result["timings"].items():
        for who, timing in timings.items():
            factor, memory = result["real_time_factor"][name][who], result["extra_memory_mb"][name][who]
            rows.append(
                (
                    named(name),
                    named(who),
                    f"{number(timing['median_s'])} s",
                    f"{factor:.4f}",
                    f"{number(memory)} MB",
                    f"{number(kept[name][who])} MB",
                )
            )
    return "\n\n".join([table(rows), ratios(result), equality(result), conditions(result)])


def growth(result: Result) -> str:
    parts = []
    for series, title in plots.AXES.items():
        image = IMAGES / f"growth_{series}_{result['device']}.png"
        plots.write(plots.growth(result, series), image)
        parts.append(f"![Time and memory by {title}](images/{image.name})")
    rows = [("curve", "slope at its end", "at most")]
    limits = result["limits"]
    rows += [(name, f"{value:.2f}", f"{limits.get(name, '')}") for name, value in result["slopes"].items()]
    return "\n\n".join([*parts, table(rows), conditions(result)])


def startup(result: Result) -> str:
    rows = [("start", "CPU time, median", "limit", "modules of s3prl")]
    for name, timing in result["timings"].items():
        limit = result["limits"].get(name)
        median = f"{number(timing['median_s'])} s"
        rows.append((f"`{name}`", median, f"{limit} s" if limit else "", str(result["s3prl_modules"][name])))
    return "\n\n".join([table(rows), conditions(result)])


def profile_step(result: Result) -> str:
    sides = list(result["self_seconds"])
    rows = [("self time of", *sides)]
    for kind in result["self_seconds"][sides[0]]:
        rows.append((kind, *(f"{result['self_seconds'][side][kind]:.2f} s" for side in sides)))
    rows.append(("all", *(f"{sum(result['self_seconds'][side].values()):.1f} s" for side in sides)))
    rows.append(("arithmetic", *(f"{result['gflop'][side]:.0f} GFLOP" for side in sides)))
    at = f"at {result['peak_gflops']:.0f} GFLOP/s that is"
    rows.append((at, *(f"{result['floor_s'][side]:.1f} s" for side in sides)))
    return "\n\n".join([table(rows), conditions(result)])


BF16 = {
    "step": "a step of ours, one teacher: single precision over bf16",
    "inference": "inference of ours, one utterance: single precision over bf16",
    "inference_s3prl_bf16": "inference, one utterance, both in bf16: s3prl over ours",
    "inference_transformers_bf16": "inference, one utterance, both in bf16: transformers over ours",
}


def bf16(result: Result) -> str:
    rows = [("work", "median", "fastest to slowest")]
    for kind, timings in result["timings"].items():
        for name, timing in timings.items():
            span = f"{number(timing['min_s'])} to {number(timing['max_s'])} s"
            rows.append((f"{kind}, {named(name)}", f"{number(timing['median_s'])} s", span))
    found = [("ratio", "measured"), *((what, number(result["ratios"][name])) for name, what in BF16.items())]
    return "\n\n".join([table(rows), table(found), equality(result), conditions(result)])


SECTIONS: dict[str, tuple[Callable[[Result], str], str]] = {
    "distill_step_cpu": (step, "python benchmarks/distill_step.py"),
    "inference_cpu": (inference, "python benchmarks/inference.py"),
    "profile_step_cpu": (profile_step, "python benchmarks/profile_step.py"),
    "bf16_cpu": (bf16, "python benchmarks/bf16.py"),
    "growth_cpu": (growth, "python benchmarks/growth.py"),
    "startup_cpu": (startup, "python benchmarks/startup.py"),
    "distill_step_cuda": (step, "bash benchmarks/gpu.sh"),
    "inference_cuda": (inference, "bash benchmarks/gpu.sh"),
    "growth_cuda": (growth, "bash benchmarks/gpu.sh"),
}


def section(name: str, results: Path) -> str:
    """The text between the marks."""
    write, command = SECTIONS[name]
    path = results / f"{name}.json"
    if not path.is_file():
        return f"**Not measured.** `{command}` measures it."
    return write(json.loads(path.read_text(encoding="utf-8")))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    page = args.page.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    page = pattern.sub(lambda match: f"{match[1]}{section(match[2], args.results)}\n{match[3]}", page)
    args.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
