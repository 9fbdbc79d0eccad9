"""Students that start as a copy of a teacher, in sizes, variants and weights (DPHuBERT, arXiv 2305.17651)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from s3prl_ekd.config.base import require
from s3prl_ekd.config.layer_sizes import head_size, layer_heads, layer_intermediate_sizes
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.network.config import Architecture, EncoderConfig
from s3prl_ekd.student.model import Student

_EMBEDDING = "encoder.layers.0.attention.rel_attn_embed.weight"
_DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout")  # the recipe's, not the teacher's


def copy_of(config: StudentConfig, architecture: Architecture, state: Mapping[str, Tensor]) -> Student:
    """The student that a recipe with ``student.copy`` describes.

    Args:
        config: the recipe's student.
        architecture: of the teacher.
        state: its weights under transformers' names, all of them.

    Raises:
        UserError: the teacher has fewer layers than are to be copied, or sizes that no student has.
    """
    depth = architecture.encoder.num_hidden_layers
    layers = tuple(range(depth)) if config.copy_layers is None else config.copy_layers
    require(
        max(layers) < depth,
        f"student.copy_layers: teacher {config.copy!r} has the layers 0 to {depth - 1}, and no layer {max(layers)}",
    )
    student = Student(_config(config, architecture, layers))
    student.load_state_dict(_chosen(state, layers))
    return student


def _config(config: StudentConfig, architecture: Architecture, layers: Sequence[int]) -> StudentConfig:
    """That of the copy: the teacher's architecture, with the recipe's dropouts and gradient scale."""
    encoder = architecture.encoder
    sizes = {item.name: getattr(encoder, item.name) for item in dataclasses.fields(EncoderConfig)}
    sizes |= {name: getattr(config, name) for name in _DROPOUTS} | {"num_hidden_layers": len(layers)}
    sizes |= _of_layers(encoder, layers)
    if encoder.num_buckets == 0:
        del sizes["max_bucket_distance"]  # which then says nothing, and keeps its default
    return StudentConfig(
        **sizes,
        kind="wavlm" if encoder.num_buckets > 0 else "hubert",
        normalize_waveform=architecture.normalize_waveform,
        normalization_eps=architecture.normalization_eps,
        feature_grad_scale=config.feature_grad_scale,
    )


def _of_layers(encoder: EncoderConfig, layers: Sequence[int]) -> dict[str, Any]:
    """Sizes of these layers, where they are not one number for all."""
    sizes: dict[str, Any] = {}
    if not isinstance(encoder.num_attention_heads, int):
        heads = layer_heads(encoder)
        sizes |= {"num_attention_heads": tuple(heads[layer] for layer in layers), "head_dim": head_size(encoder)}
    if not isinstance(encoder.intermediate_size, int):
        inner = layer_intermediate_sizes(encoder)
        sizes["intermediate_size"] = tuple(inner[layer] for layer in layers)
    if encoder.remaining_heads is not None:
        sizes["remaining_heads"] = tuple(encoder.remaining_heads[layer] for layer in layers)
    return sizes


def _chosen(state: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The weights of these layers, numbered anew, and all others. The position bias stays in the first one."""
    numbers = {str(layer): str(number) for number, layer in enumerate(layers)}
    chosen: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if match is None or name == _EMBEDDING:
            chosen[name] = tensor
        elif match[1] in numbers:
            chosen[f"encoder.layers.{numbers[match[1]]}.{match[2]}"] = tensor
    return chosen
