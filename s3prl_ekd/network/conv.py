"""The waveform encoder: seven convolutions, a frame every 320 samples (wav2vec 2.0, arXiv 2006.11477, section 2).

Here is the plain form, and what both forms share; :mod:`s3prl_ekd.network.fast_conv` computes the same as matrix
products and without padding. In both an utterance's frames depend on nothing but its own samples.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.network.bypass import in_graph, may_bypass
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.fast_conv import applicable, conv_rows
from s3prl_ekd.network.frames import Layout, Packing, Padded, conv_frames, length_mask, receptive_field
from s3prl_ekd.network.front_end import FrontEnd
from s3prl_ekd.network.layer_norm import LayerNorm


def masked_group_norm(x: Tensor, norm: nn.GroupNorm, lengths: Tensor | None) -> Tensor:
    """GroupNorm with one channel a group, whose statistics see only each utterance's own time steps.

    torch's GroupNorm averages over padding too, so an utterance's features would depend on the longest one in its
    batch.

    Args:
        x: (B, C, T).
        norm: holds the affine part and eps; ``num_groups`` equals C.
        lengths: (B,) real time steps; None: all T of each.

    Returns:
        (B, C, T) in the type of ``norm``'s parameters; computed in single precision at least.
    """
    with torch.autocast(x.device.type, enabled=False):
        precise = torch.promote_types(x.dtype, torch.float32)
        x, weight, bias = x.to(precise), norm.weight.to(precise), norm.bias.to(precise)
        if lengths is None:
            return F.group_norm(x, norm.num_groups, weight, bias, norm.eps).to(norm.weight.dtype)
        padding = ~length_mask(lengths.to(x.device), x.shape[2]).unsqueeze(1)  # (B, 1, T)
        count = (~padding).sum(dim=2, keepdim=True)
        mean = x.masked_fill(padding, 0.0).sum(dim=2, keepdim=True) / count  # (B, C, 1)
        variance = (x - mean).square().masked_fill(padding, 0.0).sum(dim=2, keepdim=True) / count
        scale = weight[:, None] * torch.rsqrt(variance + norm.eps)  # (B, C, 1)
        return torch.addcmul(bias[:, None] - mean * scale, x, scale).to(norm.weight.dtype)


class ConvLayer(nn.Module):
    """Convolution, normalization, GELU; parameter names as in transformers' HubertModel."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        channels = (1, *config.conv_dim)
        self.conv = nn.Conv1d(
            channels[index],
            channels[index + 1],
            config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.layer_norm: nn.GroupNorm | LayerNorm | None = None
        if config.conv_layer_norm:
            self.layer_norm = LayerNorm(channels[index + 1])
        elif index == 0:
            self.layer_norm = nn.GroupNorm(channels[1], channels[1])
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, C, T) to (B, C', T'); ``lengths`` (B,) counts real time steps of the *output*."""
        x = self.conv(x)
        if isinstance(self.layer_norm, nn.GroupNorm):
            x = masked_group_norm(x, self.layer_norm, lengths)
        elif self.layer_norm is not None:
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        return F.gelu(x)


class ConvStack(FrontEnd):
    """The front end of wav2vec 2.0, HuBERT and WavLM."""

    conv_layers: Any  # a ModuleList of ConvLayer, or of what was put in their place

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.kernels, self.strides = config.conv_kernel, config.conv_stride
        self.channels = config.conv_dim[-1]
        self.min_samples = receptive_field(self.kernels, self.strides)
        self.conv_layers = nn.ModuleList(ConvLayer(config, i) for i in range(len(config.conv_dim)))

    @property
    def like(self) -> Tensor:
        return self.conv_layers[0].conv.weight

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        return conv_frames(lengths, self.kernels, self.strides)

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Layout]:
        """See :class:`FrontEnd`; by the modules where the matrix products do not apply, as where a gradient on the
        waveforms is wanted."""
        if in_graph():
            x = self._convolve(waveforms, lengths)
            return x, Padded(x, None if lengths is None else self.frame_lengths(lengths))
        assert lengths is not None  # only a graph has none
        packing = Packing(self.frame_lengths(lengths), waveforms.device)
        if not waveforms.requires_grad and self._by_products(waveforms):
            return conv_rows(self.conv_layers, waveforms, lengths, packing), packing
        dense = bool((lengths == waveforms.shape[1]).all())
        return packing.pack(self._convolve(waveforms, None if dense else lengths)[:, : packing.size]), packing

    def _convolve(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, S) to (B, F, C), by the modules."""
        first = None if lengths is None else conv_frames(lengths, self.kernels[:1], self.strides[:1])
        x = waveforms.unsqueeze(1)
        for layer in self.conv_layers:
            x = layer(x, first)  # only the first layer has a GroupNorm, so only its output lengths matter
        return x.transpose(1, 2)

    def _by_products(self, waveforms: Tensor) -> bool:
        """Whether the layers' arithmetic can be done without them, as matrix products."""
        return applicable(self.kernels, self.strides, waveforms) and all(
            may_bypass(layer, ConvLayer)
            and may_bypass(layer.conv, nn.Conv1d)
            and (layer.layer_norm is None or may_bypass(layer.layer_norm, nn.GroupNorm, LayerNorm))
            for layer in self.conv_layers
        )
