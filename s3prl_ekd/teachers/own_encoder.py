"""HuBERT and WavLM teachers of all sources by this package's own encoder: one pass over utterances of any lengths.

Its features are each utterance's own, so nothing has to run utterance by utterance, and padding is not computed.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.errors import one_line
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import SpeechEncoder, hubert_encoder, normalize_waveforms
from s3prl_ekd.network.frames import HiddenStates, Packing
from s3prl_ekd.teachers.base import WAVEFORM_EPSILON, ModelTeacher, Teacher
from s3prl_ekd.teachers.from_s3prl import normalization_epsilon

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
        self._epsilon = WAVEFORM_EPSILON if teacher._normalize else normalization_epsilon(teacher.module)
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


def layout(module: nn.Module, num_hidden_layers: int) -> EncoderConfig | None:
    """Sizes and variants of a loaded model, or None if it is not of the HuBERT family."""
    if isinstance(module, SpeechEncoder):
        return module.encoder.config
    for model in (module, getattr(module, "model", None)):  # as it is, or inside an s3prl expert
        for read in (_transformers_layout, _fairseq_layout):
            found = read(model)
            if found is not None:
                return EncoderConfig(**found, num_hidden_layers=num_hidden_layers)
    return None


_TRANSFORMERS_KINDS = ("hubert", "wavlm", "wav2vec2")
_TRANSFORMERS_SIZES = (
    "conv_dim", "conv_kernel", "conv_stride", "hidden_size", "num_attention_heads", "intermediate_size",
    "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "layer_norm_eps", "conv_bias", "do_stable_layer_norm",
)  # fmt: skip


def _transformers_layout(model: Any) -> dict[str, Any] | None:
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in _TRANSFORMERS_KINDS:
        return None
    if config.hidden_act != "gelu" or config.feat_extract_activation != "gelu":
        return None
    sizes = {name: getattr(config, name) for name in _TRANSFORMERS_SIZES}
    wavlm = config.model_type == "wavlm"
    return {
        **{name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()},
        "conv_layer_norm": config.feat_extract_norm == "layer",
        "feat_proj_layer_norm": getattr(config, "feat_proj_layer_norm", True),
        "num_buckets": config.num_buckets if wavlm else 0,
        "max_bucket_distance": config.max_bucket_distance if wavlm else 0,
    }


def _fairseq_layout(model: Any) -> dict[str, Any] | None:
    """Read off the modules, since s3prl's experts keep their configurations in different places."""
    encoder: Any = getattr(model, "encoder", None)
    if not hasattr(encoder, "pos_conv") or not hasattr(encoder, "layer_norm_first"):
        return None
    conv_layers = model.feature_extractor.conv_layers
    convs = [next(m for m in layer.modules() if isinstance(m, nn.Conv1d)) for layer in conv_layers]
    norms = [any(isinstance(m, nn.LayerNorm) for m in layer.modules()) for layer in conv_layers]
    position, first = encoder.pos_conv[0], encoder.layers[0]
    buckets = first.self_attn.num_buckets if hasattr(first.self_attn, "relative_attention_bias") else 0
    return {
        "conv_dim": tuple(conv.out_channels for conv in convs),
        "conv_kernel": tuple(conv.kernel_size[0] for conv in convs),
        "conv_stride": tuple(conv.stride[0] for conv in convs),
        "hidden_size": position.out_channels,
        "num_attention_heads": first.self_attn.num_heads,
        "intermediate_size": first.fc1.out_features,
        "num_conv_pos_embeddings": position.kernel_size[0],
        "num_conv_pos_embedding_groups": position.groups,
        "layer_norm_eps": first.final_layer_norm.eps,
        "conv_bias": convs[0].bias is not None,
        "conv_layer_norm": all(norms),
        "feat_proj_layer_norm": True,
        "do_stable_layer_norm": bool(encoder.layer_norm_first),
        "num_buckets": buckets,
        "max_bucket_distance": first.self_attn.max_distance if buckets else 0,
    }
