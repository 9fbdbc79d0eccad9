"""A student with layers of different size as one with layers of equal size, padded with zeros."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from s3prl_ekd.config.base import require
from s3prl_ekd.config.layer_sizes import (
    head_size,
    is_uniform,
    kept_heads,
    layer_heads,
    layer_intermediate_sizes,
    original_heads,
)
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.student.model import Student


def flatten(student: Student) -> Student:
    """The same function by a network whose folder stock HubertModel or WavLMModel opens.

    Heads and inner units that a layer has lost come back as zeros, a WavLM's heads at their old places; so what pruning
    had saved on these is spent again. Convolutions and the position convolution stay as they are.

    Args:
        student: of any kind; one with layers of equal size is given back.

    Raises:
        UserError: stock models have no place for heads of this width, or for factors of channels.
    """
    config = student.config
    require(
        not config.feature_scale,
        "cannot be made flat: stock models have no factors of channels before the LayerNorm of the feature projection,"
        " which this one has from DPHuBERT's gates; export it without --flat",
    )
    if is_uniform(config):
        return student
    size, heads, most = head_size(config), layer_heads(config), original_heads(config)
    require(
        most * size == config.hidden_size and max(heads) <= most,
        f"cannot be made flat: in stock models the heads together are as wide as the layer, {config.hidden_size}; here"
        f" are up to {max(heads)} of width {size}; export it without --flat",
    )
    inner = max(1, *layer_intermediate_sizes(config))
    equal = dataclasses.replace(
        config, num_attention_heads=most, head_dim=None, remaining_heads=None, intermediate_size=inner
    )
    padded = Student(equal)
    places = _places(config)
    state = padded.state_dict()
    for name, tensor in student.state_dict().items():
        dimension, indices = places.get(name, (0, torch.arange(len(tensor))))
        state[name] = torch.zeros_like(state[name]).index_copy(dimension, indices, tensor.cpu())
    padded.load_state_dict(state)
    return padded.train(student.training)


def _places(config: StudentConfig) -> dict[str, tuple[int, Tensor]]:
    """Where along which dimension the entries of a weight go; none for those that stay as they are."""
    size = head_size(config)
    kept = kept_heads(config) if config.remaining_heads is not None else [range(n) for n in layer_heads(config)]
    places: dict[str, tuple[int, Tensor]] = {}
    for index, (layer, inner) in enumerate(zip(kept, layer_intermediate_sizes(config), strict=True)):
        heads, units = torch.tensor(list(layer), dtype=torch.long), torch.arange(inner)
        rows = (heads[:, None] * size + torch.arange(size)).flatten()
        attention, feed_forward = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.feed_forward"
        for part in ("weight", "bias"):
            places |= {f"{attention}.{projection}_proj.{part}": (0, rows) for projection in "qkv"}
            places[f"{feed_forward}.intermediate_dense.{part}"] = (0, units)
        places[f"{attention}.out_proj.weight"] = (1, rows)
        places[f"{attention}.gru_rel_pos_const"] = (1, heads)
        places[f"{feed_forward}.output_dense.weight"] = (1, units)
    return places
