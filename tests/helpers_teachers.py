"""Tiny HuBERT, wav2vec 2.0 and WavLM with random weights: transformers folders, and the checkpoints s3prl loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers_weights import under_names_of
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from s3prl_ekd.teachers import Teacher
from s3prl_ekd.weights import names

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)

SIZES: dict[str, Any] = {
    "conv_dim": (16,) * 7,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
LARGE: dict[str, Any] = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
MODELS = {
    "hubert": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "wavlm": (WavLMConfig, WavLMModel),
}
TABLES = {
    ("hubert", False): names.HUBERT,
    ("hubert", True): names.HUBERT_LARGE,
    ("wav2vec2", False): names.HUBERT,
    ("wav2vec2", True): names.HUBERT_LARGE,
    ("wavlm", False): names.WAVLM,
    ("wavlm", True): names.WAVLM_LARGE,
}


def tiny_model(kind: str, *, large: bool = False, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model whose LayerNorms, biases and gates are random too, so that none can be confused or lost."""
    torch.manual_seed(seed)
    config_class, model_class = MODELS[kind]
    model = model_class(config_class(**SIZES | (LARGE if large else {}) | overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "gru_rel_pos_const" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def s3prl_checkpoint(model: PreTrainedModel, kind: str, path: Path, *, large: bool = False) -> Path:
    """The same weights in the file that s3prl's ``hubert_local``, ``wav2vec2_custom`` or ``wavlm_local`` loads."""
    config = model.config
    weights = under_names_of(TABLES[kind, large], model.state_dict())
    settings = {
        "extractor_mode": "layer_norm" if large else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "layer_norm_first": large,
        "conv_feature_layers": str(list(zip(config.conv_dim, KERNELS, STRIDES, strict=True))),
        "conv_bias": config.conv_bias,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "encoder_layerdrop": 0.05,
    }
    if kind == "wavlm":
        settings |= {
            "relative_position_embedding": True,
            "gru_rel_pos": True,
            "num_buckets": config.num_buckets,
            "max_distance": config.max_bucket_distance,
            "normalize": large,
        }
        checkpoint = {"cfg": settings, "model": weights}
    else:
        size = config.hidden_size
        weights |= {"final_proj.weight": torch.randn(size, size), "final_proj.bias": torch.zeros(size)}
        if kind == "hubert":
            weights["label_embs_concat"] = torch.randn(5, size)
        else:
            weights |= {"project_q.weight": torch.randn(size, config.conv_dim[-1]), "project_q.bias": torch.zeros(size)}
        checkpoint = {
            "task_cfg": {"normalize": large, "sample_rate": 16000},
            "model_cfg": settings | ({"label_rate": 50.0} if kind == "hubert" else {}),
            "model_weight": weights,
            "dictionaries_symbols": [list("abcde")],
        }
    torch.save(checkpoint, path)
    return path


def padded_states(teacher: Teacher, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
    """A teacher's layers as (B, F, D), zero past an utterance's end, and the frames (B,)."""
    output = teacher.hidden_states(waveforms, lengths)
    return list(output.hidden_states), output.frame_lengths
