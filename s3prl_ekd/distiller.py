"""Where student, teachers, targets and loss meet. Everything above is an adapter of :class:`Distiller`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.config import DistillConfig, TeacherInput
from s3prl_ekd.loss import head_loss
from s3prl_ekd.network.frames import Packing
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student
from s3prl_ekd.targets import RULES, Source, Target
from s3prl_ekd.teachers.base import Teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Utterances as the two sides hear them.

    Attributes:
        clean: (B, S) waveforms at 16 kHz, zero-padded.
        distorted: (B, S) what the student hears; the same tensor where nothing is distorted.
        lengths: (B,) samples, on the CPU.
        utterances: B names, for messages.
        starts: (B,) first sample of each within its whole utterance, where crops are taken; on the CPU.
    """

    clean: Tensor
    distorted: Tensor
    lengths: Tensor
    utterances: tuple[str, ...]
    starts: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The waveforms on ``device``, each moved once; lengths stay on the CPU, where they cost no synchronisation."""
        clean = self.clean.to(device, non_blocking=True)
        distorted = clean if self.distorted is self.clean else self.distorted.to(device, non_blocking=True)
        return replace(self, clean=clean, distorted=distorted)


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
    """A new student, initialised as the recipe says: from a named teacher, or at random."""
    student = Student(config.student)
    start = config.student.initialize_from
    if start is not None:
        teacher = next(teacher for teacher in teachers if teacher.name == start)
        student.initialize_from(teacher.encoder_state(), start)
    return student


class Distiller(nn.Module):
    """An ensemble of teachers, a student and one prediction head per target.

    Teachers are no submodules: they are neither trained, nor saved, nor switched to train mode, nor wrapped by DDP.
    """

    def __init__(self, config: DistillConfig, teachers: Sequence[Teacher]) -> None:
        super().__init__()
        self.config = config
        self.teachers = tuple(teachers)
        self.sources = [
            Source(teacher.name, teacher.layers, teacher.hidden_size, teacher.weight) for teacher in teachers
        ]
        self.rule = RULES[config.objective.aggregation]
        self.targets: list[Target] = self.rule.plan(self.sources)
        self.student = build_student(config, teachers)
        self.heads = PredictionHeads(config.student.hidden_size, [target.size for target in self.targets])

    def hidden_states(self, batch: Batch) -> tuple[list[list[Tensor]], Tensor]:
        """What the teachers make of a batch.

        Returns:
            ``[teacher][layer]`` tensors (B, F, D), layer-normalised where the recipe asks for it, and the frames (B,)
            that all teachers have.
        """
        distorted = self.config.distortion.teacher_input is TeacherInput.DISTORTED
        waveforms = batch.distorted if distorted else batch.clean
        states, lengths = [], []
        for teacher, config in zip(self.teachers, self.config.teachers, strict=True):
            layers, frames = teacher.hidden_states(
                waveforms, batch.lengths, padded=self.config.objective.loss_on_padding
            )
            if config.layer_norm_targets:
                layers = [F.layer_norm(layer, layer.shape[-1:]) for layer in layers]
            states.append(layers)
            lengths.append(frames.cpu())
        return states, torch.stack(lengths).amin(dim=0)

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
        states, teacher_frames = self.hidden_states(batch)
        output = self.student(batch.distorted, batch.lengths, padded=self.config.objective.loss_on_padding)
        rows, wanted = self._align(output.rows[-1], output.packing, states, teacher_frames)
        predictions = self.heads(rows)
        frames = rows.shape[0]
        denominator = max(1, frames if total_frames is None else total_frames)

        cosine_weight = self.config.objective.cosine_weight
        loss = rows.new_zeros((), dtype=torch.float32)
        metrics: dict[str, Tensor] = {}
        combined = self.rule.combine(self.sources, wanted)
        for target, prediction, value in zip(self.targets, predictions, combined, strict=True):
            parts = head_loss(prediction, value)
            loss = loss + target.weight / denominator * (parts.l1 + cosine_weight * parts.cosine_loss)
            if details:
                metrics[f"l1/{target.name}"] = parts.l1.detach() / denominator
                metrics[f"cosine/{target.name}"] = parts.cosine / denominator
        if details:
            metrics |= self._teacher_metrics(predictions, wanted, denominator)
        metrics["loss"] = loss.detach()
        return DistillOutput(loss, frames, metrics)

    def _align(
        self, rows: Tensor, packing: Packing, states: list[list[Tensor]], teacher_frames: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Student's rows (N', D) and teachers' states (B, F, D) at the frames that both have, (N, D) each."""
        size = min(packing.size, states[0][0].shape[1])
        if self.config.objective.loss_on_padding:
            frames = torch.full_like(packing.frames, size)
        else:
            gap = int((teacher_frames - packing.frames).abs().max())
            if gap > 1:
                raise ValueError(f"teachers and student differ by {gap} frames; only one can be cropped away")
            frames = torch.minimum(teacher_frames, packing.frames)
        if not torch.equal(frames, packing.frames):
            rows = Packing(frames, rows.device, packing.size).pack(packing.unpack(rows))
        aligned = []
        for layers in states:
            chosen = Packing(frames, rows.device, layers[0].shape[1])
            aligned.append([chosen.pack(layer.to(rows.device)) for layer in layers])
        return rows, aligned

    @torch.no_grad()
    def _teacher_metrics(
        self, predictions: list[Tensor], states: list[list[Tensor]], denominator: int
    ) -> dict[str, Tensor]:
        """How well each teacher's each layer is matched, whatever the aggregation, and its mean absolute value."""
        wanted = {
            (source.name, layer): state
            for source, layers in zip(self.sources, states, strict=True)
            for layer, state in zip(source.layers, layers, strict=True)
        }
        metrics = {}
        for index, (target, prediction) in enumerate(zip(self.targets, predictions, strict=True)):
            shares = self.rule.per_teacher(self.sources, prediction, index)
            for part, share in zip(target.parts, shares, strict=True):
                name = "{}/{}".format(*part)
                if name != target.name:
                    parts = head_loss(share, wanted[part])
                    metrics[f"l1/{name}"] = parts.l1 / denominator
                    metrics[f"cosine/{name}"] = parts.cosine / denominator
                metrics[f"magnitude/{name}"] = wanted[part].float().abs().mean(dim=-1).sum() / denominator
        return metrics
