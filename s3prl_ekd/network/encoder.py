"""The HuBERT family's encoder: conv stack, projection, position convolution, transformer.

Its parameters have the names of transformers' HubertModel and WavLMModel. Hidden states are rows (N, D), real frames
only; attention and the position convolution alone see the batch as (B, F, D). In a recorded graph rows are the padded
batch itself (:class:`~s3prl_ekd.network.frames.Padded`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.config.layer_sizes import head_size, kept_heads, layer_heads, layer_intermediate_sizes, original_heads
from s3prl_ekd.network import overlap_save
from s3prl_ekd.network.bypass import in_graph, is_traced, may_bypass
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.conv import ConvStack
from s3prl_ekd.network.frames import Layout, length_mask, whole_lengths
from s3prl_ekd.network.front_end import FrontEnd
from s3prl_ekd.network.layer_norm import LayerNorm


class PositionConv(nn.Module):
    """Grouped convolution over frames that stands in for position embeddings (wav2vec 2.0, section 2)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, size = config.num_conv_pos_embeddings, config.hidden_size
        conv = nn.Conv1d(size, size, width, padding=width // 2, groups=config.num_conv_pos_embedding_groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (width * size)))
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        self.width = width
        self.surplus = 1 - width % 2  # an even kernel yields one frame too many

    def forward(self, rows: Tensor, packing: Layout) -> Tensor:
        """rows (N, D) to (N, D); past an utterance's end it sees zeros."""
        x = packing.unpack(rows)
        if not in_graph() and overlap_save.applicable(x, self.width) and self._weight_normed():
            normalized = self.conv.parametrizations.weight
            gain, direction = normalized.original0, normalized.original1  # (1, 1, K), (D, D / groups, K)
            scale = gain.flatten() / torch.linalg.vector_norm(direction, dim=(0, 1))
            y = overlap_save.grouped_conv(x, direction, scale, self.conv.bias, self.conv.groups)
            x = y.to(torch.promote_types(x.dtype, direction.dtype))
        else:
            x = self.conv(x.transpose(1, 2))
            x = x[:, :, : x.shape[2] - self.surplus].transpose(1, 2)
        return F.gelu(packing.pack(x))

    def _weight_normed(self) -> bool:
        """Whether the convolution is as it was made; weight normalization may have been taken off, say."""
        if not (nn.utils.parametrize.is_parametrized(self.conv, "weight") and may_bypass(self.conv, type(self.conv))):
            return False
        weights = self.conv.parametrizations.weight
        return len(self.conv.parametrizations) == len(weights) == 1 and hasattr(weights, "original1")


def relative_position_buckets(frames: int, num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Bucket (F, F) of each (query, key) pair, as T5 and WavLM (arXiv 2110.13900, section 3.1) count them."""
    half = num_buckets // 2
    exact = half // 2
    position = torch.arange(frames, device=device)
    offset = position[None, :] - position[:, None]  # key minus query
    distance = offset.abs()
    # In single precision and in this order as transformers and the released code: bucket borders depend on it.
    logarithmic = torch.log(distance.float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + logarithmic.clamp(min=0).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A Linear; an empty one, where all units of a block have been pruned, is neither called nor trained."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        linear = nn.Linear(inputs, outputs)
    for parameter in linear.parameters():
        parameter.requires_grad_(parameter.numel() > 0)
    return linear


class SelfAttention(nn.Module):
    """Multi-head self-attention; one matrix product for queries, keys and values where nothing needs the modules.

    The heads together may be narrower or wider than the layer. Without any, the output is ``out_proj``'s bias.
    """

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = layer_heads(config)[index]
        self.dropout = config.attention_dropout
        width = self.num_heads * head_size(config)
        self.q_proj, self.k_proj, self.v_proj = (_linear(size, width) for _ in range(3))
        self.out_proj = _linear(width, size)

    def forward(self, rows: Tensor, packing: Layout, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        """rows (N, D) to (N, D).

        Args:
            packing: how the rows make up utterances.
            mask: (B, 1, 1, F), True where a frame may be attended to; None: everywhere.
            bias: relative position bias (original heads, F, F); None in HuBERT.
        """
        if self.num_heads == 0:
            return self.out_proj.bias.expand_as(rows)
        q, k, v = self._project(rows, packing)
        mask = self._attention_mask(rows, packing, mask, bias, q.dtype)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(packing.pack(y.transpose(1, 2).flatten(2)))

    def _project(self, rows: Tensor, packing: Layout) -> Sequence[Tensor]:
        """Queries, keys and values, (B, heads, F, width of a head) each."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if in_graph() or not all(may_bypass(p, nn.Linear) and p.bias is not None for p in projections):
            split = (packing.unpack(p(rows)).unflatten(-1, (self.num_heads, -1)) for p in projections)
            return [x.transpose(1, 2) for x in split]
        qkv = F.linear(rows, torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]))
        qkv = packing.unpack(qkv).unflatten(-1, (3, self.num_heads, -1))  # (B, F, 3, heads, width of a head)
        return qkv.permute(2, 0, 3, 1, 4).unbind()

    def _attention_mask(
        self, rows: Tensor, packing: Layout, mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What scaled_dot_product_attention gets as its mask."""
        return mask


class GatedRelativeAttention(SelfAttention):
    """WavLM's: each query scales the relative position bias by a gate (arXiv 2110.13900, section 3.1).

    Head h has column h of the bias, and a gate computed from slice h of the layer's input; so a pruned layer must know
    which of the original heads it has kept.
    """

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__(config, index)
        kept = kept_heads(config)[index]
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, self.num_heads, 1, 1), requires_grad=bool(kept))
        self.gru_rel_pos_linear = nn.Linear(head_size(config), 8).requires_grad_(bool(kept))
        # The first layer's serves all, so it has all heads, even where the first layer has lost them.
        self.original_heads = original_heads(config)
        self.rel_attn_embed = None
        if index == 0:
            self.rel_attn_embed = nn.Embedding(config.num_buckets, self.original_heads)
            self.rel_attn_embed.requires_grad_(any(layer_heads(config)))
        self.kept: Tensor | None
        pruned = len(kept) < self.original_heads
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.long) if pruned else None, persistent=False)

    def _attention_mask(
        self, rows: Tensor, packing: Layout, mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """What is added to the logits, (B, heads, F, F): the gated bias, and minus infinity where ``mask`` is False."""
        assert bias is not None
        slices = rows.unflatten(-1, (self.original_heads, -1))
        if self.kept is not None:
            slices, bias = slices.index_select(-2, self.kept), bias.index_select(0, self.kept)
        gates = self.gru_rel_pos_linear(slices)  # (N, heads, 8)
        update, reset = gates.unflatten(-1, (2, 4)).sum(-1).sigmoid().unbind(-1)  # (N, heads) each
        gate = update * (reset * self.gru_rel_pos_const.view(-1) - 1.0) + 2.0
        logits = (packing.unpack(gate).transpose(1, 2).unsqueeze(-1) * bias).to(dtype)
        return logits if mask is None else logits.masked_fill(~mask, float("-inf"))


class FeedForward(nn.Module):
    """Linear, GELU, Linear; without inner units the last one's bias."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.inner_size = layer_intermediate_sizes(config)[index]
        self.intermediate_dense = _linear(config.hidden_size, self.inner_size)
        self.output_dense = _linear(self.inner_size, config.hidden_size)
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        if self.inner_size == 0:
            return self.output_dense.bias.expand_as(x)
        x = F.dropout(F.gelu(self.intermediate_dense(x)), self.dropout, self.training)
        return self.output_dense(x)


class EncoderLayer(nn.Module):
    """One transformer layer, post-norm or pre-norm."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        attention = GatedRelativeAttention if config.num_buckets > 0 else SelfAttention
        self.attention = attention(config, index)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config, index)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout
        self.pre_norm = config.do_stable_layer_norm
        if self.pre_norm:  # nothing reads a LayerNorm before an empty block
            self.layer_norm.requires_grad_(self.attention.num_heads > 0)
            self.final_layer_norm.requires_grad_(self.feed_forward.inner_size > 0)

    def forward(self, x: Tensor, packing: Layout, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        attended = self.attention(self.layer_norm(x) if self.pre_norm else x, packing, mask, bias)
        x = x + F.dropout(attended, self.dropout, self.training)
        if not self.pre_norm:
            x = self.layer_norm(x)
        fed = self.feed_forward(self.final_layer_norm(x) if self.pre_norm else x)
        x = x + F.dropout(fed, self.dropout, self.training)
        return x if self.pre_norm else self.final_layer_norm(x)


class Transformer(nn.Module):
    """Position convolution, LayerNorm and the layers."""

    layers: Any  # a ModuleList of EncoderLayer, or of what was put in their place

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv_embed = PositionConv(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config, i) for i in range(config.num_hidden_layers))
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, rows: Tensor, packing: Layout, depth: int, real: Tensor | None = None) -> list[Tensor]:
        """The input of the first layer and the outputs of the first ``depth`` layers, (N, D) each.

        The last layer's of a pre-norm model is given after the final LayerNorm, as s3prl has it.

        Args:
            rows: projected features (N, D).
            packing: how they make up utterances.
            depth: layers to compute.
            real: (B, F), False at rows that are padding all the same: they are not attended to.
        """
        x = rows + self.pos_conv_embed(rows, packing)
        if not self.config.do_stable_layer_norm:
            x = self.layer_norm(x)
        x = F.dropout(x, self.config.hidden_dropout, self.training)
        mask = packing.mask() if real is None and not packing.dense else real
        mask = None if mask is None else mask[:, None, None, :]
        bias = self._position_bias(packing) if depth > 0 else None
        states = [x]
        for layer in self.layers[:depth]:
            states.append(layer(states[-1], packing, mask, bias))
        if self.config.do_stable_layer_norm and depth == self.config.num_hidden_layers:
            states[-1] = self.layer_norm(states[-1])
        return states

    def _position_bias(self, packing: Layout) -> Tensor | None:
        """(original heads, F, F), the same for all layers; None without relative positions."""
        if self.config.num_buckets == 0:
            return None
        embedding = self.layers[0].attention.rel_attn_embed
        buckets = relative_position_buckets(
            packing.size, self.config.num_buckets, self.config.max_bucket_distance, embedding.weight.device
        )
        return embedding(buckets).permute(2, 0, 1)


class FeatureProjection(nn.Module):
    """A front end's channels to the transformer's width."""

    def __init__(self, channels: int, config: EncoderConfig) -> None:
        super().__init__()
        self.scale: Tensor | None
        self.register_buffer("scale", torch.ones(channels) if config.feature_scale else None)
        self.layer_norm = LayerNorm(channels, eps=config.layer_norm_eps) if config.feat_proj_layer_norm else None
        self.projection = nn.Linear(channels, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.scale is None else x * self.scale
        return self.projection(x if self.layer_norm is None else self.layer_norm(x))


@dataclass(frozen=True)
class EncoderOutput:
    """Rows of real frames; in a recorded graph (B, F, D), padding included.

    Attributes:
        projected: (N, D) projected features, before the position convolution.
        states: (N, D) each: the input of the first layer, then the layers' outputs.
        packing: how the rows make up utterances.
    """

    projected: Tensor
    states: list[Tensor]
    packing: Layout


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


class SpeechEncoder(nn.Module):
    """A front end, a projection and a transformer under the names that transformers gives them."""

    def __init__(self, front_end: FrontEnd, projection: FeatureProjection, encoder: Transformer) -> None:
        super().__init__()
        self.feature_extractor = front_end
        self.feature_projection = projection
        self.encoder = encoder

    @property
    def min_samples(self) -> int:
        """The shortest input that yields a frame (400 samples for HuBERT's conv stack)."""
        return self.feature_extractor.min_samples

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device that inputs must have."""
        return self.feature_extractor.like

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Samples to frames, any integer shape."""
        return self.feature_extractor.frame_lengths(lengths)

    def encode(
        self,
        waveforms: Tensor,
        lengths: Tensor | None,
        *,
        depth: int | None = None,
        padded: bool = False,
        attended_frames: Tensor | None = None,
        feature_grad_scale: float = 1.0,
    ) -> EncoderOutput:
        """Run the encoder.

        Args:
            waveforms: (B, S) at 16 kHz, zero-padded.
            lengths: (B,) samples of each utterance, on the CPU (in a graph on the waveforms' device); None: all S.
            depth: transformer layers to compute; None: all.
            padded: compute all S samples of each utterance, padding masked in the attention only, as s3prl and
                transformers do; the rows are then B times F, and batch mates do matter.
            attended_frames: (B,) frames of each utterance that are not masked where ``padded``; None: those that its
                own samples yield.
            feature_grad_scale: factor on the gradient that reaches the conv stack.

        Raises:
            ValueError: an utterance is shorter than one frame's receptive field (:attr:`min_samples`).
        """
        waveforms = waveforms.to(self.like.dtype)
        attended = None
        if in_graph():
            if padded:
                attended, lengths = lengths, None
        else:
            lengths = whole_lengths(waveforms) if lengths is None else lengths
            if int(lengths.min()) < self.min_samples:
                raise ValueError(f"an utterance of {int(lengths.min())} samples; {self.min_samples} are needed")
            if padded and bool((lengths < waveforms.shape[1]).any()):
                attended, lengths = lengths, whole_lengths(waveforms)
        rows, packing = self.feature_extractor(waveforms, lengths)
        real = None
        if attended is not None:
            frames = self.frame_lengths(attended) if attended_frames is None else attended_frames
            real = length_mask(frames.to(waveforms.device, non_blocking=True), packing.size)
        if feature_grad_scale != 1.0 and rows.requires_grad and not is_traced():  # which keeps no Function
            rows = _ScaleGradient.apply(rows, feature_grad_scale)
        projected = self.feature_projection(rows)
        if real is not None:
            projected = projected * packing.pack(real).unsqueeze(-1)
        depth = self.encoder.config.num_hidden_layers if depth is None else depth
        states = self.encoder(projected, packing, depth, real)
        return EncoderOutput(projected, states, packing)


def hubert_encoder(config: EncoderConfig) -> SpeechEncoder:
    """The HuBERT family's: HuBERT, WavLM and wav2vec 2.0, as their configuration says."""
    front_end = ConvStack(config)
    return SpeechEncoder(front_end, FeatureProjection(front_end.channels, config), Transformer(config))


def normalize_waveforms(waveforms: Tensor, lengths: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Zero mean and unit variance over each utterance's own samples, as transformers' Wav2Vec2FeatureExtractor.

    Args:
        waveforms: (B, S), zero-padded; stays zero past the end.
        lengths: (B,) samples.
        epsilon: added to the variance (transformers: 1e-7; fairseq and s3prl: 1e-5).
    """
    lengths = lengths.to(waveforms.device, non_blocking=True)
    mask = length_mask(lengths, waveforms.shape[1])
    count = lengths.unsqueeze(1)
    centred = (waveforms - (waveforms * mask).sum(dim=1, keepdim=True) / count) * mask
    return centred * torch.rsqrt(centred.square().sum(dim=1, keepdim=True) / count + epsilon)
