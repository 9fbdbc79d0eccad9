"""Weights under other projects' names, the way back from :mod:`s3prl_ekd.weights.names`."""

from __future__ import annotations

import torch
from torch import Tensor

from s3prl_ekd.weights import names


def under_names_of(table: names.KeyTable, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformers model as ``table``'s format names them."""
    back = names.KeyTable(table.name, tuple((ours, theirs) for theirs, ours in table.pairs))
    renamed = names.to_transformers_keys(state, back)
    return {name: tensor for name, tensor in renamed.items() if not name.startswith("feature_projection.")}


def distiller_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A student's weights, and its heads' under ``heads.``, as s3prl's distiller keeps them."""
    heads = [name for name in state if name.startswith("heads.")]
    theirs = under_names_of(names.DISTILLER, {name: state[name] for name in state if name not in heads})
    count = len({name.split(".")[1] for name in heads})
    if not count:
        return theirs
    inner, biases, outer, outer_biases = (
        [state[f"heads.{i}.{part}"] for i in range(count)] for part in ("0.weight", "0.bias", "2.weight", "2.bias")
    )
    theirs |= {"output_layer.0.weight": torch.cat(inner), "output_layer.0.bias": torch.cat(biases)}
    if count == 1:
        return theirs | {"output_layer.2.layer.weight": outer[0], "output_layer.2.layer.bias": outer_biases[0]}
    return theirs | {
        "output_layer.2.weight": torch.stack([weight.T for weight in outer]),
        "output_layer.2.bias": torch.stack(outer_biases)[None, None],
    }
