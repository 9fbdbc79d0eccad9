"""What distinguishes the HuBERT family's encoders from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from s3prl_ekd.config.base import Config, Depth, Dropout, Range, Size
from s3prl_ekd.config.layer_sizes import Amount, PerLayer, check_layer_sizes


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """Sizes and variants; names as in transformers' HubertConfig and WavLMConfig. See StudentConfig for the sizes."""

    conv_dim: tuple[Size, ...] = (512,) * 7
    conv_kernel: tuple[Size, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[Size, ...] = (5, 2, 2, 2, 2, 2, 2)
    hidden_size: Size = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: PerLayer = 12
    intermediate_size: PerLayer = 3072
    head_dim: Size | None = None
    num_conv_pos_embeddings: Size = 128
    num_conv_pos_embedding_groups: Size = 16
    hidden_dropout: Dropout = 0.0
    attention_dropout: Dropout = 0.0
    activation_dropout: Dropout = 0.0
    layer_norm_eps: Annotated[float, Range(more_than=0, at_most=1)] = 1e-5
    conv_bias: bool = False
    """Whether the convolutions have a bias (HuBERT Large: yes)."""
    conv_layer_norm: bool = False
    """LayerNorm after every convolution (Large) instead of GroupNorm after the first (Base)."""
    feat_proj_layer_norm: bool = True
    """LayerNorm before the feature projection; DistilHuBERT-style students have none."""
    feature_scale: bool = False
    """A fixed factor for each channel of the conv stack, before that LayerNorm (files of DPHuBERT have them)."""
    do_stable_layer_norm: bool = False
    """Pre-norm layers and a LayerNorm at the end (Large) instead of post-norm layers (Base)."""
    num_buckets: Annotated[int, Range(at_least=0, at_most=65_536)] = 0
    """Buckets of WavLM's gated relative position bias (320); 0: none."""
    max_bucket_distance: Annotated[int, Range(at_least=0, at_most=10**9)] = 800
    """Distance in frames from which on all fall into WavLM's last bucket."""
    remaining_heads: tuple[tuple[Amount, ...], ...] | None = None
    """Of a pruned WavLM: which of the original heads each layer has kept; None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer_sizes(self)


@dataclass(frozen=True, kw_only=True)
class Architecture(Config):
    """All that a network like this one needs beside weights."""

    encoder: EncoderConfig
    """Sizes and variants."""
    normalize_waveform: bool = False
    """Whether each utterance is brought to zero mean and unit variance first."""
    normalization_eps: Annotated[float, Range(more_than=0, at_most=1)] = 1e-7
    """Added to the waveform's variance then."""

    @classmethod
    def of(cls, encoder: EncoderConfig, waveform_epsilon: float | None) -> Self:
        """``waveform_epsilon`` is added to the waveform's variance; None: it is not normalised."""
        if waveform_epsilon is None:
            return cls(encoder=encoder)
        return cls(encoder=encoder, normalize_waveform=True, normalization_eps=waveform_epsilon)
