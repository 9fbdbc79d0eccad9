"""Our side of the benchmarks, and both sides' models with the same weights out of the same files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peers import KINDS, NAMES, UPSTREAMS, Recipe, RecipeStep, Sizes, distiller_model, load_upstream, write_teacher
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.config import DistillConfig, TeacherConfig
from s3prl_ekd.distiller import Batch, Distiller
from s3prl_ekd.student.keys import from_distiller
from s3prl_ekd.student.s3prl_distiller import student_config
from s3prl_ekd.teachers import load_teacher
from s3prl_ekd.teachers.base import Teacher
from s3prl_ekd.training.optim import parameter_groups


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
            self.configs.append(
                TeacherConfig(name=name, s3prl=UPSTREAMS[kind], ckpt=str(path), layers=sizes.targets)
            )
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
        return self._distiller(self.configs[:count], self.ours[:count])

    def distiller_of_cached(self, count: int, batch: Batch) -> Distiller:
        """The same with targets of ``batch`` that are computed once, kept in half precision."""
        waveforms = batch.clean.to(self.device)
        states = [teacher.hidden_states(waveforms, batch.lengths) for teacher in self.ours[:count]]
        layers = [torch.stack(same).mean(dim=0).half() for same in zip(*(s for s, _ in states), strict=True)]
        config = TeacherConfig(name="cached", transformers="cached", layers=self.sizes.targets)
        return self._distiller([config], [CachedMean(config, layers, states[0][1])])

    def _distiller(self, configs: Sequence[TeacherConfig], teachers: Sequence[Teacher]) -> Distiller:
        settings = {
            "student": student_config(_settings(self.sizes)).to_mapping(),
            "teachers": [config.to_mapping() for config in configs],
            "objective": {"aggregation": "layerwise-average"},
        }
        distiller = Distiller(DistillConfig.from_mapping(settings), teachers)
        load_from_s3prl(distiller, self.student)
        return distiller.to(self.device)


def _settings(sizes: Sizes) -> Mapping[str, object]:
    from peers import distiller_settings

    return distiller_settings(sizes)


def load_from_s3prl(distiller: Distiller, state: Mapping[str, Tensor]) -> None:
    """Give student and heads the weights of s3prl's distiller."""
    ours = from_distiller(state)
    heads = {name.removeprefix("heads."): ours.pop(name) for name in list(ours) if name.startswith("heads.")}
    distiller.student.load_state_dict(ours)
    distiller.heads.load_state_dict(heads)


class CachedMean:
    """Stands in for teachers whose targets were computed before."""

    def __init__(self, config: TeacherConfig, layers: Sequence[Tensor], frames: Tensor) -> None:
        self.name, self.layers, self.weight = config.name, config.layers, config.weight
        self.hidden_size = layers[0].shape[-1]
        self._layers, self._frames = layers, frames

    def hidden_states(
        self, waveforms: Tensor, lengths: Tensor, *, padded: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        return [layer.float() for layer in self._layers], self._frames


def batch_of(waveforms: Sequence[Tensor], device: torch.device) -> Batch:
    """As the data loader gives it: padded, on the CPU, pinned for a GPU."""
    padded = pad_sequence(list(waveforms), batch_first=True)
    if device.type == "cuda":
        padded = padded.pin_memory()
    names = tuple(f"utterance-{row}" for row in range(len(waveforms)))
    return Batch(padded, padded, torch.tensor([len(waveform) for waveform in waveforms]), names)


class OurStep:
    """One step as ``s3prl-ekd distill`` makes it, on a GPU in bf16."""

    def __init__(self, distiller: Distiller, batch: Batch, device: torch.device) -> None:
        self.distiller, self.batch, self.device = distiller.train(), batch, device
        self.optimizer = torch.optim.AdamW(
            parameter_groups(distiller, 0.01), lr=2e-4, betas=(0.9, 0.98), eps=1e-6, fused=True
        )

    def __call__(self) -> None:
        precision = contextlib.nullcontext()
        if self.device.type == "cuda":
            precision = torch.autocast("cuda", torch.bfloat16)
        with precision:
            loss = self.distiller(self.batch.to(self.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.distiller.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def their_step(ensemble: Ensemble, count: int, waveforms: Sequence[Tensor], *, teachers_train: bool) -> RecipeStep:
    """s3prl's step with the first ``count`` teachers."""
    return RecipeStep(ensemble.recipe(count), waveforms, teachers_train=teachers_train)


def our_step(ensemble: Ensemble, count: int, waveforms: Sequence[Tensor]) -> OurStep:
    """Ours."""
    return OurStep(ensemble.distiller(count), batch_of(waveforms, ensemble.device), ensemble.device)


def our_cached_step(ensemble: Ensemble, count: int, waveforms: Sequence[Tensor]) -> OurStep:
    """Ours with cached targets."""
    batch = batch_of(waveforms, ensemble.device)
    return OurStep(ensemble.distiller_of_cached(count, batch), batch, ensemble.device)
