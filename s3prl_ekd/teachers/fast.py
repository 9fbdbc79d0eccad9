"""HuBERT and WavLM teachers, whatever their source, by this package's own encoder: one pass over a mixed batch.

Its features are each utterance's own, so nothing has to run utterance by utterance, and padding is not computed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd.errors import UserError
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import SpeechEncoder, normalize_waveforms
from s3prl_ekd.teachers.base import ModelTeacher, Teacher
from s3prl_ekd.teachers.s3prl_source import normalizes_itself

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # between the two forwards on a second of noise, relative to the hidden states' size
_WAVEFORM_EPSILON = 1e-5  # of the waveform's variance, as fairseq and s3prl


class FastTeacher(Teacher):
    """A teacher whose weights were moved into a :class:`~s3prl_ekd.network.encoder.SpeechEncoder`."""

    def __init__(self, teacher: ModelTeacher, encoder: SpeechEncoder, unused: Mapping[str, Tensor]) -> None:
        """``teacher`` gives name, layers and sizes; ``unused`` are its weights past the last layer needed."""
        vars(self).update(vars(teacher))
        self.module = encoder
        self._normalize = teacher._normalize or normalizes_itself(teacher.module)
        self._computed = len(encoder.encoder.layers)
        self._unused = dict(unused)

    def hidden_states(self, waveforms: Tensor, lengths: Tensor, *, padded: bool = False) -> tuple[list[Tensor], Tensor]:
        lengths = lengths.cpu()
        self.module.eval()  # whoever called .train() on it meanwhile
        with torch.no_grad():
            waveforms = waveforms.to(self._device, torch.float32, non_blocking=True)
            if self._normalize:
                waveforms = normalize_waveforms(waveforms, lengths, _WAVEFORM_EPSILON)
            output = self.module.encode(waveforms, lengths, depth=max(self.layers), padded=padded)
            states = [output.packing.unpack(output.states[layer].float()) for layer in self.layers]
        return states, self.frame_lengths(lengths)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        return self.module.frame_lengths(lengths)

    def encoder_state(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in (self.module.state_dict() | self._unused).items()}


def accelerate(teacher: ModelTeacher) -> Teacher:
    """The same teacher by our own encoder if that can give the same hidden states, else as it is.

    Tried on a second of noise; a model that only looks like a HuBERT keeps its own forward.
    """
    config = layout(teacher.module, teacher.num_hidden_layers)
    if config is None:
        return teacher
    try:
        state = teacher.encoder_state()
        encoder = SpeechEncoder(config)
        encoder.encoder.layers = encoder.encoder.layers[: max(1, *teacher.layers)]
        own = encoder.state_dict()
        unused = {name: tensor for name, tensor in state.items() if name not in own}
        encoder.load_state_dict({name: state[name] for name in own})
    except (UserError, KeyError, RuntimeError) as error:
        logger.info("teacher %s keeps its own forward: %s", teacher.name, " ".join(str(error).split())[:200])
        return teacher
    fast = FastTeacher(teacher, encoder.eval().requires_grad_(False), unused)
    noise = 0.1 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([16000])
    for ours, theirs in zip(
        fast.hidden_states(noise, lengths)[0], teacher.hidden_states(noise, lengths)[0], strict=True
    ):
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        if not difference < _TOLERANCE:
            logger.warning("teacher %s keeps its own forward: ours differs by %.1e", teacher.name, float(difference))
            return teacher
    return fast


def layout(module: nn.Module, num_hidden_layers: int) -> EncoderConfig | None:
    """Sizes and variants of a loaded model, or None if it is not of the HuBERT family."""
    for read in (_transformers_layout, _s3prl_layout):
        found = read(module)
        if found is not None:
            return EncoderConfig(**found, num_hidden_layers=num_hidden_layers)
    return None


_TRANSFORMERS_KINDS = ("hubert", "wavlm", "wav2vec2")
_TRANSFORMERS_SIZES = (
    "conv_dim", "conv_kernel", "conv_stride", "hidden_size", "num_attention_heads", "intermediate_size",
    "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "layer_norm_eps", "conv_bias", "do_stable_layer_norm",
)  # fmt: skip


def _transformers_layout(module: nn.Module) -> dict[str, Any] | None:
    config = getattr(module, "config", None)
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


def _s3prl_layout(module: nn.Module) -> dict[str, Any] | None:
    """Read off the modules, since s3prl's experts keep their configurations in different places."""
    model = getattr(module, "model", None)
    if type(model).__name__ not in ("HubertModel", "WavLM", "Wav2Vec2Model"):
        return None
    convs = [
        next(m for m in layer.modules() if isinstance(m, nn.Conv1d)) for layer in model.feature_extractor.conv_layers
    ]
    position, first = model.encoder.pos_conv[0], model.encoder.layers[0]
    buckets = getattr(first.self_attn, "num_buckets", 0) if type(model).__name__ == "WavLM" else 0
    norms = [any(isinstance(m, nn.LayerNorm) for m in layer.modules()) for layer in model.feature_extractor.conv_layers]
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
        "do_stable_layer_norm": bool(model.encoder.layer_norm_first),
        "num_buckets": buckets,
        "max_bucket_distance": getattr(first.self_attn, "max_distance", 0) if buckets else 0,
    }
