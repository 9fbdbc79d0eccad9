"""Names of weights: one table of patterns per format, between that format and transformers' HubertModel / WavLMModel.

In a pattern ``{n}`` stands for a layer's number and ``{p}`` for ``weight`` or ``bias``. Conversion is strict: a name
that no pattern knows is an error, nothing is guessed and nothing is dropped in silence.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_ekd.errors import UserError

Pairs = tuple[tuple[str, str], ...]

_PLACEHOLDERS = {r"\{n\}": r"(?P<n>\d+)", r"\{p\}": r"(?P<p>weight|bias)", r"\*": r".+"}


@dataclass(frozen=True)
class KeyTable:
    """How one format names what transformers names otherwise.

    Attributes:
        name: the format, for messages.
        pairs: (its pattern, transformers' pattern).
        dropped: its patterns of what transformers' encoder has no place for, such as pretraining heads.
    """

    name: str
    pairs: Pairs
    dropped: tuple[str, ...] = ()

    def unknown(self, state: Mapping[str, Tensor]) -> list[str]:
        """The names in ``state`` that are none of this format's."""
        patterns = [theirs for theirs, _ in self.pairs] + list(self.dropped)
        return [key for key in state if not any(_match(pattern, key) for pattern in patterns)]


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    regex = re.escape(pattern)
    for placeholder, group in _PLACEHOLDERS.items():
        regex = regex.replace(placeholder, group)
    return re.compile(regex)


def _match(pattern: str, key: str) -> re.Match[str] | None:
    return _compiled(pattern).fullmatch(key)


_ENCODER: Pairs = (
    ("feature_extractor.conv_layers.{n}.0.{p}", "feature_extractor.conv_layers.{n}.conv.{p}"),
    ("post_extract_proj.{p}", "feature_projection.projection.{p}"),
    ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    ("encoder.layer_norm.{p}", "encoder.layer_norm.{p}"),
    ("encoder.layers.{n}.self_attn.q_proj.{p}", "encoder.layers.{n}.attention.q_proj.{p}"),
    ("encoder.layers.{n}.self_attn.k_proj.{p}", "encoder.layers.{n}.attention.k_proj.{p}"),
    ("encoder.layers.{n}.self_attn.v_proj.{p}", "encoder.layers.{n}.attention.v_proj.{p}"),
    ("encoder.layers.{n}.self_attn.out_proj.{p}", "encoder.layers.{n}.attention.out_proj.{p}"),
    ("encoder.layers.{n}.self_attn_layer_norm.{p}", "encoder.layers.{n}.layer_norm.{p}"),
    ("encoder.layers.{n}.fc1.{p}", "encoder.layers.{n}.feed_forward.intermediate_dense.{p}"),
    ("encoder.layers.{n}.fc2.{p}", "encoder.layers.{n}.feed_forward.output_dense.{p}"),
    ("encoder.layers.{n}.final_layer_norm.{p}", "encoder.layers.{n}.final_layer_norm.{p}"),
)
_GROUP_NORM: Pairs = (  # Base models: one GroupNorm, after the first convolution
    ("feature_extractor.conv_layers.0.2.{p}", "feature_extractor.conv_layers.0.layer_norm.{p}"),
)
_LAYER_NORM: Pairs = (  # Large models: a LayerNorm after every convolution
    ("feature_extractor.conv_layers.{n}.2.1.{p}", "feature_extractor.conv_layers.{n}.layer_norm.{p}"),
)
_FAIRSEQ: Pairs = (  # what DistilHuBERT does without
    ("layer_norm.{p}", "feature_projection.layer_norm.{p}"),
    ("mask_emb", "masked_spec_embed"),
)
_GATES: Pairs = (  # WavLM's gated relative position bias
    ("encoder.layers.{n}.self_attn.grep_a", "encoder.layers.{n}.attention.gru_rel_pos_const"),
    ("encoder.layers.{n}.self_attn.grep_linear.{p}", "encoder.layers.{n}.attention.gru_rel_pos_linear.{p}"),
    (
        "encoder.layers.{n}.self_attn.relative_attention_bias.weight",
        "encoder.layers.{n}.attention.rel_attn_embed.weight",
    ),
)
_PRETRAINING = ("final_proj.{p}", "label_embs_concat", "target_glu.*", "quantizer.*", "project_q.{p}")

HUBERT = KeyTable("fairseq HuBERT", _ENCODER + _GROUP_NORM + _FAIRSEQ, _PRETRAINING)
HUBERT_LARGE = KeyTable("fairseq HuBERT Large", _ENCODER + _LAYER_NORM + _FAIRSEQ, _PRETRAINING)
WAVLM = KeyTable("WavLM", HUBERT.pairs + _GATES)
WAVLM_LARGE = KeyTable("WavLM Large", HUBERT_LARGE.pairs + _GATES)
DISTILLER = KeyTable("s3prl distiller", _ENCODER + _GROUP_NORM)

SCALE = "feature_projection.scale"  # not transformers': what DPHuBERT's gates left of the last convolution's channels
_TRANSFORMERS_5 = tuple(
    (ours, ours) for ours in dict.fromkeys((*(ours for _, ours in WAVLM.pairs + _LAYER_NORM), SCALE))
)
TRANSFORMERS = KeyTable("transformers", _TRANSFORMERS_5, ("adapter.*",))
_TRANSFORMERS_4 = tuple(  # before torch had parametrizations
    (
        name.replace(".parametrizations.weight.original0", ".weight_g").replace(
            ".parametrizations.weight.original1", ".weight_v"
        ),
        name,
    )
    for name, _ in _TRANSFORMERS_5
)
TRANSFORMERS_OLD = KeyTable("transformers 4", _TRANSFORMERS_4, ("adapter.*",))


def _in_torchaudio(name: str) -> str:
    """torchaudio has transformers' names, but for where the encoder's parts are."""
    encoder, _, rest = name.partition("encoder.")
    if not encoder:
        return f"encoder.transformer.{rest}"
    return f"encoder.{name}" if name.startswith("feature_projection.") else name


TORCHAUDIO = KeyTable(
    "torchaudio",
    (
        *((_in_torchaudio(theirs), ours) for theirs, ours in dict.fromkeys(_TRANSFORMERS_5 + _TRANSFORMERS_4)),
        ("feature_extractor.dummy_weight", SCALE),
    ),
)

TABLES = (TRANSFORMERS, TRANSFORMERS_OLD, HUBERT, HUBERT_LARGE, WAVLM, WAVLM_LARGE)
"""What :func:`recognize` looks through; a HuBERT's names are a subset of a WavLM's, so it comes first."""


def recognize(state: Mapping[str, Tensor], tables: Sequence[KeyTable] = TABLES) -> KeyTable:
    """The table that knows every name in ``state``.

    Raises:
        UserError: none does.
    """
    unknown = {table.name: table.unknown(state) for table in tables}
    for table in tables:
        if not unknown[table.name]:
            return table
    closest = min(unknown, key=lambda name: len(unknown[name]))
    raise UserError(f"weights of no known kind; nearest is {closest}, but for {unknown[closest][0]}")


def base_model(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder inside a model that transformers puts on top of one, such as HubertForCTC (``prefix`` ``hubert.``).

    Returns:
        Its weights without ``prefix``, and the names of the modules on top (``lm_head``). Where no name has the prefix:
        all weights, and no modules.
    """
    inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    if not inner:
        return dict(state), []
    return inner, sorted({key.partition(".")[0] for key in state if not key.startswith(prefix)})


def to_transformers_keys(state: Mapping[str, Tensor], table: KeyTable) -> dict[str, Tensor]:
    """``state`` in the table's format under transformers' names; tensors are shared, not copied.

    fairseq has no feature projection where the conv stack is as wide as the transformer; transformers always has one,
    so it becomes the identity.

    Raises:
        UserError: a name that the table does not know.
    """
    if unknown := table.unknown(state):
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(f"not the weights of a {table.name} model: unknown {', '.join(unknown[:3])}{more}")
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for theirs, ours in table.pairs:
            if match := _match(theirs, key):
                renamed[ours.format(**match.groupdict())] = tensor
                break
    width = renamed.get("encoder.layer_norm.weight")
    if width is not None and "feature_projection.projection.weight" not in renamed:
        renamed["feature_projection.projection.weight"] = torch.eye(width.numel(), dtype=width.dtype)
        renamed["feature_projection.projection.bias"] = torch.zeros(width.numel(), dtype=width.dtype)
    return renamed


def from_distiller(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``Distiller`` state dict of an s3prl checkpoint as ours: transformers' names, and ``heads.<i>.{0,2}.{p}``.

    s3prl keeps all heads in one Linear and one SplitLinear: weights (H x I, D) and (H, I, D'), biases (H x I,) and
    (1, 1, H, D'); with a single head the second is a Linear called ``layer``.

    Raises:
        UserError: not a distiller's weights.
    """
    heads = {key: tensor for key, tensor in state.items() if key.startswith("output_layer.")}
    ours = to_transformers_keys({key: tensor for key, tensor in state.items() if key not in heads}, DISTILLER)
    if not heads:
        return ours
    single = "output_layer.2.layer.weight" in heads
    prefix = "output_layer.2.layer" if single else "output_layer.2"
    expected = {"output_layer.0.weight", "output_layer.0.bias", f"{prefix}.weight", f"{prefix}.bias"}
    if set(heads) != expected:
        names = ", ".join(sorted(set(heads) ^ expected))
        raise UserError(f"not the weights of a {DISTILLER.name} model: unexpected or missing {names}")
    outer = heads[f"{prefix}.weight"]
    outer = outer.unsqueeze(0) if single else outer.transpose(1, 2)  # (H, D', I)
    biases = heads[f"{prefix}.bias"].reshape(len(outer), -1)  # (H, D')
    inner = zip(
        heads["output_layer.0.weight"].chunk(len(outer)), heads["output_layer.0.bias"].chunk(len(outer)), strict=True
    )
    for i, (weight, bias) in enumerate(inner):
        ours |= {
            f"heads.{i}.0.weight": weight.contiguous(),
            f"heads.{i}.0.bias": bias.contiguous(),
            f"heads.{i}.2.weight": outer[i].contiguous(),
            f"heads.{i}.2.bias": biases[i].contiguous(),
        }
    return ours
