"""A student as the teacher of another one: the only place that knows both sides beside the Distiller."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.config.recipe import TeacherConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.folder import load_student
from s3prl_ekd.student.model import Student
from s3prl_ekd.teachers.base import ModelTeacher, truncate


class StudentTeacher(ModelTeacher):
    """Whatever :func:`~s3prl_ekd.student.folder.load_student` reads: a student's folder, or a file of another project.

    Its hidden states count as every teacher's: 0 is the input of the first layer.
    """

    module: Student

    def __init__(self, config: TeacherConfig) -> None:
        """``config``: an entry with ``student:``.

        Raises:
            UserError: it cannot be read as a student.
        """
        try:
            student = load_student(config.origin)
        except UserError as error:
            raise UserError(f"teacher {config.name!r}: {error}") from error
        self._epsilon = student.config.normalization_eps
        stated = config.normalize_waveform
        normalize = student.config.normalize_waveform if stated is None else stated
        super().__init__(config, student, source=f"student {config.origin}", normalize_waveform=normalize, batches=True)

    def _forward(self, waveforms: list[Tensor]) -> Sequence[Tensor]:
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        depth = len(self.module.encoder.layers)
        output = self.module.encode(pad_sequence(waveforms, batch_first=True), lengths, depth=depth, padded=True)
        return [output.packing.unpack(states) for states in output.states]

    def _drop_layers(self, depth: int) -> dict[str, nn.Module]:
        removed = truncate(self.module.encoder, depth, final_norm=self.module.encoder.config.do_stable_layer_norm)
        return {f"encoder.{name}": module for name, module in removed.items()}
