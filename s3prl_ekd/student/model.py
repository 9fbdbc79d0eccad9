"""The student network: a front end and an encoder, DistilHuBERT's (arXiv 2110.01900) unless the recipe says otherwise.

Its state dict has transformers' HubertModel names, so a student folder opens with ``AutoModel.from_pretrained``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.network.bypass import in_graph
from s3prl_ekd.network.encoder import SpeechEncoder, normalize_waveforms
from s3prl_ekd.network.frames import HiddenStates, Packing, whole_lengths
from s3prl_ekd.student.kinds import student_kind
from s3prl_ekd.student.waveforms import as_batch

logger = logging.getLogger(__name__)


class PaddedOutput(NamedTuple):
    """What a forward pass gives under torch.compile, torch.export, torch.jit.trace and export to ONNX: tensors only.

    Attributes:
        hidden_states: as :attr:`HiddenStates.hidden_states`, but F is what S samples give, however long the longest
            utterance is.
        frame_lengths: (B,) real frames of each utterance, on the waveforms' device.
    """

    hidden_states: tuple[Tensor, ...]
    frame_lengths: Tensor

    @property
    def packing(self) -> Packing:
        """As :attr:`HiddenStates.packing`; outside of the graph, since it looks at the lengths."""
        states = self.hidden_states[0]
        return Packing(self.frame_lengths.cpu(), states.device, states.shape[1])

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """As :attr:`HiddenStates.rows`, outside of the graph."""
        return tuple(self.packing.pack(states) for states in self.hidden_states)


# Lets torch.export.save write a program that returns one; torch has no public function for it.
if hasattr(pytree, "_register_namedtuple"):
    pytree._register_namedtuple(PaddedOutput, serialized_type_name=f"{__name__}.PaddedOutput")


class Student(SpeechEncoder):
    """Waveforms to hidden states. In eval mode an utterance's frames do not depend on its batch mates.

    There are ``num_hidden_layers + 1`` of them: the projected features (before the position convolution, as
    DistilHuBERT counts), then each layer's output.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(*student_kind(config).parts(config))
        self.config = config

    def forward(
        self, waveforms: Any, lengths: Tensor | None = None, *, padded: bool = False, check: bool = True
    ) -> HiddenStates | PaddedOutput:
        """Run the student, in the type and on the device of its parameters (and of autocast).

        Args:
            waveforms: (B, S) or (B, 1, S) at 16 kHz, zero-padded, a tensor or an array; or a list of waveforms (S_b,).
                Floats between -1 and 1, or integer PCM, which is divided by its own full scale.
            lengths: (B,) samples of each utterance, best on the CPU; None: all are S long, or as in the list.
            padded: compute padding too, as s3prl's distiller does; the rows are then B times F.
            check: look at the input first. A training loop whose batches are floats (B, S) with lengths that fit need
                not, and then a waveform that is not finite is no error here.

        Returns:
            :class:`HiddenStates`, or :class:`PaddedOutput` where operations are recorded.

        Raises:
            UserError: input of another shape or type, lengths that do not fit, NaN or infinity (looked for on the CPU
                only, where it waits for nothing).
            ValueError: an utterance is shorter than one frame's receptive field (:attr:`min_samples`).
        """
        if check:
            waveforms, lengths = as_batch(waveforms, lengths, self.like)
        if lengths is not None:
            lengths = lengths.to(waveforms.device) if in_graph() else lengths.cpu()
        if self.config.normalize_waveform:
            whole = whole_lengths(waveforms) if lengths is None else lengths
            waveforms = normalize_waveforms(waveforms, whole, self.config.normalization_eps)
        output = self.encode(waveforms, lengths, padded=padded, feature_grad_scale=self.config.feature_grad_scale)
        rows = (output.projected, *output.states[1:])
        if isinstance(output.packing, Packing):
            return HiddenStates(rows, output.packing, output.states[0])
        return PaddedOutput(tuple(output.packing.unpack(state) for state in rows), output.packing.frames)

    def initialize_from(self, state: Mapping[str, Tensor], teacher: str) -> None:
        """Copy conv stack, feature projection, position convolution and the first layers of a teacher.

        As s3prl's distiller does, the encoder's LayerNorm keeps its own initialisation. What the student has no place
        for (a WavLM's position bias, a feature-projection LayerNorm, further layers) is told in the log.

        Args:
            state: the teacher's weights under transformers' HubertModel (or WavLMModel) names.
            teacher: its name, for messages.

        Raises:
            UserError: a tensor is missing or of another shape.
        """
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("encoder.layer_norm")}
        for name, tensor in own.items():
            if name not in state:
                raise UserError(
                    f"student.initialize_from: {teacher!r} has no {name}; use a HuBERT-like teacher,"
                    " fewer student layers, or initialize_from: null"
                )
            if state[name].shape != tensor.shape:
                raise UserError(
                    f"student.initialize_from: {name} is {tuple(state[name].shape)} in {teacher!r} but"
                    f" {tuple(tensor.shape)} in the student; give the student the teacher's sizes or set"
                    " initialize_from: null"
                )
        self.load_state_dict({name: state[name] for name in own}, strict=False)
        logger.info(
            "student initialised from %s: %d tensors copied; left over: %s",
            teacher, len(own), ", ".join(_summary(set(state) - set(own))) or "nothing",
        )  # fmt: skip


def _summary(names: Iterable[str]) -> list[str]:
    """Modules of these parameters, layer numbers folded: ``encoder.layers.*.attention.gru_rel_pos_linear``."""
    folded = (".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names)
    return sorted({name.removesuffix(".weight").removesuffix(".bias") for name in folded})
