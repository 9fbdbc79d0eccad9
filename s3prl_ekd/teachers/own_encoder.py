"""HuBERT and WavLM teachers of all sources by this package's own encoder: one pass over utterances of any lengths.

Its features are each utterance's own, so nothing has to run utterance by utterance, and padding is not computed.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.errors import one_line
from s3prl_ekd.network.config import Architecture
from s3prl_ekd.network.encoder import SpeechEncoder, hubert_encoder, normalize_waveforms
from s3prl_ekd.network.frames import HiddenStates, Packing
from s3prl_ekd.teachers.base import ModelTeacher, Teacher
from s3prl_ekd.teachers.layouts import layout

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # between the two forwards on noise, relative to the hidden states' size
# Samples of the utterances that both forwards are tried on: one alone, and a padded batch in which s3prl's mask of
# padding has a frame more than the convolutions yield.
_ALONE, _PADDED = (16000,), (16321, 9001)


class FastTeacher(Teacher):
    """A teacher whose weights were copied into a :class:`~s3prl_ekd.network.encoder.SpeechEncoder`."""

    module: SpeechEncoder

    def __init__(self, teacher: ModelTeacher, encoder: SpeechEncoder, dropped: dict[str, Tensor]) -> None:
        """``teacher`` gives name, layers and sizes, and is not kept; ``dropped`` are its weights past the last layer
        needed."""
        self.name, self.layers, self.weight = teacher.name, teacher.layers, teacher.weight
        self.source, self.padded = teacher.source, teacher.padded
        self.num_hidden_layers, self.hidden_size = teacher.num_hidden_layers, teacher.hidden_size
        self.module = encoder
        self._device = teacher._device
        self._parameters = teacher._parameters
        self._computed = len(encoder.encoder.layers)
        self._dropped = dropped
        self._epsilon = teacher.waveform_epsilon()
        self._normalize = self._epsilon is not None
        self._masks_chunks = hasattr(getattr(teacher.module, "model", None), "forward_padding_mask")

    def hidden_states(self, waveforms: Tensor, lengths: Tensor) -> HiddenStates:
        lengths = lengths.cpu()
        self.module.eval()  # in case somebody called .train() on it
        with torch.no_grad():
            waveforms = waveforms.to(self._device, torch.float32, non_blocking=True)
            if self._epsilon is not None:
                waveforms = normalize_waveforms(waveforms, lengths, self._epsilon)
            chunks = self.padded and self._masks_chunks
            attended = self._frames_of_chunks(lengths, waveforms.shape[1]) if chunks else None
            output = self.module.encode(
                waveforms, lengths, depth=max(self.layers), padded=self.padded, attended_frames=attended
            )
            assert isinstance(output.packing, Packing)  # no graph is recorded here
            return HiddenStates(tuple(output.states[layer].float() for layer in self.layers), output.packing)

    def _frames_of_chunks(self, lengths: Tensor, samples: int) -> Tensor:
        """Frames (B,) that s3prl's HuBERT and WavLM (``forward_padding_mask``) do not take for padding.

        They cut the batch's samples into as many equal chunks as there are frames, which are a little longer than a
        frame's 320 samples; a frame is padding if all of its chunk is.
        """
        frames = int(self.module.frame_lengths(torch.tensor(samples)))
        chunk = samples // frames
        return torch.div(lengths + chunk - 1, chunk, rounding_mode="floor").clamp(max=frames)

    def encoder_state(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in (self.module.state_dict() | self._dropped).items()}

    def architecture(self) -> Architecture:
        return Architecture.of(self.module.encoder.config, self._epsilon)


def accelerate(teacher: ModelTeacher) -> Teacher:
    """The same teacher by our own encoder if that can give the same hidden states, else as it is.

    Tried on noise; a model that only looks like a HuBERT, or that has anything we do not know, keeps its own forward.
    """
    try:
        fast = _by_own_encoder(teacher)
        if fast is None:
            return teacher
        batches = (_ALONE, _PADDED) if teacher.padded else (_ALONE,)
        difference = max(_difference(fast, teacher, lengths) for lengths in batches)
    except Exception as error:  # foreign code may fail anywhere, and the teacher works without this
        reason = one_line(error, 200)
        logger.info("teacher %s keeps its own forward: %s (%s)", teacher.name, type(error).__name__, reason)
        return teacher
    if not difference < _TOLERANCE:
        logger.warning("teacher %s keeps its own forward: ours differs by %.1e", teacher.name, difference)
        return teacher
    return fast


def _by_own_encoder(teacher: ModelTeacher) -> FastTeacher | None:
    """The teacher's weights in our encoder; None if it is not of the HuBERT family."""
    config = layout(teacher.module, teacher.num_hidden_layers)
    if config is None:
        return None
    state = teacher.encoder_state()
    encoder = hubert_encoder(config)
    encoder.encoder.layers = encoder.encoder.layers[: max(1, *teacher.layers)]
    own = encoder.state_dict()
    dropped = {name: tensor for name, tensor in state.items() if name not in own}
    encoder.load_state_dict({name: state[name] for name in own})
    return FastTeacher(teacher, encoder.eval().requires_grad_(False), dropped)


def _difference(fast: Teacher, teacher: Teacher, samples: tuple[int, ...]) -> float:
    """The largest between the two on noise, relative to the hidden states' largest value; NaN if there is one."""
    generator = torch.Generator().manual_seed(0)
    noise = pad_sequence([0.1 * torch.randn(count, generator=generator) for count in samples], batch_first=True)
    pairs = zip(*(one.hidden_states(noise, torch.tensor(samples)).rows for one in (fast, teacher)), strict=True)
    return float(torch.stack([(ours - theirs).abs().max() / theirs.abs().max() for ours, theirs in pairs]).max())
