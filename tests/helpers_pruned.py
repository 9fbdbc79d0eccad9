"""Students whose layers differ in size, and models of transformers cut to the same."""

from __future__ import annotations

from typing import Any

import torch
from helpers_layer_sizes import HEADS, INNER, cut_state
from helpers_models import TINY
from helpers_teachers import tiny_model
from transformers import PreTrainedModel

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.student.model import Student
from s3prl_ekd.transformers_model import modeling_ekd

KINDS = [("hubert", False), ("hubert", True), ("wavlm", False), ("wavlm", True)]
"""With and without the variants of Large models: pre-norm, LayerNorm in the conv stack, biases there."""


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
