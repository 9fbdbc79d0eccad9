"""The sizes of an encoder of the HuBERT family, read off its weights; names as in transformers' HubertConfig."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from s3prl_ekd.errors import UserError

CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
"""The conv stack of all published models, as fairseq's options write it: (channels, kernel, stride) of each layer."""
_STRIDES: dict[tuple[int, ...], tuple[int, ...]] = {
    (10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)
}  # by kernel widths; no weight tells them


NORMALIZED = {"normalize_waveform": True, "normalization_eps": 1e-5}
"""How fairseq's, torchaudio's and their descendants' models hear a waveform, if they want it normalised."""


class StoredEncoder(NamedTuple):
    """An encoder as another project's file has it.

    Attributes:
        sizes: its sizes and variants, by the names that they have in recipes.
        weights: under transformers' names.
        left_over: modules in the file that are no part of the encoder, such as prediction heads.
    """

    sizes: dict[str, Any]
    weights: dict[str, Tensor]
    left_over: tuple[str, ...] = ()


def sizes_of(weights: Mapping[str, Tensor], head_dim: int) -> dict[str, Any]:
    """All that the shapes tell.

    Not told are the strides, the order of LayerNorms and layers, dropout, and what WavLM's buckets and heads mean.

    Args:
        weights: under transformers' names.
        head_dim: width of an attention head.

    Raises:
        UserError: a weight is missing without which there is no encoder, or a shape that cannot be.
    """
    convolutions = [weight.shape for weight in _numbered(weights, "feature_extractor.conv_layers.{}.conv.weight")]
    queries = _numbered(weights, "encoder.layers.{}.attention.q_proj.weight")
    intermediate = _numbered(weights, "encoder.layers.{}.feed_forward.intermediate_dense.weight")
    hidden_size, group_size, taps = _get(weights, "encoder.pos_conv_embed.conv.parametrizations.weight.original1").shape
    if not convolutions or not queries:
        raise UserError("not the weights of a HuBERT: there are no convolutions or no transformer layers")
    widths = [len(query) for query in queries]
    if head_dim < 1 or any(width % head_dim for width in widths):
        raise UserError(f"attention of the widths {sorted(set(widths))} has no whole heads of width {head_dim}")
    heads = [width // head_dim for width in widths]
    whole = set(widths) == {hidden_size}
    embedding = weights.get("encoder.layers.0.attention.rel_attn_embed.weight")
    return {
        "conv_dim": [outputs for outputs, _, _ in convolutions],
        "conv_kernel": [kernel for _, _, kernel in convolutions],
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in weights,
        "conv_layer_norm": "feature_extractor.conv_layers.1.layer_norm.weight" in weights,
        "feat_proj_layer_norm": "feature_projection.layer_norm.weight" in weights,
        "hidden_size": hidden_size,
        "num_hidden_layers": len(queries),
        "num_attention_heads": one_or_each(heads),
        **({} if whole else {"head_dim": head_dim}),
        "intermediate_size": one_or_each([len(weight) for weight in intermediate]),
        "num_conv_pos_embeddings": taps,
        "num_conv_pos_embedding_groups": hidden_size // max(1, group_size),
        **({} if embedding is None else {"num_buckets": len(embedding)}),
    }


def add_missing_blocks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with attention of no heads, and feed-forward blocks of no units, where a layer has none of these.

    Args:
        weights: under transformers' names.
    """
    whole = dict(weights)
    for number, norm in enumerate(_numbered(weights, "encoder.layers.{}.final_layer_norm.weight")):
        size = len(norm)
        for block, inner, outer in (
            ("attention", ("q_proj", "k_proj", "v_proj"), "out_proj"),
            ("feed_forward", ("intermediate_dense",), "output_dense"),
        ):
            prefix = f"encoder.layers.{number}.{block}"
            if any(name.startswith(f"{prefix}.") for name in weights):
                continue
            for linear in inner:
                whole |= {
                    f"{prefix}.{linear}.weight": norm.new_zeros(0, size),
                    f"{prefix}.{linear}.bias": norm.new_zeros(0),
                }
            whole |= {
                f"{prefix}.{outer}.weight": norm.new_zeros(size, 0),
                f"{prefix}.{outer}.bias": norm.new_zeros(size),
            }
    return whole


def one_or_each(values: Sequence[int]) -> int | list[int]:
    """One number where all are the same, else all of them."""
    return values[0] if len(set(values)) == 1 else list(values)


def strides_of(kernels: Sequence[int]) -> tuple[int, ...]:
    """The strides of a published conv stack, by its kernel widths.

    Raises:
        UserError: no published one has these.
    """
    if tuple(kernels) not in _STRIDES:
        raise UserError(f"a conv stack with the kernel widths {list(kernels)}, whose strides are not known")
    return _STRIDES[tuple(kernels)]


def conv_layers(expression: str) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of each layer from fairseq's expression, such as ``[(512,10,5)] + [(512,3,2)] * 4``.

    Only lists, tuples, whole numbers, ``+`` and ``*`` are understood; nothing is executed.

    Raises:
        UserError: anything else.
    """
    try:
        layers = _value(ast.parse(str(expression), mode="eval").body)
        return [(int(channels), int(kernel), int(stride)) for channels, kernel, stride in layers]
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(f"convolutions: cannot read {expression!r:.80}") from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case _:
            return ast.literal_eval(node)


def _numbered(weights: Mapping[str, Tensor], pattern: str) -> list[Tensor]:
    """The tensors called ``pattern`` with 0, 1, 2 ... in it, up to the first number that is not there."""
    numbers = itertools.takewhile(lambda i: pattern.format(i) in weights, itertools.count())
    return [weights[pattern.format(i)] for i in numbers]


def _get(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise UserError(f"not the weights of a HuBERT: {name} is missing")
    return weights[name]
