"""The ``UpstreamPretrainExpert`` that s3prl's stock ``run_pretrain.py`` drives: a thin adapter of the Distiller.

The runner moves it to the device, optimizes and clips ``.model``, and calls the methods below by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd.audio.batch import Batch
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data import PretrainDataConfig, PretrainDataset, PretrainLoader
from s3prl_ekd.student.checkpoint import ARCHITECTURE_KEY, RECIPE_KEY
from s3prl_ekd.teachers import load_teachers
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY, kind_of

# The runner calls its TensorBoard writer `logger`, and this module `pretrain.ekd_student.pretrain_expert`.
log = logging.getLogger("s3prl_ekd.pretrain")

_HOPELESS = 20  # steps in a row without a finite loss

Records = dict[str, list[Any]]  # s3prl's defaultdict(list), emptied after each log


class UpstreamPretrainExpert(nn.Module):
    """Student, heads and teachers behind s3prl's interface.

    Attributes:
        device: where the runner computes.
        model: the Distiller. Teachers are none of its submodules, so that the runner neither optimizes nor saves them
            nor switches them to train mode.
    """

    def __init__(
        self,
        datarc: Mapping[str, Any],
        upstream_config: str | Mapping[str, Any],
        device: str = "cuda",
        multi_gpu: bool = False,
        **kwargs: Any,
    ) -> None:
        """Read recipe and data, load teachers, build the student.

        Args:
            datarc: ``pretrain_expert.datarc`` of the runner's YAML, see
                :class:`~s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data.PretrainDataConfig`.
            upstream_config: path of a config_model.yaml, or on resume the mapping saved by :meth:`add_state_to_save`.
            device: a torch device.
            multi_gpu: must be False.

        Raises:
            UserError: something in recipe, data or teachers is wrong.
        """
        super().__init__()
        if multi_gpu:
            raise UserError(
                "--multi_gpu is not supported here (DataParallel would copy the student at every step);"
                " train on several GPUs with 's3prl-ekd distill' under torchrun"
            )
        self.device = device
        self.config = (
            DistillConfig.from_mapping(upstream_config, "Upstream_Config")
            if isinstance(upstream_config, Mapping)
            else DistillConfig.from_yaml(upstream_config)
        )
        for teacher in self.config.teachers:
            teacher.require_calibrated()
        data = PretrainDataConfig.from_mapping(datarc, "pretrain_expert.datarc")
        self.dataset = PretrainDataset(data, self.config.distortion)  # before the teachers: its mistakes show at once
        teachers = [teacher.to(device) for teacher in load_teachers(self.config)]
        self.model = Distiller(self.config, teachers)
        self.position = 0
        self._since_update: list[tuple[int, Tensor, tuple[str, ...]]] = []
        self._not_finite = 0  # updates in a row whose loss is not finite
        self._finite = 0  # updates so far whose loss is finite
        trained = sum(parameter.numel() for parameter in self.model.parameters())
        log.info("training %.1f M parameters; teachers: %s", trained / 1e6, ", ".join(t.name for t in teachers))

    def load_model(self, all_states: Mapping[str, Any]) -> None:
        """Continue from the runner's checkpoint: its weights, and its position in the data.

        The runner saves ``Step`` one short: it repeats the last step, and so does the data.

        Raises:
            UserError: the checkpoint is of another kind (said which).
        """
        if CHECKPOINT_KEY not in all_states:
            raise UserError(f"cannot resume: the checkpoint holds no ekd_student, it is {kind_of(all_states)}")
        self.model.load_state_dict(all_states[CHECKPOINT_KEY])
        accumulation = all_states["Config"]["runner"]["gradient_accumulate_steps"]
        self.position = all_states["Step"] * accumulation
        self._finite = all_states["Step"]

    def add_state_to_save(self, all_states: dict[str, Any]) -> dict[str, Any]:
        """Add recipe and sizes as plain values, and the weights of student and heads, to the runner's checkpoint.

        Raises:
            UserError: no update has learnt anything so far.
        """
        if self._not_finite and not self._finite:
            raise UserError(
                f"no step has learnt anything, the loss was not finite in all {self._not_finite}; no checkpoint is"
                " written. Look at the recordings; lower optimizer.lr, or turn runner.fp16 off"
            )
        all_states[RECIPE_KEY] = self.config.to_mapping()
        all_states[ARCHITECTURE_KEY] = self.model.student.config.to_mapping()
        all_states[CHECKPOINT_KEY] = self.model.state_dict()
        return all_states

    def get_train_dataloader(self) -> PretrainLoader:
        """Batches; ``len(loader.dataset)`` is their number per epoch."""
        return PretrainLoader(self.dataset, self.position)

    def forward(
        self,
        data: Batch,
        records: Records,
        global_step: int = 0,
        log_step: int = 1000,
        **kwargs: Any,
    ) -> tuple[Tensor, Records]:
        """The loss of one batch; its metrics are appended to ``records`` without waiting for the device."""
        output = self.model(data.to(self.device), details=global_step % log_step == 0)
        for name, value in output.metrics.items():
            records[name].append(value)
        self._since_update.append((global_step, output.metrics["loss"], data.utterances))
        return output.loss, records

    def on_before_zero_grad(self) -> None:
        """After each update, when the runner has waited for the device anyway: report a loss that is not finite.

        The runner itself skips an update whose gradient is NaN.

        Raises:
            UserError: no loss has been finite for many updates.
        """
        broken = [(step, names) for step, loss, names in self._since_update if not torch.isfinite(loss)]
        self._since_update.clear()
        self._not_finite = self._not_finite + 1 if broken else 0
        self._finite += not broken
        for step, names in broken:
            log.error("the loss is not finite at step %d; utterances: %s", step, ", ".join(names))
        if self._not_finite >= _HOPELESS:
            raise UserError(
                f"the loss has not been finite for {_HOPELESS} steps; lower optimizer.lr, turn runner.fp16 off or"
                " layer_norm_targets on, and resume from a checkpoint before it"
            )

    def log_records(self, records: Records, logger: Any, prefix: str, global_step: int, **kwargs: Any) -> None:
        """Write the means since the last log to TensorBoard, and a line to the log.

        ``mean_loss`` is over all batches since then, the rest (``l1``, ``cosine``, ``magnitude``, each by teacher and
        layer) over those of the step that is logged.
        """
        if not records:
            return
        names = ["mean_loss" if name == "loss" else name for name in records]  # `loss` is the runner's, of one step
        means = torch.stack([torch.stack(values).float().mean() for values in records.values()]).tolist()
        for name, mean in zip(names, means, strict=True):
            logger.add_scalar(f"{prefix}{name}", mean, global_step=global_step)
        line = ", ".join(f"{name} {mean:.3f}" for name, mean in sorted(zip(names, means, strict=True)))
        log.info("step %d: %s", global_step, line)
