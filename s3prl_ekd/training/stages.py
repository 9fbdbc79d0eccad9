"""The stages of a run: parts that follow each other, each a run of its own with the student of the one before.

Where stages meet, nothing is kept but what is on disk: a stage ends with its last checkpoint, of which its student is
made, and the next one starts from these two. So it makes no difference whether one process runs through, or another
goes on there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.folder import load_student
from s3prl_ekd.training.checkpoints import newest_states
from s3prl_ekd.training.run_folder import stage_folders


@dataclass(frozen=True)
class Stage:
    """A part of a run; a run without ``stages`` is one.

    Attributes:
        run: recipe of the whole run.
        config: recipe of this part, as of a run of its own, but for the student's sizes, which are the first stage's.
        student: the folder of the student that it ends with.
        before: the stage whose student it starts with; None: a new one.
    """

    run: RunConfig
    config: RunConfig
    student: Path
    before: Stage | None = None

    @property
    def folder(self) -> Path:
        """Where its recipe, logs and checkpoints are."""
        return Path(self.config.output)

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    def resolved(self) -> RunConfig:
        """The recipe of this part with the student's own sizes; the stage before must be over.

        Raises:
            UserError: there is no student of the stage before.
        """
        if self.before is None:
            return self.config
        return replace(self.config, student=load_student(self.before.student).config)

    def last_checkpoint(self) -> Mapping[str, Any]:
        """Contents of the checkpoint that the stage has ended with.

        Raises:
            UserError: it is damaged, or not there.
        """
        path, states = newest_states(self.checkpoints) or (None, {})
        if path is None or path.name != f"step-{self.config.trainer.max_steps:08d}.ckpt":
            raise UserError(
                f"{self.checkpoints}: the stage's last checkpoint (step {self.config.trainer.max_steps}) is damaged or"
                f" gone, and the next stage goes on from it; delete {self.student}, then --resume trains the last steps"
                " again"
            )
        return states

    def hand_over(self, distiller: Distiller) -> Mapping[str, Any]:
        """Give a new Distiller of the next stage what this one has learnt; returns its last checkpoint's contents.

        Raises:
            UserError: student or checkpoint are damaged or gone.
        """
        states = self.last_checkpoint()
        weights = {
            name.removeprefix("distiller."): tensor
            for name, tensor in states["state_dict"].items()
            if not name.startswith(("distiller.student.", "distiller.gates."))
        }
        weights |= {f"student.{name}": value for name, value in load_student(self.student).state_dict().items()}
        distiller.load_state_dict(weights)
        return states


def stages_of(config: RunConfig) -> list[Stage]:
    """The parts of a run, in their order."""
    folder, stages = Path(config.output), list[Stage]()
    for number in range(len(config.stages)):
        part, last = config.of_stage(number), number == len(config.stages) - 1
        student = (folder if last else Path(part.output)) / "student"
        stages.append(Stage(config, part, student, stages[-1] if stages else None))
    return stages or [Stage(config, config, folder / "student")]


def checkpoints_of_other_stages(config: RunConfig) -> list[Path]:
    """Where a run in the same folder may have checkpoints that has other stages than ``config``, or none."""
    folder, own = Path(config.output), {stage.folder for stage in stages_of(config)}
    return [place / "checkpoints" for place in (folder, *stage_folders(folder)) if place not in own]
