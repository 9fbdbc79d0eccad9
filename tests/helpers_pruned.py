"""Dense models of transformers with silenced heads and inner units, and the same cut out: what pruning must keep."""

from __future__ import annotations

import copy
from typing import Any

import torch
from helpers_teachers import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from s3prl_ekd.transformers_model import modeling_ekd

Choice = list[list[int]]
"""What each layer keeps."""

HEADS: Choice = [[1, 3], [], [0]]
"""Of four; the second layer keeps none."""
INNER: Choice = [[0, 5, 6, 31], list(range(20)), []]
"""Of 32; the third layer keeps none."""


def dense_model(kind: str, *, large: bool = False) -> PreTrainedModel:
    """Three layers of four heads and 32 inner units, which neither masks nor drops layers in training."""
    return tiny_model(
        kind, large=large, num_attention_heads=4, mask_time_prob=0.0, apply_spec_augment=False, layerdrop=0.0
    )


def silenced(model: PreTrainedModel, heads: Choice = HEADS, inner: Choice = INNER) -> PreTrainedModel:
    """A copy whose other heads and inner units say nothing."""
    model = copy.deepcopy(model)
    for index, layer in enumerate(model.encoder.layers):
        layer.attention.out_proj.weight.data *= _ones_at(_rows(model, heads[index]), model.config.hidden_size)
        layer.feed_forward.output_dense.weight.data *= _ones_at(_places(inner[index]), model.config.intermediate_size)
    return model


def cut(model: PreTrainedModel, heads: Choice = HEADS, inner: Choice = INNER) -> PreTrainedModel:
    """A model of ours that has these heads and inner units only."""
    family = {"hubert": "EkdHubert", "wavlm": "EkdWavLM"}[model.config.model_type]
    classes = modeling_ekd.CLASSES[family]
    settings: dict[str, Any] = {
        key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")
    }
    settings["layer_heads"] = [len(one) for one in heads]
    settings["layer_intermediate_sizes"] = [len(one) for one in inner]
    if family == "EkdWavLM":
        settings["remaining_heads"] = heads
    small = classes["AutoModel"](classes["AutoConfig"](**settings))
    small.load_state_dict(_cut_weights(model, heads, inner))
    return small.eval()


def _cut_weights(model: PreTrainedModel, heads: Choice, inner: Choice) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    for index in range(len(heads)):
        rows, units = _rows(model, heads[index]), _places(inner[index])
        attention, dense = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.feed_forward"
        kept = {
            **{f"{attention}.{x}_proj.{part}": (0, rows) for x in "qkv" for part in ("weight", "bias")},
            f"{attention}.out_proj.weight": (1, rows),
            f"{attention}.gru_rel_pos_const": (1, _places(heads[index])),
            **{f"{dense}.intermediate_dense.{part}": (0, units) for part in ("weight", "bias")},
            f"{dense}.output_dense.weight": (1, units),
        }
        state |= {name: state[name].index_select(*where) for name, where in kept.items() if name in state}
    return state


def _rows(model: PreTrainedModel, heads: list[int]) -> Tensor:
    """Rows of the projections that belong to these heads."""
    rows = torch.arange(model.config.hidden_size).view(model.config.num_attention_heads, -1)
    return rows[_places(heads)].flatten()


def _places(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)


def _ones_at(places: Tensor, size: int) -> Tensor:
    return torch.zeros(size).index_fill(0, places, 1.0)
