"""The waveform encoder: seven convolutions, a frame every 320 samples (wav2vec 2.0, arXiv 2006.11477, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.student.frames import length_mask


def masked_group_norm(x: Tensor, norm: nn.GroupNorm, lengths: Tensor | None) -> Tensor:
    """GroupNorm with one channel a group, whose statistics see only each utterance's own time steps.

    torch's GroupNorm averages over padding too, so an utterance's features would depend on the longest one in its
    batch.

    Args:
        x: (B, C, T).
        norm: holds the affine part and eps; ``num_groups`` equals C.
        lengths: (B,) real time steps; None: all T of each.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        if lengths is None:
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        mask = length_mask(lengths.to(x.device), x.shape[2]).unsqueeze(1)  # (B, 1, T)
        count = mask.sum(dim=2, keepdim=True)
        mean = (x * mask).sum(dim=2, keepdim=True) / count  # (B, C, 1)
        variance = ((x - mean).square() * mask).sum(dim=2, keepdim=True) / count
        scale = norm.weight[:, None] * torch.rsqrt(variance + norm.eps)  # (B, C, 1)
        return torch.addcmul(norm.bias[:, None] - mean * scale, x, scale)


class ConvLayer(nn.Module):
    """Convolution, GroupNorm (first layer only), GELU; parameter names as in transformers' HubertModel."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, *, normalized: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, stride=stride, bias=False)
        self.layer_norm = nn.GroupNorm(channels_out, channels_out) if normalized else None
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, C, T) to (B, C', T'); ``lengths`` (B,) counts real time steps of the *output*."""
        x = self.conv(x)
        if self.layer_norm is not None:
            x = masked_group_norm(x, self.layer_norm, lengths)
        return F.gelu(x)


class ConvStack(nn.Module):
    """Waveforms to frames. An utterance's frames depend on nothing but its own samples."""

    def __init__(self, dims: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        channels = (1, *dims)
        self.conv_layers = nn.ModuleList(
            ConvLayer(channels[i], channels[i + 1], kernel, stride, normalized=i == 0)
            for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True))
        )

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """Waveforms (B, S) to features (B, F, C). Frames past an utterance's own are not defined.

        Args:
            waveforms: zero-padded.
            lengths: (B,) samples; None: all of S is real (and counts in the GroupNorm).
        """
        x = waveforms.unsqueeze(1)
        first = self.conv_layers[0].conv
        if lengths is not None:
            # Only the first layer normalises over time, so only its output lengths matter.
            lengths = torch.div(lengths - first.kernel_size[0], first.stride[0], rounding_mode="floor") + 1
        for layer in self.conv_layers:
            x = layer(x, lengths)
        return x.transpose(1, 2)
