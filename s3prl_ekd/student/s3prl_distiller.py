"""s3prl's distiller checkpoints (DistilHuBERT as released by s3prl) as students: its configuration in our words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.weights.sizes import CONV_LAYERS, conv_layers

# s3prl's key -> ours (s3prl's defaults are in its upstream/distiller/model.py)
_SIZES: dict[str, tuple[str, Any]] = {
    "conv_pos": ("num_conv_pos_embeddings", 128),
    "conv_pos_groups": ("num_conv_pos_embedding_groups", 16),
    "encoder_layers": ("num_hidden_layers", 1),
    "encoder_embed_dim": ("hidden_size", 768),
    "encoder_ffn_embed_dim": ("intermediate_size", 3072),
    "encoder_attention_heads": ("num_attention_heads", 12),
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "feature_grad_mult": ("feature_grad_scale", 1.0),
}
# The variants that a student can have; no student with others was ever published.
_ONLY: dict[str, Any] = {
    "extractor_mode": "default",
    "layer_norm_first": False,
    "attention_type": "original",
    "activation_fn": "gelu",
}


def student_config(distiller: Mapping[str, Any]) -> StudentConfig:
    """The student that an s3prl ``distiller`` configuration describes.

    Raises:
        UserError: a variant that this package does not have.
    """
    for key, wanted in _ONLY.items():
        if distiller.get(key, wanted) != wanted:
            raise UserError(f"an s3prl distiller with {key}: {distiller[key]!r}; only {wanted!r} can be read")
    layers = conv_layers(distiller.get("extractor_conv_feature_layers", CONV_LAYERS))
    dims, kernels, strides = zip(*layers, strict=True)
    sizes = {ours: distiller.get(theirs, default) for theirs, (ours, default) in _SIZES.items()}
    return StudentConfig.from_mapping({"conv_dim": dims, "conv_kernel": kernels, "conv_stride": strides, **sizes})
