"""Encoders whose layers differ in size, cut out of dense ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import SpeechEncoder, hubert_encoder

HEADS = ((1, 3), (), (0,))  # which of four heads each layer keeps
INNER = (tuple(range(0, 48, 5)), (7, 8, 40), ())  # and which inner units


def cut(dense: SpeechEncoder, config: EncoderConfig) -> SpeechEncoder:
    """Of a dense encoder of three layers the heads ``HEADS`` and inner units ``INNER``."""
    heads, inner = HEADS[: config.num_hidden_layers], INNER[: config.num_hidden_layers]
    width = config.hidden_size // 4
    small = hubert_encoder(
        dataclasses.replace(
            config,
            num_attention_heads=tuple(map(len, heads)),
            intermediate_size=tuple(map(len, inner)),
            head_dim=width,
            remaining_heads=heads if config.num_buckets else None,
        )
    )
    small.load_state_dict(cut_state(dense.state_dict(), heads, inner, width))
    return small.eval()


def cut_state(
    state: dict[str, Tensor], heads: Sequence[Sequence[int]], inner: Sequence[Sequence[int]], width: int
) -> dict[str, Tensor]:
    """The weights of these heads and inner units, under transformers' names."""
    state = dict(state)
    for index, (kept, units) in enumerate(zip(heads, inner, strict=True)):
        rows = torch.tensor([head * width + i for head in kept for i in range(width)], dtype=torch.long)
        columns = torch.tensor(units, dtype=torch.long)
        layer = f"encoder.layers.{index}"
        for name, chosen in (
            *((f"{layer}.attention.{p}_proj.{kind}", rows) for p in "qkv" for kind in ("weight", "bias")),
            (f"{layer}.feed_forward.intermediate_dense.weight", columns),
            (f"{layer}.feed_forward.intermediate_dense.bias", columns),
        ):
            state[name] = state[name][chosen]
        for name, chosen in ((f"{layer}.attention.out_proj", rows), (f"{layer}.feed_forward.output_dense", columns)):
            state[f"{name}.weight"] = state[f"{name}.weight"][:, chosen]
        gates = f"{layer}.attention.gru_rel_pos_const"
        if gates in state:
            state[gates] = state[gates][:, list(kept)]
    return state


def silence(dense: Any) -> Any:
    """A copy of a dense encoder, ours or transformers', in which all other heads and inner units have no effect."""
    masked = copy.deepcopy(dense)
    with torch.no_grad():
        for layer, heads, inner in zip(masked.encoder.layers, HEADS, INNER, strict=False):
            output, dense_out = layer.attention.out_proj.weight, layer.feed_forward.output_dense.weight
            by_head = output.unflatten(1, (4, -1))
            by_head[:, [head for head in range(4) if head not in heads]] = 0
            dense_out[:, [unit for unit in range(dense_out.shape[1]) if unit not in inner]] = 0
    return masked
