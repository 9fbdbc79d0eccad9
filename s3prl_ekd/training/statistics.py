"""Losses and gradient norms of the steps since the last log, kept on the device until the log asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class _Step:
    """The batches of one step in this process.

    Attributes:
        batches: of each one, whether its loss is not finite, and its utterances.
        metrics: sums over their frames; once the step is made, means over those of all processes.
        skipped: whether the step was skipped, once it is made.
    """

    batches: list[tuple[Tensor, tuple[str, ...]]] = field(default_factory=list)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    skipped: Tensor = field(default_factory=lambda: torch.tensor(False))


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


class StepStatistics:
    """Adds up losses without waiting for the device; :meth:`summary` waits, once."""

    # `loss` is this process's share of a sum; the others are equal in all processes.
    _COMMON = ("good", "skipped", "skipped_ever", "in_a_row", "longest", "frames", "norm")

    def __init__(self, device: torch.device, world_size: int) -> None:
        self.world_size = world_size
        self.values = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("loss", *self._COMMON)}
        self._steps: list[_Step] = []
        self._step = _Step()  # the one in work

    def add_batch(self, metrics: dict[str, Tensor], utterances: tuple[str, ...]) -> None:
        """Note a batch of the step in work.

        Args:
            metrics: ``loss`` and others, each summed over the batch's frames; scalars without gradient.
            utterances: its names.
        """
        self._step.batches.append((~torch.isfinite(metrics["loss"]), utterances))
        sums = self._step.metrics
        sums.update({name: sums[name] + value if name in sums else value for name, value in metrics.items()})

    def end_step(self, frames: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Note that the step in work is made.

        Args:
            frames: real frames of all processes, a scalar.
            norm: of the gradient.
            skipped: whether it is not finite, a boolean scalar; equal in all processes.
        """
        step, values, bad = self._step, self.values, skipped.double()
        step.skipped = skipped
        step.metrics = {name: value.double() / frames.clamp(min=1) for name, value in step.metrics.items()}
        loss = step.metrics.pop("loss", None)
        if loss is not None:
            values["loss"] = values["loss"] + torch.where(skipped, torch.zeros_like(loss), loss)
        values["good"] = values["good"] + (1 - bad) * (frames > 0)
        values["skipped"] = values["skipped"] + bad
        values["skipped_ever"] = values["skipped_ever"] + bad
        values["in_a_row"] = (values["in_a_row"] + 1) * bad
        values["longest"] = torch.maximum(values["longest"], values["in_a_row"])
        values["frames"] = values["frames"] + frames
        values["norm"] = norm.double()
        self._steps.append(step)
        self._step = _Step()

    def summary(self, bad_recordings: int = 0) -> Summary:
        """Everything since the last call; all processes must call it together.

        Args:
            bad_recordings: that this process has skipped so far.
        """
        steps, values = self._steps, self.values
        own = torch.stack([values["loss"], torch.full_like(values["loss"], bad_recordings)])
        details = steps[-1].metrics if steps else {}
        if self.world_size > 1:
            torch.distributed.all_reduce(own)
            details = self._reduce(details, own.device)
        common = [values[name] for name in self._COMMON]
        loss, bad, *rest = torch.cat([own, torch.stack([*common, *details.values()])]).tolist()
        good, skipped, skipped_ever, _, longest, frames, norm = rest[: len(common)]
        for name in ("loss", "good", "skipped", "frames"):
            values[name] = torch.zeros_like(values[name])
        values["longest"] = values["in_a_row"]
        self._steps = []
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
            suspects=_suspects(steps) if skipped else [],
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


def _suspects(steps: list[_Step]) -> list[tuple[str, ...]]:
    """The utterances of batches whose loss was not finite; if there is none, those of all batches in skipped steps."""
    batches = [(broken, step.skipped, names) for step in steps for broken, names in step.batches]
    by_loss = [names for broken, _, names in batches if broken]
    return by_loss or [names for _, skipped, names in batches if skipped]
