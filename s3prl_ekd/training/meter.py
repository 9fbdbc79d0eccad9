"""What happened since the last log, kept on the device until the log asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Step:
    """The batches of one step in this process: whether each one's loss is not finite, and its utterances."""

    broken: list[Tensor] = field(default_factory=list)
    utterances: list[tuple[str, ...]] = field(default_factory=list)
    loss_sum: Tensor | None = None
    details: dict[str, Tensor] = field(default_factory=dict)
    skipped: Tensor | None = None


@dataclass(frozen=True)
class Summary:
    """Means over the steps since the last summary, over all processes.

    Attributes:
        loss: mean over the steps that were not skipped; NaN if all were.
        grad_norm: of the last step, before clipping.
        steps: how many there were.
        frames: real frames of all processes in them.
        skipped: steps not made because loss or gradient was not finite.
        skipped_ever: the same since the run began.
        longest: the most such steps in a row.
        bad_recordings: recordings that all processes have skipped so far.
        details: per target and teacher, of the last step; empty where some process had nothing to say.
        suspects: utterances of this process's batches whose loss was not finite (or, if no loss was to blame, of all
            its batches in the skipped steps).
    """

    loss: float
    grad_norm: float
    steps: int
    frames: int
    skipped: int
    skipped_ever: int
    longest: int
    bad_recordings: int
    details: dict[str, float]
    suspects: list[tuple[str, ...]]


class Meter:
    """Adds up losses without synchronising; :meth:`summary` does, once."""

    # `loss` is this process's share of a sum; the others are equal in all processes.
    _COMMON = ("good", "skipped", "skipped_ever", "in_a_row", "longest", "frames", "norm")

    def __init__(self, device: torch.device, world_size: int) -> None:
        self.world_size = world_size
        self.values = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("loss", *self._COMMON)}
        self._steps: list[_Step] = []
        self._open = _Step()

    def add_batch(self, loss_sum: Tensor, details: dict[str, Tensor], utterances: tuple[str, ...]) -> None:
        """Note a batch of the current step.

        Args:
            loss_sum: the loss summed over the batch's frames, a scalar without gradient.
            details: metrics summed over the batch's frames.
            utterances: its names.
        """
        step = self._open
        step.broken.append(~torch.isfinite(loss_sum))
        step.utterances.append(utterances)
        step.loss_sum = loss_sum if step.loss_sum is None else step.loss_sum + loss_sum
        for name, value in details.items():
            step.details[name] = step.details[name] + value if name in step.details else value

    def end_step(self, frames: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Close the current step.

        Args:
            frames: real frames of all processes, a scalar.
            norm: of the gradient.
            skipped: whether it is not finite, a boolean scalar; equal in all processes.
        """
        step, values = self._open, self.values
        step.skipped = skipped
        bad = skipped.double()
        if step.loss_sum is not None:
            loss = step.loss_sum.double() / frames.clamp(min=1)
            values["loss"] = values["loss"] + torch.where(skipped, torch.zeros_like(loss), loss)
        values["good"] = values["good"] + (1 - bad) * (frames > 0)
        values["skipped"] = values["skipped"] + bad
        values["skipped_ever"] = values["skipped_ever"] + bad
        values["in_a_row"] = (values["in_a_row"] + 1) * bad
        values["longest"] = torch.maximum(values["longest"], values["in_a_row"])
        values["frames"] = values["frames"] + frames
        values["norm"] = norm.double()
        step.details = {name: value.double() / frames.clamp(min=1) for name, value in step.details.items()}
        step.loss_sum = None
        self._steps.append(step)
        self._open = _Step()

    def summary(self, bad_recordings: int = 0) -> Summary:
        """Everything since the last call; all processes must call it together.

        Args:
            bad_recordings: that this process has skipped so far.
        """
        steps, values = self._steps, self.values
        loss = values["loss"]
        local = torch.stack([loss, torch.full_like(loss, bad_recordings)])
        details = steps[-1].details if steps else {}
        if self.world_size > 1:
            torch.distributed.all_reduce(local)
            details = self._reduce(details, local.device)
        common = [values[name] for name in self._COMMON]
        loss, bad, *rest = torch.cat([local, torch.stack([*common, *details.values()])]).tolist()
        good, skipped, skipped_ever, _, longest, frames, norm = rest[: len(common)]
        report = Summary(
            loss=loss / good if good else float("nan"),
            grad_norm=norm,
            steps=round(good + skipped),
            frames=round(frames),
            skipped=round(skipped),
            skipped_ever=round(skipped_ever),
            longest=round(longest),
            bad_recordings=round(bad),
            details=dict(zip(details, rest[len(common) :], strict=True)),
            suspects=_suspects(steps) if skipped else [],
        )
        for name in ("loss", "good", "skipped", "frames"):
            values[name] = torch.zeros_like(values[name])
        values["longest"] = values["in_a_row"]
        self._steps = []
        return report

    @staticmethod
    def _reduce(details: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Sums over processes, or nothing if one of them had only an empty batch."""
        count = torch.tensor(len(details), device=device)
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MIN)
        if count.item() == 0:
            return {}
        total = torch.stack(list(details.values()))
        torch.distributed.all_reduce(total)
        return dict(zip(details, total, strict=True))

    def forgive(self) -> None:
        """Start counting steps in a row anew."""
        for name in ("in_a_row", "longest"):
            self.values[name] = torch.zeros_like(self.values[name])

    def state(self) -> Tensor:
        """All numbers, for a checkpoint: float64 (values,)."""
        return torch.stack(list(self.values.values()))

    def load_state(self, state: Tensor) -> None:
        """The inverse of :meth:`state`."""
        for name, value in zip(self.values, state.to(next(iter(self.values.values())).device), strict=True):
            self.values[name] = value.clone()


def _suspects(steps: list[_Step]) -> list[tuple[str, ...]]:
    batches: list[tuple[Any, ...]] = [
        (broken, step.skipped, names)
        for step in steps
        for broken, names in zip(step.broken, step.utterances, strict=True)
    ]
    if not batches:
        return []
    broken = torch.stack([batch[0] for batch in batches]).tolist()
    skipped = torch.stack([batch[1] for batch in batches]).tolist()
    by_loss = [batch[2] for batch, guilty in zip(batches, broken, strict=True) if guilty]
    return by_loss or [batch[2] for batch, guilty in zip(batches, skipped, strict=True) if guilty]
