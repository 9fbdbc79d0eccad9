"""Encoders, models of transformers and students whose layers differ in size, cut out of dense ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from helpers_models import TINY
from helpers_teachers import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import SpeechEncoder, hubert_encoder
from s3prl_ekd.student.model import Student
from s3prl_ekd.transformers_model import modeling_ekd

HEADS = ((1, 3), (), (0,))  # which of four heads each layer keeps
INNER = (tuple(range(0, 48, 5)), (7, 8, 40), ())  # and which inner units

KINDS = [("hubert", False), ("hubert", True), ("wavlm", False), ("wavlm", True)]
"""With and without the variants of Large models: pre-norm, LayerNorm in the conv stack, biases there."""


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


def dense_model(kind: str, *, large: bool = False) -> PreTrainedModel:
    """Three layers of four heads and 48 inner units, which neither masks nor drops layers in training."""
    sizes = {"num_attention_heads": 4, "intermediate_size": 48}
    return tiny_model(kind, large=large, mask_time_prob=0.0, apply_spec_augment=False, layerdrop=0.0, **sizes)


def cut_model(model: PreTrainedModel, **more: Any) -> PreTrainedModel:
    """Of a dense model's heads ``HEADS`` and of its inner units ``INNER``, as a model of ours."""
    family = {"hubert": "EkdHubert", "wavlm": "EkdWavLM"}[model.config.model_type]
    classes = modeling_ekd.CLASSES[family]
    settings: dict[str, Any] = {
        key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")
    }
    settings |= {"layer_heads": list(map(len, HEADS)), "layer_intermediate_sizes": list(map(len, INNER)), **more}
    if family == "EkdWavLM":
        settings["remaining_heads"] = HEADS
    small: PreTrainedModel = classes["AutoModel"](classes["AutoConfig"](**settings))
    width = model.config.hidden_size // model.config.num_attention_heads
    small.load_state_dict(small.state_dict() | cut_state(model.state_dict(), HEADS, INNER, width))
    return small.eval()


def pruned_student(kind: str, *, large: bool = False, **settings: Any) -> Student:
    """A student of random weights with three layers; the second has no heads, the third no inner units."""
    sizes: dict[str, Any] = {"head_dim": 6, "num_hidden_layers": 3, "conv_dim": [16, 12, 9, 14, 16, 7, 11]}
    sizes |= {"num_attention_heads": list(map(len, HEADS)), "intermediate_size": list(map(len, INNER))}
    if kind == "wavlm":
        sizes |= {"num_buckets": 32, "max_bucket_distance": 40, "remaining_heads": HEADS, "feat_proj_layer_norm": True}
    if large:
        sizes |= {"conv_layer_norm": True, "conv_bias": True, "do_stable_layer_norm": True}
    torch.manual_seed(0)
    student = Student(StudentConfig.from_mapping({**TINY, **sizes, "kind": kind, **settings})).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student
