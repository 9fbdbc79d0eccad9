"""Sizes and variants of a loaded HuBERT, WavLM or wav2vec 2.0, of transformers, of s3prl or of this package."""

from __future__ import annotations

from typing import Any

from torch import nn

from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import SpeechEncoder
from s3prl_ekd.transformers_model import MODEL_TYPES


def layout(module: nn.Module, num_hidden_layers: int | None) -> EncoderConfig | None:
    """Sizes and variants of a loaded model, or None if it is not of the HuBERT family."""
    if isinstance(module, SpeechEncoder):
        return module.encoder.config
    assert num_hidden_layers is not None, "a loaded model has layers"
    for model in (module, getattr(module, "model", None)):  # as it is, or inside an s3prl expert
        for read in (_transformers_layout, _fairseq_layout):
            found = read(model)
            if found is not None:
                return EncoderConfig(**found, num_hidden_layers=num_hidden_layers)
    return None


_TRANSFORMERS_KINDS = ("hubert", "wavlm", "wav2vec2", *MODEL_TYPES)
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
    wavlm = config.model_type in ("wavlm", "ekd_wavlm")
    return {
        **{name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()},
        "conv_layer_norm": config.feat_extract_norm == "layer",
        "feat_proj_layer_norm": getattr(config, "feat_proj_layer_norm", True),
        "num_buckets": config.num_buckets if wavlm else 0,
        "max_bucket_distance": config.max_bucket_distance if wavlm else 0,
        **(_sizes_of_layers(config) if config.model_type in MODEL_TYPES else {}),
    }


def _sizes_of_layers(config: Any) -> dict[str, Any]:
    remaining = getattr(config, "remaining_heads", None)
    return {
        "num_attention_heads": tuple(config.layer_heads),
        "intermediate_size": tuple(config.layer_intermediate_sizes),
        "head_dim": config.head_dim,
        "remaining_heads": None if remaining is None else tuple(map(tuple, remaining)),
        "feature_scale": config.feature_scale,
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
