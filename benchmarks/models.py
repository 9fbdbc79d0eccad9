"""Our side of the benchmarks, and both sides' models with the same weights out of the same files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peers import (
    KINDS,
    NAMES,
    UPSTREAMS,
    Recipe,
    RecipeStep,
    Sizes,
    distiller_model,
    distiller_settings,
    load_upstream,
    write_teacher,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.audio.batch import Batch, CachedTargets
from s3prl_ekd.config.recipe import DistillConfig, TeacherConfig
from s3prl_ekd.distiller import Distiller, common_frames, teacher_states
from s3prl_ekd.student.s3prl_distiller import student_config
from s3prl_ekd.teachers import load_teacher
from s3prl_ekd.teachers.base import Teacher
from s3prl_ekd.training.optim import parameter_groups
from s3prl_ekd.weights.names import from_distiller


class Ensemble:
    """Teachers with random weights, loaded by s3prl and by this package from the same checkpoints.

    Attributes:
        theirs: s3prl's upstreams.
        ours: the same as :class:`Teacher`.
        student: weights that all students start from, under s3prl's names.
    """

    def __init__(self, folder: Path, sizes: Sizes, count: int, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self.configs: list[TeacherConfig] = []
        self.theirs: list[nn.Module] = []
        self.ours: list[Teacher] = []
        for seed, (name, kind) in enumerate(zip(NAMES[:count], KINDS[:count], strict=True)):
            path = write_teacher(folder / f"{name}.pt", kind, sizes, seed)
            self.configs.append(TeacherConfig(name=name, s3prl=UPSTREAMS[kind], ckpt=str(path), layers=sizes.targets))
            self.theirs.append(load_upstream(UPSTREAMS[kind], path).to(device))
            self.ours.append(load_teacher(self.configs[-1]).to(device))
            path.unlink()
        self.student = distiller_model(sizes).state_dict()

    def recipe(self, count: int) -> Recipe:
        """s3prl's recipe with the first ``count`` teachers and a student of its own."""
        distiller = distiller_model(self.sizes)
        distiller.load_state_dict(self.student)
        return Recipe(distiller, self.theirs[:count]).to(self.device)

    def distiller(self, count: int) -> Distiller:
        """The same by this package."""
        settings = {
            "student": student_config(distiller_settings(self.sizes)).to_mapping(),
            "teachers": [config.to_mapping() for config in self.configs[:count]],
            "objective": {"aggregation": "layerwise-average"},
        }
        distiller = Distiller(DistillConfig.from_mapping(settings), self.ours[:count])
        load_from_s3prl(distiller, self.student)
        return distiller.to(self.device)


def load_from_s3prl(distiller: Distiller, state: Mapping[str, Tensor]) -> None:
    """Give student and heads the weights of s3prl's distiller."""
    ours = from_distiller(state)
    heads = {name.removeprefix("heads."): ours.pop(name) for name in list(ours) if name.startswith("heads.")}
    distiller.student.load_state_dict(ours)
    distiller.heads.load_state_dict(heads)


def batch_of(waveforms: Sequence[Tensor], device: torch.device) -> Batch:
    """As the data loader gives it: padded, on the CPU, pinned for a GPU."""
    padded = pad_sequence(list(waveforms), batch_first=True)
    if device.type == "cuda":
        padded = padded.pin_memory()
    names = tuple(f"utterance-{row}" for row in range(len(waveforms)))
    return Batch(padded, padded, torch.tensor([len(waveform) for waveform in waveforms]), names)


def with_targets(distiller: Distiller, batch: Batch, device: torch.device) -> Batch:
    """The batch as the loader gives it where targets are cached: they are there, in half precision."""
    with torch.no_grad():
        outputs = teacher_states(distiller.config, distiller.teachers, batch.to(device))
        frames = common_frames([output.packing for output in outputs])
        combined = distiller.aggregator([output.first(frames) for output in outputs])
    targets = torch.cat(combined, dim=-1).half().cpu()
    if device.type == "cuda":
        targets = targets.pin_memory()
    return dataclasses.replace(batch, cached=CachedTargets(targets, frames))


class OurStep:
    """One step as ``s3prl-ekd distill`` makes it."""

    def __init__(self, distiller: Distiller, waveforms: Sequence[Tensor], device: torch.device, *, bf16: bool) -> None:
        self.distiller, self.device, self.bf16 = distiller.train(), device, bf16
        self.optimizer = torch.optim.AdamW(
            parameter_groups(distiller, 0.01), lr=2e-4, betas=(0.9, 0.98), eps=1e-6, fused=True
        )
        self.hear(waveforms)

    def hear(self, waveforms: Sequence[Tensor]) -> None:
        """Take these from now on."""
        self.batch = batch_of(waveforms, self.device)

    def __call__(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.distiller(self.batch.to(self.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.distiller.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def their_step(ensemble: Ensemble, count: int, waveforms: Sequence[Tensor], *, teachers_train: bool) -> RecipeStep:
    """s3prl's step with the first ``count`` teachers."""
    return RecipeStep(ensemble.recipe(count), waveforms, teachers_train=teachers_train)


def our_step(ensemble: Ensemble, count: int, waveforms: Sequence[Tensor], *, bf16: bool | None = None) -> OurStep:
    """Ours; ``bf16`` None: on a GPU."""
    bf16 = ensemble.device.type == "cuda" if bf16 is None else bf16
    return OurStep(ensemble.distiller(count), waveforms, ensemble.device, bf16=bf16)


def our_cached_step(ensemble: Ensemble, count: int, waveforms: Sequence[Tensor]) -> OurStep:
    """Ours with targets that were computed before."""
    step = our_step(ensemble, count, waveforms)
    step.batch = with_targets(step.distiller, step.batch, ensemble.device)
    return step
