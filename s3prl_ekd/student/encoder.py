"""The transformer on top of the conv stack; parameter names as in transformers' HubertModel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.config import StudentConfig


class PositionConv(nn.Module):
    """Grouped convolution over frames that stands in for position embeddings (wav2vec 2.0, section 2)."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width = config.num_conv_pos_embeddings
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            width,
            padding=width // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (width * config.hidden_size)))
        nn.init.zeros_(conv.bias)
        self.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        self.surplus = 1 - width % 2  # an even kernel yields one frame too many

    def forward(self, x: Tensor) -> Tensor:
        """x (B, F, D) to (B, F, D)."""
        x = self.conv(x.transpose(1, 2))
        return F.gelu(x[:, :, : x.shape[2] - self.surplus]).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one matrix product for queries, keys and values."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, F, D); mask (B, 1, 1, F), True where a frame may be attended to."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        qkv = F.linear(x, torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, F, D / heads)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.intermediate_dense(x)), self.dropout, self.training)
        return self.output_dense(x)


class EncoderLayer(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = config.hidden_dropout

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.layer_norm(x + F.dropout(self.attention(x, mask), self.dropout, self.training))
        return self.final_layer_norm(x + F.dropout(self.feed_forward(x), self.dropout, self.training))


class Encoder(nn.Module):
    """Position convolution, LayerNorm, N layers."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.pos_conv_embed = PositionConv(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.dropout = config.hidden_dropout
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, frame_mask: Tensor | None) -> list[Tensor]:
        """Each layer's output, (B, F, D).

        Args:
            x: projected features (B, F, D).
            frame_mask: (B, F), True at real frames; None: all are.
        """
        attention_mask = None
        if frame_mask is not None:
            x = x.masked_fill(~frame_mask.unsqueeze(2), 0.0)  # what the position convolution sees past the end
            attention_mask = frame_mask[:, None, None, :]
        x = self.layer_norm(x + self.pos_conv_embed(x))
        x = F.dropout(x, self.dropout, self.training)
        outputs = []
        for layer in self.layers:
            x = layer(x, attention_mask)
            outputs.append(x)
        return outputs
