"""The student as a feature extractor, ours against s3prl's distiller upstream and transformers' HubertModel.

    python benchmarks/inference.py                    # CPU, one thread
    python benchmarks/inference.py --device cuda

All have the same base-size random weights and two layers, run without gradients and give the hidden states:

    ours           the upstream ``ekd_student``, a list of waveforms in
    s3prl          s3prl's ``distiller_local``, told not to compute the prediction heads that ours does not compute
    s3prl_shipped  the same as s3prl's runner calls it, prediction heads included
    transformers   HubertModel on the padded batch with its attention mask

Inputs: ``b1``, one utterance of 10 s, and ``mixed8``, eight of 4 to 15 s (72 s in 120 s with padding). Before anything
is timed, the outputs are compared: ours for the batch must be the peers' for each utterance alone.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from peers import BASE, TINY, Sizes, load_upstream, write_student
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.student.model import Student
from s3prl_ekd.upstream import EkdUpstream, ekd_student

INPUTS = {"b1": (10.0,), "mixed8": (15.0, 13.0, 11.0, 9.5, 8.0, 6.5, 5.0, 4.0)}
QUICK_INPUTS = {"b1": (1.0,), "mixed8": tuple(length / 10 for length in INPUTS["mixed8"])}
GOALS = {"infer_b1": 1.45, "infer_mixed8": 2.5, "memory_b1": 1 / 3, "memory_mixed8": 1 / 8}
LIMITS = {"cpu": {"s3prl": 2e-5, "transformers": 2e-5}, "cuda": {"s3prl": 1e-3, "transformers": 1e-3}}

Extractor = Callable[[Sequence[Tensor]], Sequence[Any]]
"""Waveforms (S,) to the hidden states (B, F, D): the projected features, where a peer gives them, then the layers."""


class Transformers:
    """HubertModel with a student's weights."""

    def __init__(self, student: Student, sizes: Sizes) -> None:
        from transformers import HubertConfig, HubertModel

        config = HubertConfig(
            conv_dim=[sizes.conv_dim] * 7, hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size,
            num_attention_heads=sizes.heads, num_hidden_layers=sizes.student_layers,
            num_conv_pos_embeddings=sizes.conv_pos, num_conv_pos_embedding_groups=sizes.conv_pos_groups,
            feat_proj_layer_norm=False, mask_time_prob=0.0,
        )  # fmt: skip
        self.model = HubertModel(config).eval()
        self.model.load_state_dict(student.state_dict())

    def __call__(self, waveforms: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Index 0 is None: transformers counts differently there."""
        padded = pad_sequence(list(waveforms), batch_first=True)
        mask = torch.zeros(padded.shape, dtype=torch.long, device=padded.device)
        for row, waveform in enumerate(waveforms):
            mask[row, : len(waveform)] = 1
        shown = None if bool(mask.all()) else mask
        return [None, *self.model(padded, attention_mask=shown, output_hidden_states=True).hidden_states[1:]]


def extractors(sizes: Sizes, device: torch.device) -> dict[str, Extractor]:
    """All candidates, with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_student(Path(folder) / "states-200000.ckpt", sizes)
        theirs: nn.Module = load_upstream("distiller_local", path).to(device)
        ours: EkdUpstream = ekd_student(path).eval().to(device)
    hubert = Transformers(ours.student, sizes)
    hubert.model.to(device)
    hidden = sizes.student_layers + 1
    return {
        "ours": lambda waveforms: ours(waveforms)["hidden_states"],
        "s3prl": lambda waveforms: theirs(waveforms, no_pred=True)["hidden_states"],
        "s3prl_shipped": lambda waveforms: theirs(waveforms)["hidden_states"][:hidden],
        "transformers": hubert,
    }


def differences(candidates: Mapping[str, Extractor], inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """Largest difference to each peer."""
    found = {"s3prl": 0.0, "transformers": 0.0}
    for waveforms in inputs.values():
        together = candidates["ours"](waveforms)
        for row, waveform in enumerate(waveforms):
            for peer in found:
                for mine, reference in zip(together, candidates[peer]([waveform]), strict=True):
                    if reference is not None:
                        difference = (mine[row, : reference.shape[1]] - reference[0]).abs().max()
                        found[peer] = max(found[peer], difference.item())
    return found


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser(__doc__.splitlines()[0], repeats=7).parse_args(argv)
    device = common.prepare(args)
    lengths = QUICK_INPUTS if args.quick else INPUTS
    inputs = {name: [w.to(device) for w in common.speech(of)] for name, of in lengths.items()}
    with torch.no_grad():
        candidates = extractors(TINY if args.quick else BASE, device)
        short = [
            common.speech([0.5 if args.quick else 4.0])[0].to(device)
        ]  # long enough to go all the ways of a long one

        def memory(*, default_malloc: bool) -> dict[str, dict[str, float]]:
            """Of each candidate for each input, in MB."""
            return {
                name: {
                    which: common.extra_memory_mb(
                        partial(e, w), partial(e, short), device, default_malloc=default_malloc
                    )
                    for which, e in candidates.items()
                }
                for name, w in inputs.items()
            }

        # First of all, while this process has run nothing that the measuring ones would inherit.
        used = {"extra_memory_mb": memory(default_malloc=False)}
        if device.type == "cpu":
            used["extra_memory_mb_default_malloc"] = memory(default_malloc=True)
        with common.exact_float32():
            checked = differences(candidates, inputs)
        print(f"equal outputs: {common.rounded(checked)}", file=sys.stderr)
        times = {
            name: common.interleaved({which: partial(e, w) for which, e in candidates.items()}, args.repeats, device)
            for name, w in inputs.items()
        }

    ratios: dict[str, float | None] = {}
    ranges: dict[str, list[float] | None] = {}
    for name in inputs:
        for peer, suffix in (("s3prl", ""), ("s3prl_shipped", "_s3prl_shipped"), ("transformers", "_transformers")):
            ratios[f"infer_{name}{suffix}"] = common.ratio(times[name], peer, "ours")
            ranges[f"infer_{name}{suffix}"] = common.ratio_range(times[name], peer, "ours")
    for kind, amounts in used.items():
        suffix = kind.removeprefix("extra_memory_mb")
        for name, amount in amounts.items():
            ratios[f"memory_{name}{suffix}"] = amount["ours"] / amount["s3prl"]
            ratios[f"memory_{name}{suffix}_transformers"] = amount["ours"] / amount["transformers"]
    result = common.result(args, "hidden states of a two-layer student: time peer over ours, memory ours over peer") | {
        "input_seconds": {name: list(of) for name, of in lengths.items()},
        "timings": {name: common.summary(values) for name, values in times.items()},
        "real_time_factor": {
            name: {which: statistics.median(values) / sum(lengths[name]) for which, values in times[name].items()}
            for name in inputs
        },
        "ratios": ratios,
        "ratio_ranges": ranges,
        "goals": GOALS,
        "max_differences": checked,
        "limits": LIMITS[args.device],
    }
    return common.finish(args, "inference", result | used)


if __name__ == "__main__":
    sys.exit(main())
