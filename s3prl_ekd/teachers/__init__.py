"""Teachers: frozen speech encoders behind one interface (:class:`~s3prl_ekd.teachers.base.Teacher`)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tqdm import tqdm

from s3prl_ekd.config.parts import keys_with_parts, load_part
from s3prl_ekd.config.recipe import DistillConfig, TeacherConfig
from s3prl_ekd.teachers.base import ModelTeacher, Teacher
from s3prl_ekd.teachers.own_encoder import accelerate

__all__ = ["Teacher", "load_teacher", "load_teachers"]

logger = logging.getLogger(__name__)


def load_teacher(config: TeacherConfig, *, padded: bool = False, initializes: int = 0) -> Teacher:
    """The teacher that an entry of the recipe describes, on the CPU.

    Args:
        config: the entry.
        padded: whether padding is computed, see :attr:`Teacher.padded`.
        initializes: how many of its layers a student starts from, so that their weights are kept.

    Example:
        >>> config = TeacherConfig.from_mapping({"name": "wavlm", "mini": "wavlm", "layers": [2, 4]})
        >>> output = load_teacher(config).hidden_states(torch.zeros(1, 16000), torch.tensor([16000]))
        >>> [tuple(rows.shape) for rows in output.rows], output.frame_lengths.tolist()
        ([(49, 192), (49, 192)], [49])

    Raises:
        UserError: it cannot be had, is no speech encoder of 320 samples a frame, or lacks a layer.
    """
    load: Callable[[TeacherConfig], Teacher] = load_part(keys_with_parts(TeacherConfig)[config.source])
    teacher = load(config)
    teacher.padded = padded
    if isinstance(teacher, ModelTeacher) and not config.own_forward:
        teacher = accelerate(teacher)
    teacher.forget_layers(initializes)
    logger.info("teacher %s", teacher.describe())
    return teacher


def load_teachers(config: DistillConfig) -> list[Teacher]:
    """All of a recipe's teachers, in order; see :func:`load_teacher`."""
    student = config.student
    return [
        load_teacher(
            teacher,
            padded=config.objective.loss_on_padding,
            initializes=student.origin_layers if teacher.name == student.origin else 0,
        )
        for teacher in tqdm(config.teachers, desc="loading teachers", leave=False)
    ]
