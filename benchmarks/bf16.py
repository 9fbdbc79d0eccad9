"""What bf16 brings: a step and an inference of ours in single precision and under autocast, and the peers' under it.

    python benchmarks/bf16.py                        # CPU, one thread

It pays on processors that multiply bf16 themselves (AVX512-BF16, AMX; Arm's BF16); on others it costs. Before anything
is timed, ours in bf16 is compared with ours in single precision, without dropout.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import torch
from distill_step import QUICK_SECONDS, SECONDS
from inference import extractors
from models import Ensemble, OurStep, our_step
from peers import BASE, TINY
from torch import Tensor

from s3prl_ekd import SAMPLE_RATE

INFERENCE_SECONDS = 10.0
LIMITS = {"student_relative": 0.02, "student_1_minus_cosine": 1e-3, "loss_relative": 0.02}


def differences(step: OurStep) -> dict[str, float]:
    """Of student and loss between the two precisions."""
    found = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast(step.device.type, torch.bfloat16, enabled=enabled):
            batch = step.batch.to(step.device)
            rows = step.distiller.eval().student(batch.distorted, batch.lengths).rows[-1].float()
            found.append((rows, step.distiller(batch).loss.item()))
    step.distiller.train()
    (exact, exact_loss), (low, low_loss) = found
    cosine = torch.nn.functional.cosine_similarity(low, exact, dim=-1).mean()
    return {
        "student_relative": float((low - exact).norm() / exact.norm()),
        "student_1_minus_cosine": float(1 - cosine),
        "loss_relative": abs(low_loss - exact_loss) / exact_loss,
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__.splitlines()[0]).parse_args(argv)
    device = common.prepare(args)
    sizes = TINY if args.quick else BASE
    waveforms = common.speech(QUICK_SECONDS if args.quick else SECONDS[args.device])
    with tempfile.TemporaryDirectory() as folder:
        ensemble = Ensemble(Path(folder), sizes, 1, device)
    steps = {name: our_step(ensemble, 1, waveforms, bf16=bf16) for name, bf16 in (("fp32", False), ("bf16", True))}
    with common.exact_float32():
        checked = differences(steps["fp32"])
    print(f"close outputs: {common.rounded(checked)}", file=sys.stderr)
    timings = {"step": common.interleaved(steps, args.repeats, device)}
    heard = [waveform.to(device) for waveform in common.speech([1.0 if args.quick else INFERENCE_SECONDS])]
    timings["inference"] = common.interleaved(_inferences(sizes, heard, device), args.repeats, device)
    ratios = {
        "step": common.ratio(timings["step"], "fp32", "bf16"),
        "inference": common.ratio(timings["inference"], "ours", "ours_bf16"),
        "inference_s3prl_bf16": common.ratio(timings["inference"], "s3prl_bf16", "ours_bf16"),
        "inference_transformers_bf16": common.ratio(timings["inference"], "transformers_bf16", "ours_bf16"),
    }
    values: dict[str, Any] = {
        "batch_seconds": [len(waveform) / SAMPLE_RATE for waveform in waveforms],
        "inference_seconds": len(heard[0]) / SAMPLE_RATE,
        "timings": {name: common.summary(times) for name, times in timings.items()},
        "ratios": ratios,
        "max_differences": checked,
        "limits": LIMITS,
    }
    what = "bf16 over single precision, one teacher; hidden states of one utterance"
    return common.finish(args, "bf16", common.result(args, what) | values)


def _inferences(sizes: Any, waveforms: Sequence[Tensor], device: torch.device) -> dict[str, common.Work]:
    candidates = extractors(sizes, device)

    def work(name: str, *, bf16: bool) -> Callable[[], object]:
        def infer() -> object:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return candidates[name](waveforms)

        return infer

    low = {f"{name}_bf16": work(name, bf16=True) for name in ("ours", "s3prl", "transformers")}
    return {"ours": work("ours", bf16=False)} | low


if __name__ == "__main__":
    sys.exit(main())
