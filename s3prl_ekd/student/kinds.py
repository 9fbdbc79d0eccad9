"""What students can be put together from, and how their folders tell."""

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


_BASE = {  # what HubertConfig takes where a config.json says nothing
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "conv_bias": False,
    "feat_proj_layer_norm": True,
    "do_stable_layer_norm": False,
    "hidden_act": "gelu",
    "conv_pos_batch_norm": False,
}
HUBERT = StudentKind(
    front_end=ConvStack,
    encoder=Transformer,
    architecture={"model_type": "hubert", **_BASE, "feat_proj_layer_norm": False},
    defaults=_BASE,
)
WAVLM = StudentKind(front_end=ConvStack, encoder=Transformer, architecture={"model_type": "wavlm"})


def student_kind(config: StudentConfig) -> StudentKind:
    """What a recipe's student is put together from."""
    kind: StudentKind = STUDENT_KINDS.load(config.kind)
    return kind


def kind_of_folder(config_json: Mapping[str, Any]) -> tuple[str, StudentKind]:
    """The kind that a folder's ``config.json`` names as its ``model_type``, and its name; else HuBERT's, the first."""
    kinds: dict[str, StudentKind] = {name: STUDENT_KINDS.load(name) for name in STUDENT_KINDS}
    same = [(n, kind) for n, kind in kinds.items() if kind.architecture["model_type"] == config_json.get("model_type")]
    return same[0] if same else next(iter(kinds.items()))
