"""Teachers: frozen speech encoders behind one interface (:class:`~s3prl_ekd.teachers.base.Teacher`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from tqdm import tqdm

from s3prl_ekd.config.recipe import TeacherConfig, TeacherSource
from s3prl_ekd.teachers.base import Teacher
from s3prl_ekd.teachers.from_s3prl import load_s3prl_teacher
from s3prl_ekd.teachers.from_transformers import load_mini_teacher, load_transformers_teacher
from s3prl_ekd.teachers.own_encoder import accelerate

__all__ = ["Teacher", "load_teacher", "load_teachers"]

logger = logging.getLogger(__name__)

LOADERS: dict[TeacherSource, Callable[[TeacherConfig], Teacher]] = {
    TeacherSource.S3PRL: load_s3prl_teacher,
    TeacherSource.TRANSFORMERS: load_transformers_teacher,
    TeacherSource.MINI: load_mini_teacher,
}


def load_teacher(config: TeacherConfig, *, padded: bool = False) -> Teacher:
    """The teacher that an entry of the recipe describes, on the CPU.

    Args:
        config: the entry.
        padded: whether it will run on padded batches (``objective.loss_on_padding``); its own code does where ours
            would not give the same there.

    Example:
        >>> config = TeacherConfig.from_mapping({"name": "wavlm", "mini": "wavlm", "layers": [2, 4]})
        >>> states, frames = load_teacher(config).hidden_states(torch.zeros(1, 16000), torch.tensor([16000]))
        >>> [tuple(state.shape) for state in states], frames.tolist()
        ([(1, 49, 192), (1, 49, 192)], [49])

    Raises:
        UserError: it cannot be had, is no speech encoder of 320 samples a frame, or lacks a layer.
    """
    teacher = LOADERS[config.source](config)
    if not config.own_forward:
        teacher = accelerate(teacher, padded=padded)
    logger.info("teacher %s", teacher.describe())
    return teacher


def load_teachers(configs: Iterable[TeacherConfig], *, padded: bool = False) -> list[Teacher]:
    """All of a recipe's teachers, in order; see :func:`load_teacher`."""
    progress = tqdm(list(configs), desc="loading teachers", leave=False)
    return [load_teacher(config, padded=padded) for config in progress]
