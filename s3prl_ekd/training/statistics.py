"""Losses and gradient norms of the steps since the last log, kept on the device until the log asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        details: per target and teacher, of the last step; empty if some process had only empty batches in it.
        suspects: utterances of this process's batches whose loss was not finite (or, if all losses were finite, of all
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
    suspects: list[str]


class StepStatistics:
    """Adds up losses without waiting for the device; :meth:`summary` waits, once."""

    # `loss` is this process's share of a sum; the others are equal in all processes.
    _COMMON = ("good", "skipped", "skipped_ever", "in_a_row", "longest", "frames", "norm")

    def __init__(self, device: torch.device, world_size: int) -> None:
        self.world_size = world_size
        self.values = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("loss", *self._COMMON)}
        # Of each batch since the last log, in this process: whether its loss is not finite, whether its step was
        # skipped, its utterances.
        self._batches: list[tuple[Tensor, Tensor, tuple[str, ...]]] = []
        self._details: dict[str, Tensor] = {}  # of the last step
        # The step in work: its batches, and sums over their frames.
        self._new: list[tuple[Tensor, tuple[str, ...]]] = []
        self._sums: dict[str, Tensor] = {}

    def add_batch(self, metrics: dict[str, Tensor], utterances: tuple[str, ...]) -> None:
        """Note a batch of the step in work: ``loss`` and other scalars, without gradient, summed over its frames."""
        self._new.append((~torch.isfinite(metrics["loss"]), utterances))
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def end_step(self, frames: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Note that the step in work is made.

        Args:
            frames: real frames of all processes, a scalar.
            norm: of the gradient.
            skipped: whether it is not finite, a boolean scalar; equal in all processes.
        """
        values, bad = self.values, skipped.double()
        self._details = {name: value.double() / frames.clamp(min=1) for name, value in self._sums.items()}
        loss = self._details.pop("loss", None)
        if loss is not None:
            values["loss"] = values["loss"] + torch.where(skipped, torch.zeros_like(loss), loss)
        values["good"] = values["good"] + (1 - bad) * (frames > 0)
        values["skipped"] = values["skipped"] + bad
        values["skipped_ever"] = values["skipped_ever"] + bad
        values["in_a_row"] = (values["in_a_row"] + 1) * bad
        values["longest"] = torch.maximum(values["longest"], values["in_a_row"])
        values["frames"] = values["frames"] + frames
        values["norm"] = norm.double()
        self._batches += [(broken, skipped, names) for broken, names in self._new]
        self._new, self._sums = [], {}

    def summary(self, bad_recordings: int = 0) -> Summary:
        """Everything since the last call; all processes must call it together, each with its own bad recordings."""
        values, batches, details = self.values, self._batches, self._details
        own = torch.stack([values["loss"], torch.full_like(values["loss"], bad_recordings)])
        if self.world_size > 1:
            torch.distributed.all_reduce(own)
            details = self._reduce(details, own.device)
        common = [values[name] for name in self._COMMON]
        loss, bad, *rest = torch.cat([own, torch.stack([*common, *details.values()])]).tolist()
        good, skipped, skipped_ever, _, longest, frames, norm = rest[: len(common)]
        for name in ("loss", "good", "skipped", "frames"):
            values[name] = torch.zeros_like(values[name])
        values["longest"] = values["in_a_row"]
        self._batches, self._details = [], {}
        suspects: list[str] = []
        if skipped:
            by_loss = [name for broken, _, names in batches if broken for name in names]
            suspects = by_loss or [name for _, omitted, names in batches if omitted for name in names]
        return Summary(
            loss=loss / good if good else float("nan"),
            grad_norm=norm,
            steps=round(good + skipped),
            frames=round(frames),
            skipped=round(skipped),
            skipped_ever=round(skipped_ever),
            longest=round(longest),
            bad_recordings=round(bad),
            details=dict(zip(details, rest[len(common) :], strict=True)),
            suspects=suspects,
        )

    @staticmethod
    def _reduce(details: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Sums over processes, or nothing if one of them had only empty batches."""
        count = torch.tensor(len(details), device=device)
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MIN)
        if count.item() == 0:
            return {}
        total = torch.stack(list(details.values()))
        torch.distributed.all_reduce(total)
        return dict(zip(details, total, strict=True))

    def restart_row(self) -> None:
        """Count skipped steps in a row anew."""
        for name in ("in_a_row", "longest"):
            self.values[name] = torch.zeros_like(self.values[name])

    def skipped_ever(self) -> int:
        """Steps skipped since the run began; waits for the device."""
        return round(self.values["skipped_ever"].item())

    def state(self) -> Tensor:
        """All numbers, for a checkpoint: float64 (values,)."""
        return torch.stack(list(self.values.values()))

    def load_state(self, state: Tensor) -> None:
        """The inverse of :meth:`state`."""
        for name, value in zip(self.values, state.to(self.values["loss"].device), strict=True):
            self.values[name] = value.clone()
