"""Where student, teachers, targets and loss meet. Everything above is an adapter of :class:`Distiller`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.audio.batch import Batch, CachedTargets
from s3prl_ekd.config.recipe import DistillConfig, TeacherInput
from s3prl_ekd.loss import head_loss
from s3prl_ekd.network.frames import Packing
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student
from s3prl_ekd.targets import RULES, Source, Target
from s3prl_ekd.teachers.base import Teacher
from s3prl_ekd.teachers.cached import CachedTeacher

logger = logging.getLogger(__name__)


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


AnyTeacher = Teacher | CachedTeacher

Parts = dict[tuple[str, int], Tensor]
"""(teacher, layer) -> what is to be predicted of it, (N, D)."""


def build_student(config: DistillConfig, teachers: Sequence[AnyTeacher]) -> Student:
    """A new student, initialised as the recipe says: from a named teacher, or at random."""
    student = Student(config.student)
    start = config.student.initialize_from
    if start is not None:
        teacher = next(teacher for teacher in teachers if teacher.name == start)
        student.initialize_from(teacher.encoder_state(), start)
    return student


def sources_of(teachers: Sequence[AnyTeacher]) -> list[Source]:
    """What aggregation needs to know of teachers."""
    return [Source(teacher.name, teacher.layers, teacher.hidden_size, teacher.weight) for teacher in teachers]


def teacher_states(
    config: DistillConfig, teachers: Sequence[Teacher], batch: Batch
) -> tuple[list[list[Tensor]], Tensor]:
    """What the teachers make of a batch.

    Returns:
        ``[teacher][layer]`` tensors (B, F, D), layer-normalised where the recipe asks for it, and the frames (B,)
        that all teachers have.
    """
    distorted = config.distortion.teacher_input is TeacherInput.DISTORTED
    waveforms = batch.distorted if distorted else batch.clean
    states, lengths = [], []
    for teacher, settings in zip(teachers, config.teachers, strict=True):
        layers, frames = teacher.hidden_states(waveforms, batch.lengths, padded=config.objective.loss_on_padding)
        if settings.layer_norm_targets:
            layers = [F.layer_norm(layer, layer.shape[-1:]) for layer in layers]
        states.append(layers)
        lengths.append(frames.cpu())
    return states, torch.stack(lengths).amin(dim=0)


def pack_states(states: list[list[Tensor]], frames: Tensor, device: torch.device) -> list[list[Tensor]]:
    """The first ``frames`` (B,) of each utterance of (B, F, D) tensors, (N, D) each, on a device."""
    packed = []
    for layers in states:
        chosen = Packing(frames, device, layers[0].shape[1])
        packed.append([chosen.pack(layer.to(device)) for layer in layers])
    return packed


class Distiller(nn.Module):
    """An ensemble of teachers, a student and one prediction head per target.

    Teachers are no submodules: they are neither trained, nor saved, nor switched to train mode, nor wrapped by DDP.
    They do not run where a batch brings its targets.

    Example (``examples/plain_loop.py`` is a whole training):
        >>> config = DistillConfig.from_yaml(assets.recipe("mini/config_model.yaml"))
        >>> distiller = Distiller(config, load_teachers(config.teachers))
        >>> waves = [torch.randn(16000), torch.randn(8000)]
        >>> output = distiller(collate(waves, waves, ["one", "two"]))
        >>> output.frames, [target.name for target in distiller.targets][:2]
        (73, ['hubert/2', 'hubert/4'])
    """

    def __init__(self, config: DistillConfig, teachers: Sequence[AnyTeacher]) -> None:
        super().__init__()
        self.config = config
        self.teachers = tuple(teachers)
        self.sources = sources_of(teachers)
        self.rule = RULES[config.objective.aggregation]
        self.targets: list[Target] = self.rule.plan(self.sources)
        self.student = build_student(config, teachers)
        self.heads = PredictionHeads(config.student.hidden_size, [target.size for target in self.targets])

    def hidden_states(self, batch: Batch) -> tuple[list[list[Tensor]], Tensor]:
        """See :func:`teacher_states`."""
        return teacher_states(self.config, self.teachers, batch)

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
        if batch.cached is None:
            states, teacher_frames = self.hidden_states(batch)
            size = states[0][0].shape[1]
        else:
            states, teacher_frames, size = [], batch.cached.frames, int(batch.cached.frames.max())
        padded = self.config.objective.loss_on_padding
        output = self.student(batch.distorted, batch.lengths, padded=padded, check=False)
        common = self._common_frames(output.packing, teacher_frames, size)
        rows = _shortened(output.rows[-1], output.packing, common)
        combined, parts = (
            self._computed(states, common, rows.device)
            if batch.cached is None
            else self._of_cache(batch.cached, common)
        )
        predictions = self.heads(rows)
        frames = rows.shape[0]
        denominator = max(1, frames if total_frames is None else total_frames)

        cosine_weight = self.config.objective.cosine_weight
        loss = rows.new_zeros((), dtype=torch.float32)
        metrics: dict[str, Tensor] = {}
        for target, prediction, value in zip(self.targets, predictions, combined, strict=True):
            sums = head_loss(prediction, value)
            loss = loss + target.weight / denominator * (sums.l1 + cosine_weight * sums.cosine_loss)
            if details:
                metrics[f"l1/{target.name}"] = sums.l1.detach() / denominator
                metrics[f"cosine/{target.name}"] = sums.cosine / denominator
        if details:
            metrics |= self._teacher_metrics(predictions, parts, denominator)
        metrics["loss"] = loss.detach()
        return DistillOutput(loss, frames, metrics)

    def _common_frames(self, packing: Packing, teacher_frames: Tensor, size: int) -> Tensor:
        """Frames (B,) that teachers and student both have, padding included where it counts."""
        if self.config.objective.loss_on_padding:
            return torch.full_like(packing.frames, min(packing.size, size))
        gap = int((teacher_frames - packing.frames).abs().max())
        if gap > 1:
            raise ValueError(f"teachers and student differ by {gap} frames; only one can be cropped away")
        return torch.minimum(teacher_frames, packing.frames)

    def _computed(self, states: list[list[Tensor]], frames: Tensor, device: torch.device) -> tuple[list[Tensor], Parts]:
        """The teachers' states as targets (N, D'), and as they are."""
        packed = pack_states(states, frames, device)
        parts = {
            (source.name, layer): state
            for source, layers in zip(self.sources, packed, strict=True)
            for layer, state in zip(source.layers, layers, strict=True)
        }
        return self.rule.combine(self.sources, packed), parts

    def _of_cache(self, cached: CachedTargets, frames: Tensor) -> tuple[list[Tensor], Parts]:
        """The targets (N, D') of a batch whose targets are cached, and what is in them of each teacher."""
        own = Packing(cached.frames, cached.rows.device)
        combined = list(_shortened(cached.rows, own, frames).split([target.size for target in self.targets], dim=-1))
        parts: Parts = {}
        if self.rule.separable:
            for index, (target, value) in enumerate(zip(self.targets, combined, strict=True)):
                parts |= zip(target.parts, self.rule.per_teacher(self.sources, value, index), strict=True)
        return combined, parts

    @torch.no_grad()
    def _teacher_metrics(self, predictions: list[Tensor], wanted: Parts, denominator: int) -> dict[str, Tensor]:
        """How well each teacher's each layer is matched, as far as it is known, and its mean absolute value."""
        metrics = {}
        for index, (target, prediction) in enumerate(zip(self.targets, predictions, strict=True)):
            shares = self.rule.per_teacher(self.sources, prediction, index)
            for part, share in zip(target.parts, shares, strict=True):
                if part not in wanted:
                    continue
                name = "{}/{}".format(*part)
                if name != target.name:
                    parts = head_loss(share, wanted[part])
                    metrics[f"l1/{name}"] = parts.l1 / denominator
                    metrics[f"cosine/{name}"] = parts.cosine / denominator
                metrics[f"magnitude/{name}"] = wanted[part].float().abs().mean(dim=-1).sum() / denominator
        return metrics


def _shortened(rows: Tensor, packing: Packing, frames: Tensor) -> Tensor:
    """Rows of which each utterance keeps its first ``frames`` (B,)."""
    if torch.equal(frames, packing.frames):
        return rows
    return Packing(frames, rows.device, packing.size).pack(packing.unpack(rows))
