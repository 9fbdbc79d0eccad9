"""Where student, teachers, targets and loss meet. Everything above is an adapter of :class:`Distiller`.

Shapes: B utterances of S samples; N real frames of the whole batch, one utterance after another; D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s3prl_ekd.audio.batch import Batch, CachedTargets
from s3prl_ekd.config.base import require
from s3prl_ekd.config.recipe import DistillConfig, TeacherInput
from s3prl_ekd.loss import Loss
from s3prl_ekd.network.frames import HiddenStates, Packing
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.student.copies import copy_of
from s3prl_ekd.student.heads import new_heads
from s3prl_ekd.student.model import Student
from s3prl_ekd.targets import Fits, Part, aggregator, teacher_targets
from s3prl_ekd.teachers.base import Teacher


@dataclass(frozen=True)
class DistillOutput:
    """Result of one forward pass.

    Attributes:
        loss: scalar with gradient.
        frames: how many frames it is the mean over, a Python int.
        metrics: scalars without gradient for the log; only ``loss`` unless details were asked for.
    """

    loss: Tensor
    frames: int
    metrics: dict[str, Tensor]


def build_student(config: DistillConfig, teachers: Sequence[Teacher]) -> Student:
    """A new student, as the recipe says: a copy of a named teacher, started from some of its weights, or random.

    Raises:
        UserError: the teacher cannot be copied, or does not fit to the student's sizes.
    """
    settings = config.student
    if settings.origin is None:
        return Student(settings)
    origin = next(teacher for teacher in teachers if teacher.name == settings.origin)
    if settings.copy is not None:
        return copy_of(settings, origin.architecture(), origin.encoder_state())
    student = Student(settings)
    student.initialize_from(origin.encoder_state(), origin.name)
    return student


def teacher_states(
    config: DistillConfig, teachers: Sequence[Teacher], batch: Batch, fits: Fits | None = None
) -> list[HiddenStates]:
    """What is to be predicted of each teacher for a batch, see :func:`~s3prl_ekd.targets.teacher_targets`: (N, D) for
    each of its slots, then (N, K) of its units if it has any.

    The frames of an utterance may be one more or less from teacher to teacher.

    Args:
        fits: of a recipe with units or principal components.

    Raises:
        UserError: they have not been found.
    """
    waveforms = batch.distorted if config.distortion.teacher_input is TeacherInput.DISTORTED else batch.clean
    outputs = []
    for teacher, settings in zip(teachers, config.teachers, strict=True):
        output = teacher.hidden_states(waveforms, batch.lengths)
        layers = dict(zip(settings.computed_layers, output.rows, strict=True))
        rows = teacher_targets(settings, layers, Fits() if fits is None else fits)
        outputs.append(HiddenStates(tuple(rows), output.packing))
    return outputs


def common_frames(packings: Sequence[Packing]) -> Tensor:
    """How many frames (B,) of each utterance all have."""
    return torch.stack([packing.frames for packing in packings]).amin(dim=0)


class Distiller(nn.Module):
    """An ensemble of teachers, a student, and prediction heads for the targets.

    Teachers are no submodules: they are neither trained, nor saved, nor switched to train mode, nor wrapped by DDP.
    They do not run where a batch has cached targets.

    Attributes:
        gates: on the student, while it is pruned; None: it has none. Set it before there is an optimizer.

    Example (``examples/plain_loop.py`` is a whole training):
        >>> config = DistillConfig.from_yaml(assets.recipe("mini/config_model.yaml"))
        >>> distiller = Distiller(config, load_teachers(config))
        >>> waves = [torch.randn(16000), torch.randn(8000)]
        >>> output = distiller(collate(waves, waves, ["one", "two"]))
        >>> output.frames, [target.name for target in distiller.targets][:2]
        (73, ['hubert/2', 'hubert/4'])

    ``fits`` is what was found beforehand for units and principal components; nothing is needed of it where targets are
    cached.

    Raises:
        UserError: the teachers do not fit together or the heads not to student and targets, or none of the teachers can
            initialise the student.
        ValueError: they were loaded for another ``objective.loss_on_padding``.
    """

    def __init__(self, config: DistillConfig, teachers: Sequence[Teacher], fits: Fits | None = None) -> None:
        super().__init__()
        padded = config.objective.loss_on_padding
        if any(teacher.padded != padded for teacher in teachers):
            raise ValueError(f"objective.loss_on_padding is {padded}: the teachers must be loaded with padded={padded}")
        self.config = config
        self.teachers = tuple(teachers)
        self.fits = Fits() if fits is None else fits
        self.aggregator = aggregator(config, {teacher.name: teacher.hidden_size for teacher in teachers})
        self.targets = self.aggregator.targets
        self.loss = Loss(config.objective)
        self.student = build_student(config, teachers)
        self.gates: Gates | None = None
        if config.heads.from_ == "same":
            self._check_depths()
        self.heads = new_heads(config, self.targets, self.student.config)
        if self.aggregator.learnt is not None:
            self.learnt_weights = self.aggregator.learnt

    def forward(self, batch: Batch, *, details: bool = False, total_frames: int | None = None) -> DistillOutput:
        """The distillation loss of a batch.

        Args:
            batch: waveforms on the device of the student.
            details: also give each target's and each teacher's losses.
            total_frames: frames to divide by, when the mean runs over more than this batch (accumulation, other
                processes); None: this batch's own.

        Raises:
            ValueError: a teacher's frames and the student's differ by more than one.
        """
        taught = [self._cached(batch.cached)] if batch.cached else self._teach(batch)
        padded = self.config.objective.loss_on_padding
        with contextlib.nullcontext() if self.gates is None else self.gates.attached(self.student):
            student = self.student(batch.distorted, batch.lengths, padded=padded, check=False)  # layers (N, D)
        frames = self._common_frames(student.packing, [output.packing for output in taught])  # (B,)
        states = [student.packing.first(rows, frames) for rows in student.tapped]  # (N, D) each
        predictions = self.heads(states)  # (N, D') for each target
        given = [[rows.to(states[0].device) for rows in output.first(frames)] for output in taught]
        targets = given[0] if batch.cached else self.aggregator(given)  # (N, D') each

        same = torch.equal(frames, student.packing.frames)
        packing = student.packing if same else Packing(frames, states[0].device)
        count = states[0].shape[0]
        denominator = max(1, count if total_frames is None else total_frames)
        loss = states[0].new_zeros((), dtype=torch.float32)
        metrics: dict[str, Tensor] = {}
        weights = self.aggregator.weights()
        for target, weight, prediction, wanted in zip(self.targets, weights, predictions, targets, strict=True):
            total, logged = self.loss(prediction, wanted, packing, units=target.kind == "units", details=details)
            loss = loss + weight / denominator * total
            if details:
                metrics |= {f"{name}/{target.name}": value / denominator for name, value in logged.items()}
        if details:
            parts = self._parts_of_targets(targets) if batch.cached else self._parts(given)
            metrics |= self._teacher_metrics(predictions, parts, packing, denominator)
            metrics |= self.aggregator.learnt_metrics()
        metrics["loss"] = loss.detach()
        return DistillOutput(loss, count, metrics)

    def _check_depths(self) -> None:
        depth = self.student.config.num_hidden_layers
        for teacher in self.teachers:
            found = getattr(teacher, "num_hidden_layers", depth)  # of a cached teacher it is not known
            require(
                found == depth,
                f"heads.from: same, but teacher {teacher.name!r} has {found} layers and the student {depth}; use last,"
                " or one layer for each slot",
            )

    def _teach(self, batch: Batch) -> list[HiddenStates]:
        """What is to be predicted of each teacher."""
        self.fits = self.fits.to(batch.clean.device)
        return teacher_states(self.config, self.teachers, batch, self.fits)

    def _cached(self, cached: CachedTargets) -> HiddenStates:
        """Cached targets as one output, (N, D') for each target."""
        rows = cached.rows.split([target.size for target in self.targets], dim=-1)
        return HiddenStates(rows, Packing(cached.frames, cached.rows.device))

    def _common_frames(self, student: Packing, taught: Sequence[Packing]) -> Tensor:
        """Frames (B,) that the student and all others have; where padding counts, it is among them."""
        frames = common_frames(taught)
        gap = int((frames - student.frames).abs().max())
        if gap > 1 and not self.config.objective.loss_on_padding:
            raise ValueError(f"teachers and student differ by {gap} frames; only one can be cropped away")
        return torch.minimum(frames, student.frames)

    def _parts(self, given: Sequence[Sequence[Tensor]]) -> dict[Part, Tensor]:
        """The slots (N, D) that the teachers gave."""
        pairs = zip(self.aggregator.teachers, given, strict=True)
        return {(one.name, name): r for one, rows in pairs for name, r in zip(one.slot_names, rows, strict=False)}

    def _parts_of_targets(self, targets: Sequence[Tensor]) -> dict[Part, Tensor]:
        """The teachers' slots (N, D) that can be told from targets (N, D')."""
        return self.aggregator.states_of(targets) if self.aggregator.separable else {}

    @torch.no_grad()
    def _teacher_metrics(
        self, predictions: Sequence[Tensor], wanted: dict[Part, Tensor], packing: Packing, denominator: int
    ) -> dict[str, Tensor]:
        """How well each teacher's each slot is matched, as far as it is known, and its mean absolute value."""
        metrics: dict[str, Tensor] = {}
        told = {target.name for target in self.targets}
        for part, prediction in self.aggregator.states_of(predictions).items():
            if part not in wanted:
                continue
            name, rows = "/".join(part), wanted[part]
            if name not in told:
                _, logged = self.loss(prediction, rows, packing, details=True)
                metrics |= {f"{term}/{name}": value / denominator for term, value in logged.items()}
            metrics[f"magnitude/{name}"] = rows.float().abs().mean(dim=-1).sum() / denominator
        return metrics
