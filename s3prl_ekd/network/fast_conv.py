"""The conv stack as matrix products over packed utterances: same numbers as the plain form, in less time and memory.

Three ideas. A convolution over rows (T, C) is a few matrix products that read their input in place
(:mod:`s3prl_ekd.network.row_conv`). The first layer's GroupNorm is folded into its weights, since mean and variance of
every channel follow from the k x k moments of the waveform's windows. And padding is not computed: utterances stand one
behind the other, each starting on a whole number of frames, so that one product serves all of them; the few rows in
between are computed and not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.network.frames import Packing, positions
from s3prl_ekd.network.row_conv import prefers_pairs, row_conv

if TYPE_CHECKING:
    from s3prl_ekd.network.conv import ConvLayer

_BLOCK_FRAMES = 4  # utterances start on multiples of this; one small product of the first layer covers a block
# What a CPU computes at a time, as bytes of the first layer's output, so that it stays in its caches and in memory that
# is handed out again: of 512 channels half a second, and two seconds where all is kept for the backward pass anyway.
_CHUNK_BYTES = 25 * 64 * 512 * 4
_CHUNK_BYTES_WITH_GRADIENT = 4 * _CHUNK_BYTES


def applicable(kernels: Sequence[int], strides: Sequence[int], waveforms: Tensor) -> bool:
    """Whether these convolutions of ``waveforms`` can be computed here: in single precision, with some steps in double
    precision, which Apple's GPUs do not have."""
    return (
        waveforms.dtype == torch.float32
        and waveforms.device.type != "mps"
        and all(stride <= kernel <= 2 * stride for kernel, stride in zip(kernels, strides, strict=True))
    )


def conv_rows(layers: Sequence[ConvLayer], waveforms: Tensor, lengths: Tensor, packing: Packing) -> Tensor:
    """Features (N, C) of the real frames of waveforms (B, S).

    Args:
        layers: the stack.
        waveforms: zero-padded.
        lengths: (B,) samples of each, on the CPU.
        packing: of the frames that ``lengths`` yields.
    """
    first = layers[0]
    waveforms = waveforms.float()
    with torch.autocast(waveforms.device.type, enabled=False):
        weight, bias = first.conv.weight.float(), first.conv.bias
        if isinstance(first.layer_norm, nn.GroupNorm):
            waveforms, weight, bias = _fold_group_norm(first.conv, first.layer_norm, waveforms, lengths)
        else:
            weight = weight[:, 0].T.expand(len(lengths), -1, -1)  # (B, k, C)
            bias = weight.new_zeros(len(lengths), weight.shape[2]) if bias is None else bias.expand(len(lengths), -1)
    compute = _in_chunks if _prefers_chunks(waveforms.device) else _packed
    return compute(layers, waveforms, lengths, weight, bias, packing)


def _prefers_chunks(device: torch.device) -> bool:
    """A CPU does; a GPU wants few and large kernels."""
    return device.type == "cpu"


def _fold_group_norm(
    conv: nn.Conv1d, norm: nn.GroupNorm, waveforms: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Centred waveforms, and a weight (B, k, C) and bias (B, C) that make GroupNorm's output out of their windows.

    With windows u of mean m and covariance V, channel c of the convolution has mean w_c'm and variance w_c'Vw_c. In
    double precision, since w'Vw is a small difference of large terms for low-frequency input and a high-pass w.
    """
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    device, size = waveforms.device, waveforms.shape[1]
    samples = lengths.to(device, non_blocking=True).unsqueeze(1)
    if bool((lengths < size).any()):
        real = torch.arange(size, device=device) < samples
        waveforms = waveforms.masked_fill(~real, 0.0)
        # A constant changes no output of a GroupNorm, but costs digits.
        waveforms = (waveforms - waveforms.double().sum(1, keepdim=True).div(samples).float()).masked_fill(~real, 0.0)
    else:
        waveforms = waveforms - waveforms.double().mean(1, keepdim=True).float()

    windows_of = (lengths - kernel) // stride + 1  # (B,)
    steps = int(windows_of.max())
    count = windows_of.to(device, non_blocking=True).double().view(-1, 1, 1)
    with torch.no_grad():
        windows = waveforms.unfold(1, kernel, stride)[:, :steps].double()  # (B, T, k)
        if int(windows_of.min()) < steps:
            windows = windows * (torch.arange(steps, device=device).view(1, -1, 1) < count)
        mean = windows.sum(1, keepdim=True) / count  # (B, 1, k)
        covariance = windows.transpose(1, 2) @ windows / count - mean.transpose(1, 2) @ mean  # (B, k, k)

    w = conv.weight[:, 0].double().T  # (k, C)
    variance = (w * (covariance @ w)).sum(1).clamp(min=0)  # (B, C)
    scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)  # (B, C)
    # The convolution's own bias, if there is one, is taken out again by the mean.
    bias = norm.bias.double() - (mean @ w).squeeze(1) * scale
    return waveforms, (w * scale.unsqueeze(1)).float(), bias.float()


def _taps(layers: Sequence[ConvLayer], dtype: torch.dtype) -> list[Tensor]:
    """Weights (C', C, k) of all layers but the first as (kC, C'): rearranged once, however many chunks there are."""
    return [layer.conv.weight.to(dtype).permute(2, 1, 0).flatten(0, 1) for layer in layers[1:]]


def _later_layers(layers: Sequence[ConvLayer], taps: Sequence[Tensor], x: Tensor) -> Tensor:
    """What follows the first layer's convolution, over rows (T, C)."""
    for index, layer in enumerate(layers):
        if index > 0:
            x = row_conv(x, taps[index - 1], layer.conv.kernel_size[0], layer.conv.stride[0])
            if layer.conv.bias is not None:
                x = x + layer.conv.bias.to(x.dtype)
        if isinstance(layer.layer_norm, nn.LayerNorm):
            x = layer.layer_norm(x).to(x.dtype)
        x = F.gelu(x)
    return x


def _compute_dtype(device: torch.device) -> torch.dtype:
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else torch.float32


def _packed(
    layers: Sequence[ConvLayer], waveforms: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, packing: Packing
) -> Tensor:
    """All utterances in one go."""
    kernel, stride = layers[0].conv.kernel_size[0], layers[0].conv.stride[0]
    block = _BLOCK_FRAMES * math.prod(layer.conv.stride[0] for layer in layers)
    device = waveforms.device

    blocks_of = -(-lengths // block)  # (B,)
    most = int(blocks_of.max())
    grid = F.pad(waveforms[:, : most * block], (0, max(0, most * block - waveforms.shape[1]))).view(-1, block)
    owner = torch.arange(len(lengths)).repeat_interleave(blocks_of)
    if len(owner) < len(lengths) * most:
        index = positions(blocks_of, torch.arange(len(lengths)) * most)
        grid = grid.index_select(0, index.to(device, non_blocking=True))
    flat = F.pad(grid.flatten(), (0, kernel - stride))
    windows = flat.unfold(0, kernel, stride).unflatten(0, (len(owner), -1))  # (blocks, steps, k)
    owner = owner.to(device, non_blocking=True)
    dtype = _compute_dtype(device)
    with torch.autocast(device.type, enabled=False):
        x = torch.baddbmm(bias.index_select(0, owner).unsqueeze(1), windows, weight.index_select(0, owner))
        x = _later_layers(layers, _taps(layers, dtype), x.flatten(0, 1).to(dtype))  # (frames and gaps, C)
    rows = positions(packing.frames, (blocks_of.cumsum(0) - blocks_of) * _BLOCK_FRAMES)
    return x.index_select(0, rows.to(device, non_blocking=True))


def _in_chunks(
    layers: Sequence[ConvLayer], waveforms: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, packing: Packing
) -> Tensor:
    """A stretch of one utterance at a time; the 80 to 150 samples that neighbours share are all that is done twice."""
    kernel, stride = layers[0].conv.kernel_size[0], layers[0].conv.stride[0]
    hop = math.prod(layer.conv.stride[0] for layer in layers)
    gradient = torch.is_grad_enabled()
    size = _CHUNK_BYTES_WITH_GRADIENT if gradient else _CHUNK_BYTES
    longest = max(1, size // (hop // stride * weight.shape[2] * weight.element_size()))
    dtype = _compute_dtype(waveforms.device)
    # A stretch may reach past the longest utterance's end; no frame that is wanted hears that.
    waveforms = F.pad(waveforms, (0, _samples(layers, longest, dtype) - _samples(layers, longest)))
    chunks: list[Tensor] = []
    # Without gradients into one result: many small pieces that stay would keep malloc from reusing what lies between.
    whole = waveforms.new_empty(0 if gradient else packing.rows, layers[-1].conv.out_channels, dtype=dtype)
    row = 0
    with torch.autocast(waveforms.device.type, enabled=False):
        taps = _taps(layers, dtype)
        for b, frames in enumerate(packing.frames.tolist()):
            for start in range(0, frames, longest):
                count = min(longest, frames - start)
                stretch = waveforms[b, start * hop :][: _samples(layers, count, dtype)]
                x = torch.addmm(bias[b], stretch.unfold(0, kernel, stride), weight[b]).to(dtype)
                chunk = _later_layers(layers, taps, x)[:count]
                if gradient:
                    chunks.append(chunk)
                else:
                    whole[row : row + count] = chunk
                    row += count
    return torch.cat(chunks) if gradient else whole


def _samples(layers: Sequence[ConvLayer], frames: int, even_for: torch.dtype | None = None) -> int:
    """Samples that so many frames are computed from.

    ``even_for``, a computing type: as many as make outputs even in number where a layer computes them in pairs.
    """
    rows = frames
    for layer in reversed(layers):
        kernel, stride, weight = layer.conv.kernel_size[0], layer.conv.stride[0], layer.conv.weight
        if even_for is not None and prefers_pairs(weight.device, even_for, layer.conv.in_channels, kernel, stride):
            rows += rows % 2
        rows = (rows - 1) * stride + kernel
    return rows
