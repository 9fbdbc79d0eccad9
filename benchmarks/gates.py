"""A training step of a student with gates against the same without, in time and memory.

    python benchmarks/gates.py                  # CPU, one thread: 10 / 9 / 7.5 / 6 s, fp32
    python benchmarks/gates.py --device cuda    # GPU: 24 x 12 s, bf16

The student is as large as HuBERT Base (12 layers, a LayerNorm before its projection) and learns as in DPHuBERT: L1
distances of the hidden states 0, 4, 8 and 12 to targets that are there already, as cached ones are, so that gates are
compared with nothing but the student's own step. Candidates:

    ungated     forward, backward, clipping, AdamW
    gated       the same with gates on channels, heads, inner units and taps, and the penalty of a budget
    half_shut   the same with half of all gates shut, as in pruning: what is shut is computed all the same
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import common
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd import cost
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.student.model import Student
from s3prl_ekd.training.optim import parameter_groups

SECONDS = {"cpu": (10.0, 9.0, 7.5, 6.0), "cuda": (12.0,) * 24}
QUICK_SECONDS = (1.0, 0.9, 0.75, 0.6)
BASE = StudentConfig(num_hidden_layers=12, feat_proj_layer_norm=True, feature_grad_scale=1.0)
QUICK = StudentConfig(
    conv_dim=(32,) * 7,
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=96,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    feat_proj_layer_norm=True,
)
GOALS = {"time": 1.15, "memory": 1.15}


class Step:
    """A step of training a student towards hidden states."""

    def __init__(
        self,
        config: StudentConfig,
        waveforms: Sequence[Tensor],
        device: torch.device,
        *,
        gated: bool,
        shut: float = 0.0,
    ) -> None:
        """``shut``: share of the gates that are closed."""
        torch.manual_seed(0)
        self.student = Student(config).to(device).train()
        self.taps = [config.num_hidden_layers * part // 3 for part in range(4)]
        groups = parameter_groups(self.student, 0.01)
        self.gates: Gates | None = None
        if gated:
            self.gates = Gates(self.student, cost.UNITS, {"sparsity": 0.75}).to(device)
            closed = torch.rand(len(self.gates.hard_concrete.log_alpha), device=device) < shut
            self.gates.hard_concrete.log_alpha.data[closed] = -20.0
            groups += self.gates.parameter_groups(0.02)
        self.optimizer = torch.optim.AdamW(groups, lr=2e-4, fused=True)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.device = device
        self.hear(waveforms)

    def hear(self, waveforms: Sequence[Tensor]) -> None:
        """Take these from now on."""
        self.waveforms = pad_sequence(list(waveforms), batch_first=True).to(self.device)
        self.lengths = torch.tensor([len(waveform) for waveform in waveforms])
        with torch.no_grad():
            rows = self.student(self.waveforms, self.lengths).rows
        self.targets = [torch.randn_like(rows[tap]) for tap in self.taps]

    def __call__(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self._loss() if self.gates is None else self._gated_loss(self.gates)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self) -> Tensor:
        rows = self.student(self.waveforms, self.lengths, check=False).rows
        return torch.stack(
            [(rows[t] - target).abs().mean() for t, target in zip(self.taps, self.targets, strict=True)]
        ).sum()

    def _gated_loss(self, gates: Gates) -> Tensor:
        with gates.attached(self.student):
            loss = self._loss()
        return loss + gates.penalty(step=1000)[0]


def main(argv: Sequence[str] | None = None) -> int:
    args = common.parser("A training step with gates against one without.").parse_args(argv)
    device = common.prepare(args)
    config = QUICK if args.quick else BASE
    lengths = QUICK_SECONDS if args.quick else SECONDS[args.device]
    waveforms, short = common.speech(lengths), common.speech(QUICK_SECONDS)
    steps = {
        "ungated": Step(config, waveforms, device, gated=False),
        "gated": Step(config, waveforms, device, gated=True),
        "half_shut": Step(config, waveforms, device, gated=True, shut=0.5),
    }
    times = common.interleaved(steps, args.repeats, device)
    memory = {name: _extra_memory_mb(step, waveforms, short, device) for name, step in steps.items()}
    result = common.result(args, "a training step with gates over one without") | {
        "batch_seconds": list(lengths),
        "timings": common.summary(times),
        "ratios": {"time": common.ratio(times, "gated", "ungated"), "memory": memory["gated"] / memory["ungated"]},
        "ratio_ranges": {"time": common.ratio_range(times, "gated", "ungated")},
        "extra_memory_mb": memory,
        "goals": GOALS,
    }
    return common.finish(args, "gates", result)


def _extra_memory_mb(step: Step, waveforms: Sequence[Tensor], short: Sequence[Tensor], device: torch.device) -> float:
    """Of a step on ``waveforms``, when one on ``short`` has made gradients and what else stays."""

    def warm_up() -> None:
        step.hear(short)
        step()
        step.hear(waveforms)

    return common.extra_memory_mb(step, warm_up, device)


if __name__ == "__main__":
    sys.exit(main())
