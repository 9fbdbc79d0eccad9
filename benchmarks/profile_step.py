"""Where a step with one teacher spends its time, ours and s3prl's: ``python benchmarks/profile_step.py`` (CPU).

Self time by kind of operation under torch's profiler, the arithmetic of each side as its own operations count it, and
what this processor reaches on a plain matrix product. What a side would take if all its arithmetic ran at that rate is
the floor under whatever is rearranged.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import torch
from distill_step import QUICK_SECONDS, SECONDS
from models import Ensemble, our_step, their_step
from peers import BASE, TINY
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from s3prl_ekd import SAMPLE_RATE

KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm", "baddbmm"),
    "convolutions forward": ("mkldnn_convolution", "thnn_conv2d", "slow_conv2d_forward"),
    "convolutions backward": ("convolution_backward",),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu", "_softmax", "_softmax_backward_data"),
    "Fourier transforms": ("_fft_r2c", "_fft_c2r", "_fft_c2c"),
    "GELU and normalization": (
        "gelu", "gelu_backward", "native_group_norm", "native_group_norm_backward", "native_layer_norm",
        "native_layer_norm_backward",
    ),
    "copies": ("copy_", "cat", "fill_", "index_select", "index_copy_", "unfold_backward"),
    "dropout's random numbers": ("bernoulli_",),
}  # fmt: skip
"""Operations of aten; the rest is "other"."""
_KIND_OF = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}


def self_times(work: common.Work) -> dict[str, float]:
    """Seconds of one call by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        work()
    seconds = Counter(dict.fromkeys([*KINDS, "other"], 0.0))
    for event in record.key_averages():
        seconds[_KIND_OF.get(event.key, "other")] += event.self_cpu_time_total / 1e6
    return dict(seconds)


def gflop(work: common.Work) -> float:
    """What one call's products and convolutions count."""
    aten = torch.ops.aten
    ours = {aten.addmm_: _addmm_flop, aten.convolution_backward: _convolution_backward_flop}
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        work()
    return counter.get_total_flops() / 1e9


def _addmm_flop(_: object, a_shape: Sequence[int], b_shape: Sequence[int], **__: object) -> int:
    """In-place, which torch's own table lacks."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def _convolution_backward_flop(
    grad_shape: Sequence[int], _: object, weight_shape: Sequence[int], *more: Any, **__: object
) -> int:
    """Of a grouped convolution, where torch's own formula counts what lies between groups."""
    wanted = more[-1][:2]  # of the input's and the weight's gradient
    return 2 * math.prod(grad_shape) * math.prod(weight_shape[1:]) * sum(wanted)


def peak(device: torch.device, repeats: int, size: int = 1024) -> float:
    """GFLOP/s of a square matrix product in single precision, the median."""
    a, b = torch.randn(2, size, size)
    times = common.interleaved({"mm": lambda: [a @ b for _ in range(20)]}, repeats, device)["mm"]
    return 20 * 2 * size**3 / statistics.median(times) / 1e9


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__.splitlines()[0], repeats=3).parse_args(argv)
    device = common.prepare(args)
    if device.type != "cpu":
        sys.exit("--device: this is about the CPU")
    waveforms = common.speech(QUICK_SECONDS if args.quick else SECONDS["cpu"])
    with tempfile.TemporaryDirectory() as folder:
        ensemble = Ensemble(Path(folder), TINY if args.quick else BASE, 1, device)
    steps: dict[str, common.Work] = {
        "s3prl": their_step(ensemble, 1, waveforms, teachers_train=False),
        "ours": our_step(ensemble, 1, waveforms),
    }
    rate = peak(device, args.repeats)
    counted = {name: gflop(step) for name, step in steps.items()}
    rounds = [{name: self_times(step) for name, step in steps.items()} for _ in range(args.repeats)]
    kinds = [*KINDS, "other"]
    values = {
        "batch_seconds": [len(waveform) / SAMPLE_RATE for waveform in waveforms],
        "self_seconds": {
            name: {kind: statistics.median(round_[name][kind] for round_ in rounds) for kind in kinds} for name in steps
        },
        "gflop": counted,
        "peak_gflops": rate,
        "floor_s": {name: counted[name] / rate for name in steps},
    }
    return common.finish(args, "profile_step", common.result(args, "self time of a step with one teacher") | values)


if __name__ == "__main__":
    sys.exit(main())
