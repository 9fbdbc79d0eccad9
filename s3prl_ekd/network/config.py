"""What distinguishes the HuBERT family's encoders from each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes and variants; names as in transformers' HubertConfig and WavLMConfig. See StudentConfig for the sizes."""

    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    conv_bias: bool = False
    """Whether the convolutions have a bias (HuBERT Large: yes)."""
    conv_layer_norm: bool = False
    """LayerNorm after every convolution (Large) instead of GroupNorm after the first (Base)."""
    feat_proj_layer_norm: bool = True
    """LayerNorm before the feature projection; DistilHuBERT-style students have none."""
    do_stable_layer_norm: bool = False
    """Pre-norm layers and a LayerNorm at the end (Large) instead of post-norm layers (Base)."""
    num_buckets: int = 0
    """Buckets of WavLM's gated relative position bias (320); 0: none."""
    max_bucket_distance: int = 800
    """Distance in frames from which on all fall into WavLM's last bucket."""
