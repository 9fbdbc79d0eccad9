"""The student network: DistilHuBERT's architecture (arXiv 2110.01900) with sizes from the configuration.

Its state dict has transformers' HubertModel names, so a student folder opens with ``AutoModel.from_pretrained``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s3prl_ekd.config import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.conv import ConvStack
from s3prl_ekd.student.encoder import Encoder
from s3prl_ekd.student.frames import conv_frames, length_mask, receptive_field

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentOutput:
    """What a forward pass gives.

    Attributes:
        hidden_states: ``num_hidden_layers + 1`` tensors (B, F, D): the projected features (before the position
            convolution, as DistilHuBERT counts), then each layer's output. Frames past an utterance's own are not
            defined.
        frame_lengths: (B,) real frames of each utterance, on the CPU.
    """

    hidden_states: tuple[Tensor, ...]
    frame_lengths: Tensor


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


class FeatureProjection(nn.Module):
    """Conv channels to the transformer's width."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


def normalize_waveforms(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero mean and unit variance over each utterance's own samples, as transformers' Wav2Vec2FeatureExtractor.

    Args:
        waveforms: (B, S), zero-padded; stays zero past the end.
        lengths: (B,) samples; None: all.
    """
    if lengths is None:
        lengths = torch.full((waveforms.shape[0],), waveforms.shape[1])
    mask = length_mask(lengths.to(waveforms.device), waveforms.shape[1])
    count = mask.sum(dim=1, keepdim=True)
    centred = (waveforms - (waveforms * mask).sum(dim=1, keepdim=True) / count) * mask
    return centred * torch.rsqrt(centred.square().sum(dim=1, keepdim=True) / count + 1e-7)


class Student(nn.Module):
    """Waveforms to hidden states. In eval mode an utterance's frames do not depend on its batch mates."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = ConvStack(config.conv_dim, config.conv_kernel, config.conv_stride)
        self.feature_projection = FeatureProjection(config)
        self.encoder = Encoder(config)

    @property
    def min_samples(self) -> int:
        """The shortest input that yields a frame (400 samples for HuBERT's conv stack)."""
        return receptive_field(self.config.conv_kernel, self.config.conv_stride)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Samples to frames, any integer shape."""
        return conv_frames(lengths, self.config.conv_kernel, self.config.conv_stride)

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, *, padded_statistics: bool = False
    ) -> StudentOutput:
        """Run the student.

        Args:
            waveforms: (B, S) at 16 kHz, zero-padded.
            lengths: (B,) samples of each utterance, best on the CPU; None: all are S long.
            padded_statistics: let the first layer's GroupNorm see the padding, as s3prl's distiller does.

        Raises:
            ValueError: an utterance is shorter than one frame's receptive field (:attr:`min_samples`).
        """
        samples = torch.full((waveforms.shape[0],), waveforms.shape[1]) if lengths is None else lengths.cpu()
        frame_lengths = self.frame_lengths(samples)
        if int(samples.min()) < self.min_samples:
            raise ValueError(f"an utterance of {int(samples.min())} samples; the student needs {self.min_samples}")
        if bool((samples == waveforms.shape[1]).all()):
            lengths = None
        if self.config.normalize_waveform:
            waveforms = normalize_waveforms(waveforms, lengths)

        features = self.feature_extractor(waveforms, None if padded_statistics else lengths)  # (B, F, C)
        if self.config.feature_grad_scale != 1.0 and features.requires_grad:
            features = _ScaleGradient.apply(features, self.config.feature_grad_scale)
        projected = self.feature_projection(features)  # (B, F, D)
        frame_mask = None
        if lengths is not None:
            frame_mask = length_mask(frame_lengths.to(projected.device), projected.shape[1])
        return StudentOutput((projected, *self.encoder(projected, frame_mask)), frame_lengths)

    def initialize_from(self, state: Mapping[str, Tensor], teacher: str) -> list[str]:
        """Copy conv stack, feature projection, position convolution and the first layers of a teacher.

        As s3prl's distiller does, the encoder's LayerNorm keeps its own initialisation.

        Args:
            state: the teacher's weights under transformers' HubertModel (or WavLMModel) names.
            teacher: its name, for messages.

        Returns:
            Names in ``state`` that the student has no place for (a WavLM's position bias, a feature-projection
            LayerNorm, further layers), one per line of the log.

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
        unused = sorted(set(state) - set(own))
        logger.info(
            "student initialised from %s: %d tensors copied; left over: %s",
            teacher, len(own), ", ".join(_summary(unused)) or "nothing",
        )  # fmt: skip
        return unused


def _summary(names: list[str]) -> list[str]:
    """Modules of these parameters, layer numbers folded: ``encoder.layers.*.attention.gru_rel_pos_linear``."""
    folded = (".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names)
    return sorted({name.removesuffix(".weight").removesuffix(".bias") for name in folded})
