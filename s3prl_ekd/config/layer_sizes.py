"""Sizes that may differ from layer to layer: what a student's and an encoder's settings say of each layer."""

from __future__ import annotations

from typing import Annotated, Protocol

from s3prl_ekd.config.base import Range, Size, require
from s3prl_ekd.cost import per_layer

Amount = Annotated[int, Range(at_least=0, at_most=16_384)]
PerLayer = Size | tuple[Amount, ...]
"""One number for all layers, or one for each, which may be 0."""


class LayerSizes(Protocol):
    """The settings of a transformer that these functions read; see StudentConfig."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> PerLayer: ...
    @property
    def intermediate_size(self) -> PerLayer: ...
    @property
    def head_dim(self) -> int | None: ...
    @property
    def num_buckets(self) -> int: ...
    @property
    def max_bucket_distance(self) -> int: ...
    @property
    def remaining_heads(self) -> tuple[tuple[int, ...], ...] | None: ...


def layer_heads(config: LayerSizes) -> tuple[int, ...]:
    """Attention heads of each layer."""
    return per_layer(config.num_attention_heads, config.num_hidden_layers)


def layer_intermediate_sizes(config: LayerSizes) -> tuple[int, ...]:
    """Inner units of each layer's feed-forward block."""
    return per_layer(config.intermediate_size, config.num_hidden_layers)


def head_size(config: LayerSizes) -> int:
    """Width of an attention head, the same in all layers."""
    if config.head_dim is not None:
        return config.head_dim
    assert isinstance(config.num_attention_heads, int), "a list of heads comes with head_dim"
    return config.hidden_size // config.num_attention_heads


def original_heads(config: LayerSizes) -> int:
    """How many heads a layer had before pruning: as many as make up ``hidden_size``."""
    return config.hidden_size // head_size(config)


def kept_heads(config: LayerSizes) -> tuple[tuple[int, ...], ...]:
    """Which of the original heads each layer has, by their numbers; all where nothing else is said."""
    if config.remaining_heads is not None:
        return config.remaining_heads
    return (tuple(range(original_heads(config))),) * config.num_hidden_layers


def is_uniform(config: LayerSizes) -> bool:
    """Whether all layers have the same sizes, and heads that fill ``hidden_size``, as in transformers' own models."""
    heads, inner = set(layer_heads(config)), set(layer_intermediate_sizes(config))
    return heads == {original_heads(config)} and heads_fill(config) and len(inner) == 1 and inner != {0}


def heads_fill(config: LayerSizes) -> bool:
    """Whether the original heads make up ``hidden_size`` exactly."""
    return original_heads(config) * head_size(config) == config.hidden_size


def check_layer_sizes(config: LayerSizes, where: str = "") -> None:
    """Check that the sizes fit together; messages name the settings with ``where`` before them, such as ``student.``.

    Raises:
        UserError: they do not.
    """
    layers = config.num_hidden_layers
    for name in ("num_attention_heads", "intermediate_size"):
        value = getattr(config, name)
        require(
            isinstance(value, int) or len(value) == layers,
            f"{where}{name}: {0 if isinstance(value, int) else len(value)} numbers for {layers} layers; give one for"
            " each, or one number",
        )
    if config.head_dim is None:
        heads = config.num_attention_heads
        require(
            isinstance(heads, int),
            f"{where}num_attention_heads: a list needs {where}head_dim, the width of a head, such as 64",
        )
        require(
            isinstance(heads, int) and config.hidden_size % heads == 0,
            f"{where}hidden_size {config.hidden_size} is not divisible by num_attention_heads {heads}",
        )
    if config.num_buckets > 0:
        _check_relative_positions(config, where)
    else:
        require(
            config.remaining_heads is None,
            f"{where}remaining_heads: only the heads of a WavLM (num_buckets: 320) depend on which they were",
        )


def _check_relative_positions(config: LayerSizes, where: str) -> None:
    exact = config.num_buckets // 4  # distances with a bucket of their own
    require(exact > 0, f"{where}num_buckets: {config.num_buckets} buckets are too few; a WavLM has 320, 4 is the least")
    require(
        config.max_bucket_distance > exact,
        f"{where}max_bucket_distance: {config.max_bucket_distance} is not beyond the first {exact} frames, which have"
        " buckets of their own; a WavLM has 800",
    )
    original = original_heads(config)
    require(
        heads_fill(config),
        f"{where}hidden_size {config.hidden_size} is not divisible by head_dim {config.head_dim}: each head of a WavLM"
        " reads a slice of the layer's input",
    )
    heads = layer_heads(config)
    if config.remaining_heads is None:
        require(
            set(heads) == {original},
            f"{where}num_attention_heads: of the {original} heads of width {head_size(config)} that make up hidden_size"
            f" {config.hidden_size} some are gone; {where}remaining_heads must say which each layer has kept",
        )
        return
    kept = config.remaining_heads
    require(
        tuple(map(len, kept)) == heads,
        f"{where}remaining_heads: names {list(map(len, kept))} heads a layer, where num_attention_heads is"
        f" {list(heads)}",
    )
    for layer in kept:
        require(
            all(head < original for head in layer) and list(layer) == sorted(set(layer)),
            f"{where}remaining_heads: {list(layer)} are not numbers of heads, from 0 to {original - 1} in rising order",
        )
