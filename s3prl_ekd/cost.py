"""What an encoder of the HuBERT family costs: parameters, and multiply-adds per second of audio.

One table of formulas over the sizes that pruning changes (:class:`UnitCounts`). They are sums of products, so they hold
for expected counts, scalar tensors that carry a gradient, as they do for whole numbers; nothing here imports torch.

Multiply-adds are those of matrix products and convolutions, the position convolution as the direct convolution that it
stands for; norms, activations, softmax and additions are not counted, nor are prediction heads. It is what
``torch.utils.flop_counter`` counts on transformers' models, halved, without the one frame too many that a position
convolution of even width yields there. Attention is quadratic in the length, so it is that of utterances of a given
length: 10 seconds unless said otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.errors import UserError, nearest

Number = Any  # an int, a float, or a scalar tensor

SECONDS = 10.0
"""Length of the utterances that multiply-adds are counted in."""

UNITS = ("conv", "heads", "intermediate", "positions")
"""What can be pruned: the fields of :class:`UnitCounts`."""


@dataclass(frozen=True, kw_only=True)
class UnitCounts:
    """How much there is of what pruning can take away, or is expected to be.

    Attributes:
        conv: output channels of each convolution.
        heads: attention heads of each layer.
        intermediate: inner units of each layer's feed-forward block.
        positions: taps of the position convolution, its kernel width; a list of one, since there is one.
    """

    conv: Sequence[Number]
    heads: Sequence[Number]
    intermediate: Sequence[Number]
    positions: Sequence[Number]

    @classmethod
    def of(cls, config: Any) -> Self:
        """Those of a :class:`~s3prl_ekd.config.recipe.StudentConfig`, or of another configuration with its names."""
        layers = config.num_hidden_layers
        return cls(
            conv=tuple(config.conv_dim),
            heads=per_layer(config.num_attention_heads, layers),
            intermediate=per_layer(config.intermediate_size, layers),
            positions=(config.num_conv_pos_embeddings,),
        )

    def least(self, units: Iterable[str]) -> UnitCounts:
        """What is left if all goes that may go of ``units``: one channel of each convolution, no head, no inner unit,
        the innermost taps of the position convolution (one if its width is odd, else two)."""
        smallest = {
            "conv": [1 for _ in self.conv],
            "heads": [0 for _ in self.heads],
            "intermediate": [0 for _ in self.intermediate],
            "positions": [2 - taps % 2 for taps in self.positions],
        }
        return dataclasses.replace(self, **{unit: smallest[unit] for unit in units})


@dataclass(frozen=True, kw_only=True)
class FixedSizes:
    """What the formulas need beside the counts: the sizes and variants that pruning leaves as they are.

    Attributes:
        conv_kernel: kernel width of each convolution.
        conv_stride: stride of each convolution.
        conv_bias: whether the convolutions have biases.
        conv_layer_norm: LayerNorm after every convolution instead of GroupNorm after the first.
        feat_proj_layer_norm: whether there is a LayerNorm before the projection.
        hidden_size: width D of the transformer.
        head_dim: width of an attention head.
        position_groups: groups of the position convolution.
        num_buckets: of WavLM's relative position bias; 0: none.
        bias_heads: heads that the relative position bias is kept for, those of the unpruned model.
    """

    conv_kernel: Sequence[int]
    conv_stride: Sequence[int]
    conv_bias: bool
    conv_layer_norm: bool
    feat_proj_layer_norm: bool
    hidden_size: int
    head_dim: int
    position_groups: int
    num_buckets: int
    bias_heads: int

    @classmethod
    def of(cls, config: Any) -> Self:
        """That of a :class:`~s3prl_ekd.config.recipe.StudentConfig`, or of another configuration with its names."""
        head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        return cls(
            conv_kernel=config.conv_kernel,
            conv_stride=config.conv_stride,
            conv_bias=config.conv_bias,
            conv_layer_norm=config.conv_layer_norm,
            feat_proj_layer_norm=config.feat_proj_layer_norm,
            hidden_size=config.hidden_size,
            head_dim=head_dim,
            position_groups=config.num_conv_pos_embedding_groups,
            num_buckets=config.num_buckets,
            bias_heads=config.hidden_size // head_dim,
        )


def parameters(sizes: FixedSizes, counts: UnitCounts) -> Number:
    """How many parameters, biases, norms and the position convolution's gains included."""
    size, width = sizes.hidden_size, sizes.head_dim
    total: Number = 0
    for index, (before, after, kernel) in enumerate(_convolutions(sizes, counts)):
        has_norm = sizes.conv_layer_norm or index == 0
        total = total + before * after * kernel + (sizes.conv_bias + 2 * has_norm) * after
    total = total + (size + 2 * sizes.feat_proj_layer_norm) * counts.conv[-1] + size  # projection and its LayerNorm
    total = total + (size * size // sizes.position_groups + 1) * sum(counts.positions) + size  # weights and gains, bias
    total = total + 2 * size  # the encoder's LayerNorm
    layers, heads = len(counts.heads), sum(counts.heads)
    total = total + (4 * size + 3) * width * heads + layers * size  # queries, keys, values, output
    total = total + (2 * size + 1) * sum(counts.intermediate) + layers * size  # feed-forward blocks
    total = total + layers * 4 * size  # two LayerNorms
    if sizes.num_buckets:  # of the position bias: a constant for each head, a Linear that a layer's heads share
        total = total + heads + layers * (width + 1) * 8 + sizes.num_buckets * sizes.bias_heads
    return total


def multiply_adds(sizes: FixedSizes, counts: UnitCounts, seconds: float = SECONDS) -> Number:
    """How many per second of audio, in utterances of so many seconds.

    Raises:
        ValueError: so short an utterance yields no frame.
    """
    size, width = sizes.hidden_size, sizes.head_dim
    frames = math.floor(seconds * SAMPLE_RATE)
    total: Number = 0
    for (before, after, kernel), stride in zip(_convolutions(sizes, counts), sizes.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        if frames < 1:
            raise ValueError(f"an utterance of {seconds} seconds yields no frame")
        total = total + frames * kernel * before * after
    total = total + frames * size * counts.conv[-1]  # projection
    total = total + frames * (size * size // sizes.position_groups) * sum(counts.positions)
    gate = 8 if sizes.num_buckets else 0  # of WavLM's position bias, computed from the head's slice of the input
    of_a_head = 4 * size + 2 * frames + gate  # projections; scores and the values' weighted sum; gate
    total = total + frames * of_a_head * width * sum(counts.heads)
    total = total + frames * 2 * size * sum(counts.intermediate)
    return total / seconds


COSTS: Mapping[str, Callable[[FixedSizes, UnitCounts], Number]] = {
    "parameters": parameters,
    "multiply_adds": multiply_adds,
}
"""What is counted."""

IN_WORDS: Mapping[str, str] = {"parameters": "parameters", "multiply_adds": "multiply-adds a second"}
"""The units of :data:`COSTS`."""


def allowance(
    budget: Mapping[str, float], sizes: FixedSizes, counts: UnitCounts, units: Sequence[str]
) -> tuple[str, float]:
    """Which cost a budget means, and how much of it: a key of :data:`COSTS` and a number.

    Args:
        budget: one entry: ``parameters``, ``multiply_adds`` per second, or ``sparsity``, the share of parameters to go.
        sizes: of the student to be pruned.
        counts: likewise.
        units: what may go, some of :data:`UNITS`.

    Raises:
        UserError: units of no such name, or a budget that they cannot reach (said what they can) or that is none.
    """
    for unit in units:
        if unit not in UNITS:
            raise UserError(f"pruning.units: unknown unit {unit!r}; {nearest(unit, UNITS)}")
    ((name, value),) = budget.items()
    kind = "parameters" if name == "sparsity" else name
    count = COSTS[kind]
    full, least = float(count(sizes, counts)), float(count(sizes, counts.least(units)))
    amount = (1 - value) * full if name == "sparsity" else float(value)
    if amount < least:
        # Rounded to the side that can be reached.
        limit = f"the most is {math.floor(1e4 * (1 - least / full)) / 1e4}"
        limit = limit if name == "sparsity" else f"the least is {math.ceil(least)}"
        raise UserError(
            f"pruning.budget.{name}: {value:.10g} cannot be reached by pruning {', '.join(units) or 'nothing'}; {limit}"
        )
    if amount >= full:
        raise UserError(
            f"pruning.budget.{name}: {value:.10g} leaves nothing to prune; the student has {full:.10g} {IN_WORDS[kind]}"
        )
    return kind, amount


def in_words(sizes: FixedSizes, counts: UnitCounts) -> str:
    """All costs: ``23.5 M parameters, 7.8 G multiply-adds a second``."""
    return ", ".join(amount_in_words(kind, count(sizes, counts)) for kind, count in COSTS.items())


def costs_of(config: Any) -> dict[str, float]:
    """All of :data:`COSTS` of a StudentConfig, or of another configuration with its names."""
    return {kind: count(FixedSizes.of(config), UnitCounts.of(config)) for kind, count in COSTS.items()}


def amount_in_words(kind: str, amount: float) -> str:
    """So much of one cost, a key of :data:`COSTS`: ``23.5 M parameters``."""
    return f"{short(amount)} {IN_WORDS[kind]}"


def short(amount: float) -> str:
    """``23.5 M``."""
    factor, letter = next((pair for pair in ((1e9, "G"), (1e6, "M")) if amount >= pair[0]), (1e3, "k"))
    return f"{amount / factor:.4g} {letter}"


def _convolutions(sizes: FixedSizes, counts: UnitCounts) -> Iterable[tuple[Number, Number, int]]:
    """Input channels, output channels and kernel width of each."""
    return zip((1, *counts.conv[:-1]), counts.conv, sizes.conv_kernel, strict=True)


def per_layer(value: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """What a setting says of each layer: one number for all, or one for each."""
    return (value,) * layers if isinstance(value, int) else tuple(value)
