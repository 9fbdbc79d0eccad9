"""What students can be put together from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from s3prl_ekd.config.recipe import STUDENT_KINDS, StudentConfig
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.conv import ConvStack
from s3prl_ekd.network.encoder import FeatureProjection, Transformer
from s3prl_ekd.network.front_end import FrontEnd
from s3prl_ekd.weights.names import TABLES, KeyTable


@dataclass(frozen=True, kw_only=True)
class StudentKind:
    """A front end and an encoder that make a student, and the formats that it is kept in.

    Attributes:
        front_end: makes the front end, of these sizes.
        encoder: makes the encoder.
        architecture: what the student's ``config.json`` says beside its sizes; ``model_type`` belongs to one kind only.
        defaults: what transformers takes where a ``config.json`` says nothing.
        tables: the names that its weights may have.
    """

    front_end: Callable[[EncoderConfig], FrontEnd]
    encoder: Callable[[EncoderConfig], Transformer]
    architecture: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[KeyTable, ...] = TABLES

    def parts(self, config: StudentConfig) -> tuple[FrontEnd, FeatureProjection, Transformer]:
        """Front end, projection and encoder with new weights."""
        sizes = encoder_config(config)
        front_end = self.front_end(sizes)
        return front_end, FeatureProjection(front_end.channels, sizes), self.encoder(sizes)


def encoder_config(config: StudentConfig) -> EncoderConfig:
    """The sizes and variants of a student's network."""
    return EncoderConfig(**{item.name: getattr(config, item.name) for item in dataclasses.fields(EncoderConfig)})


_ACTIVATIONS = {"feat_extract_activation": "gelu", "hidden_act": "gelu"}
_BASE = {"feat_extract_norm": "group", "feat_proj_layer_norm": True, "num_hidden_layers": 12}
HUBERT = StudentKind(
    front_end=ConvStack,
    encoder=Transformer,
    architecture={"model_type": "hubert", **_ACTIVATIONS, "conv_pos_batch_norm": False},
    defaults={**_ACTIVATIONS, "conv_pos_batch_norm": False, **_BASE},
)
WAVLM = StudentKind(
    front_end=ConvStack,
    encoder=Transformer,
    architecture={"model_type": "wavlm", **_ACTIVATIONS},
    defaults={**_ACTIVATIONS, **_BASE, "num_buckets": 320, "max_bucket_distance": 800},
)


def student_kind(config: StudentConfig) -> StudentKind:
    """What a recipe's student is put together from."""
    kind: StudentKind = STUDENT_KINDS.load(config.kind)
    return kind
