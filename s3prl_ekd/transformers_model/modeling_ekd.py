"""HuBERT and WavLM whose layers differ in their number of attention heads and in their feed-forward width.

transformers' own models with smaller parts put in place, for speech encoders that were pruned. This file is in the
folder of each such model, and needs nothing but torch and transformers (5.0 or newer):
``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``. Where the package s3prl_ekd has been imported, its copy
of this file is used, and nothing has to be trusted.

Shapes: B utterances, F frames, D features, H heads of the model before pruning, h heads of a layer, W width of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    WavLMConfig,
    WavLMForCTC,
    WavLMForSequenceClassification,
    WavLMModel,
)
from transformers.models.hubert.modeling_hubert import HubertAttention
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

# How transformers names what a class is for; the name of a class ends in how its loss is found.
AUTO_CLASSES = {
    "Config": "AutoConfig",
    "Model": "AutoModel",
    "ForCTC": "AutoModelForCTC",
    "ForSequenceClassification": "AutoModelForAudioClassification",
}


# Until then a HubertAttention gave a third value, which was not used.
_THIRD_VALUE = (None,) if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 16) else ()


def _auto_map(family: str) -> dict[str, str]:
    """For ``config.json``: in which file, this one, transformers finds the classes of a family."""
    return {auto: f"{__name__.rpartition('.')[2]}.{family}{end}" for end, auto in AUTO_CLASSES.items()}


class EkdHubertConfig(HubertConfig):
    """A HuBERT's, and the sizes of each layer.

    Args:
        layer_heads: attention heads of each layer, 0 allowed; None: ``num_attention_heads`` in all.
        layer_intermediate_sizes: inner width of each feed-forward block, 0 allowed; None: ``intermediate_size`` in all.
        head_dim: width of a head; None: ``hidden_size / num_attention_heads``.
        feature_scale: whether each channel of the conv stack is multiplied by a factor before the feature projection.
        kwargs: as HubertConfig's.
    """

    model_type = "ekd_hubert"

    def __init__(
        self,
        layer_heads: Sequence[int] | None = None,
        layer_intermediate_sizes: Sequence[int] | None = None,
        head_dim: int | None = None,
        feature_scale: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"auto_map": _auto_map("EkdHubert"), **kwargs})
        self.feature_scale = feature_scale
        _set_sizes(self, layer_heads, layer_intermediate_sizes, head_dim)


class EkdWavLMConfig(WavLMConfig):
    """A WavLM's, and the sizes of each layer; ``num_attention_heads`` is H, the heads before pruning.

    Args:
        layer_heads, layer_intermediate_sizes, head_dim, feature_scale: see :class:`EkdHubertConfig`.
        remaining_heads: which of the H heads each layer has kept; None: the first ``layer_heads``.
        kwargs: as WavLMConfig's.
    """

    model_type = "ekd_wavlm"

    def __init__(
        self,
        layer_heads: Sequence[int] | None = None,
        layer_intermediate_sizes: Sequence[int] | None = None,
        head_dim: int | None = None,
        feature_scale: bool = False,
        remaining_heads: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"auto_map": _auto_map("EkdWavLM"), **kwargs})
        self.feature_scale = feature_scale
        _set_sizes(self, layer_heads, layer_intermediate_sizes, head_dim)
        if remaining_heads is None:
            remaining_heads = [range(heads) for heads in self.layer_heads]
        self.remaining_heads = [list(heads) for heads in remaining_heads]
        if [len(heads) for heads in self.remaining_heads] != self.layer_heads:
            raise ValueError(f"remaining_heads {self.remaining_heads} do not fit layer_heads {self.layer_heads}")


def _set_sizes(config: Any, heads: Sequence[int] | None, inner: Sequence[int] | None, head_dim: int | None) -> None:
    layers = config.num_hidden_layers
    config.layer_heads = [config.num_attention_heads] * layers if heads is None else list(heads)
    config.layer_intermediate_sizes = [config.intermediate_size] * layers if inner is None else list(inner)
    config.head_dim = config.hidden_size // config.num_attention_heads if head_dim is None else head_dim
    for name in ("layer_heads", "layer_intermediate_sizes"):
        if len(getattr(config, name)) != layers:
            raise ValueError(f"{name} {getattr(config, name)} has no entry for each of {layers} layers")


def _resize_attention(attention: Any, config: Any, heads: int) -> None:
    size, width = config.hidden_size, heads * config.head_dim
    attention.num_heads, attention.head_dim = heads, config.head_dim
    attention.scaling = config.head_dim**-0.5
    attention.q_proj, attention.k_proj, attention.v_proj = (_linear(size, width) for _ in range(3))
    attention.out_proj = _linear(width, size)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    with warnings.catch_warnings():  # torch's, where there is nothing to initialise
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(inputs, outputs)


def _resize(model: Any, attention: Any) -> None:
    """Put in place what the configuration has otherwise than a stock model.

    ``attention`` makes the attention of a layer, of the configuration and the layer's number.
    """
    config = model.config
    for index, layer in enumerate(model.encoder.layers):
        inner = config.layer_intermediate_sizes[index]
        layer.attention = attention(config, index)
        layer.feed_forward.intermediate_dense = _linear(config.hidden_size, inner)
        layer.feed_forward.output_dense = _linear(inner, config.hidden_size)
    if config.feature_scale:
        model.feature_projection.register_buffer("scale", torch.ones(config.conv_dim[-1]))
        model.feature_projection.register_forward_pre_hook(_scale_channels)
    model.post_init()  # the new parts' initial weights


def _scale_channels(projection: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """What a feature projection gets, times the factors that DPHuBERT (arXiv 2305.17651) has left of its gates."""
    return (inputs[0] * projection.scale,)


class EkdHubertAttention(HubertAttention):
    """HuBERT's, which takes the number of heads from the width of its projections."""

    def __init__(self, config: EkdHubertConfig, layer: int) -> None:
        super().__init__(config.hidden_size, 1, config.attention_dropout, config=config)
        _resize_attention(self, config, config.layer_heads[layer])

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.num_heads > 0:
            return super().forward(hidden_states, *args, **kwargs)
        # The bias alone is left. Not by attention functions: what those for GPUs make of no heads is nowhere promised.
        batch, frames, _ = hidden_states.shape
        nothing = self.q_proj(hidden_states) + self.k_proj(hidden_states) + self.v_proj(hidden_states)  # (B, F, 0)
        assert self.config is not None  # only so typed in transformers
        eager = self.config._attn_implementation == "eager"  # other implementations give weights of no layer
        weights = hidden_states.new_zeros(batch, 0, frames, frames) if eager else None
        return self.out_proj(nothing), weights, *_THIRD_VALUE


class EkdWavLMAttention(WavLMAttention):
    """WavLM's gated relative position bias (arXiv 2110.13900, section 3.1), for the heads that have remained.

    The gate of head i reads slice i of the H slices of the layer's input, and the embedding of relative positions,
    which the first layer owns for all, has a column for each of the H heads.
    """

    def __init__(self, config: EkdWavLMConfig, layer: int) -> None:
        super().__init__(
            config.hidden_size,
            config.num_attention_heads,
            config.attention_dropout,
            config.num_buckets,
            config.max_bucket_distance,
            has_relative_position_bias=layer == 0,
        )
        self.config = config
        self.remaining_heads = config.remaining_heads[layer]
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, len(self.remaining_heads), 1, 1))
        _resize_attention(self, config, len(self.remaining_heads))

    def forward(  # type: ignore[override] # transformers has the third value wrong, and the rest in versions
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """hidden_states (B, F, D) to (B, F, D), attention weights (B, h, F, F), and the bias (H, F, F) of all heads.

        Args:
            attention_mask: (B, F), 1 where a frame may be attended to; None: everywhere.
            position_bias: (H, F, F) from the first layer; None: this is the first.
            args: what transformers passes along and WavLM does not use.
            kwargs: the same, and ``output_attentions``: whether weights are given also where they are not at hand, as a
                stock WavLM always gives them.
        """
        if position_bias is None:
            frames = hidden_states.shape[1]
            position_bias = self.compute_bias(frames, frames)
        q, k, v = (
            projection(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, h, F, W)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = (self._gate(hidden_states) * position_bias[self.remaining_heads]).to(q.dtype)
        if attention_mask is not None:
            mask = mask.masked_fill(attention_mask.ne(1)[:, None, None, :], float("-inf"))
        dropout = self.dropout if self.training else 0.0
        weights = None
        wanted = kwargs.get("output_attentions") or self.config.output_attentions
        if wanted or self.config._attn_implementation == "eager" or self.num_heads == 0:  # see EkdHubertAttention
            weights = (q @ k.transpose(2, 3) * self.scaling + mask).softmax(-1)
            attended = F.dropout(weights, dropout) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), weights, position_bias

    def _gate(self, hidden_states: Tensor) -> Tensor:
        """What the position bias of each query is multiplied by, (B, h, F, 1)."""
        slices = hidden_states.unflatten(-1, (self.config.num_attention_heads, -1))[:, :, self.remaining_heads]
        sums = self.gru_rel_pos_linear(slices.transpose(1, 2)).unflatten(-1, (2, 4)).sum(-1)  # (B, h, F, 2)
        update, reset = sums.sigmoid().chunk(2, dim=-1)
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0


class EkdHubertModel(HubertModel):
    """A HubertModel with layers of different size."""

    config_class = EkdHubertConfig

    def __init__(self, config: EkdHubertConfig) -> None:
        super().__init__(config)
        _resize(self, EkdHubertAttention)


class EkdWavLMModel(WavLMModel):
    """A WavLMModel with layers of different size."""

    config_class = EkdWavLMConfig
    _supports_sdpa = True

    def __init__(self, config: EkdWavLMConfig) -> None:
        super().__init__(config)
        _resize(self, EkdWavLMAttention)


class _OnTop:
    """Puts an encoder of ours below what a class of transformers has on top of its own.

    Attributes:
        encoder_class: makes it, of a configuration.
    """

    encoder_class: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        wanted = config._attn_implementation
        config._attn_implementation = "eager"  # all that the WavLM can do which is made here, and not kept
        stock: Any = super()
        stock.__init__(config, *args, **kwargs)
        config._attn_implementation = wanted
        model: Any = self
        setattr(model, model.base_model_prefix, self.encoder_class(config))
        model.post_init()


class EkdHubertForCTC(_OnTop, HubertForCTC):
    """With a Linear to a vocabulary's characters, and the CTC loss."""

    config_class = EkdHubertConfig
    encoder_class = EkdHubertModel


class EkdHubertForSequenceClassification(_OnTop, HubertForSequenceClassification):
    """With a classifier of utterances."""

    config_class = EkdHubertConfig
    encoder_class = EkdHubertModel


class EkdWavLMForCTC(_OnTop, WavLMForCTC):
    """With a Linear to a vocabulary's characters, and the CTC loss."""

    config_class = EkdWavLMConfig
    encoder_class = EkdWavLMModel
    _supports_sdpa = True


class EkdWavLMForSequenceClassification(_OnTop, WavLMForSequenceClassification):
    """With a classifier of utterances."""

    config_class = EkdWavLMConfig
    encoder_class = EkdWavLMModel
    _supports_sdpa = True


CLASSES = {
    family: {auto: globals()[f"{family}{end}"] for end, auto in AUTO_CLASSES.items()}
    for family in ("EkdHubert", "EkdWavLM")
}
for _family in CLASSES.values():
    for _auto, _class in _family.items():
        _class.register_for_auto_class(_auto)  # save_pretrained puts this file beside what it writes
