"""Convolution over rows as matrix products that read their input in place.

Stride s and kernel k <= 2s over rows (T, C) are one product of the rows read s at a time, (T', sC), plus one of the
k - s rows that reach into the next group: nothing is copied.

Kernel 3 and stride 2, nearly all of HuBERT's conv stack, need five products of T' / 2 rows instead of six: of two
neighbouring outputs, y0 = x0 A + x1 B + x2 C and y1 = x2 A + x3 B + x4 C, the even rows' part is the shared x2 (A + C)
plus (x0 - x2) A and (x4 - x2) C (Winograd's minimal filtering F(2, 2), Arithmetic Complexity of Computations, 1980).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PAIRED_CHANNELS = 256  # below, the sums cost what the product saves


def row_conv(x: Tensor, taps: Tensor, kernel: int, stride: int) -> Tensor:
    """Valid convolution: x (T, C), taps (kC, C') to (T', C')."""
    if prefers_pairs(x.device, x.dtype, x.shape[1], kernel, stride) and _steps(x, kernel, stride) % 2 == 0:
        return _PairedRowConv.apply(x, taps)
    return _RowConv.apply(x, taps, kernel, stride)


def prefers_pairs(device: torch.device, dtype: torch.dtype, channels: int, kernel: int, stride: int) -> bool:
    """Whether an even number of outputs is computed in pairs: not in half precision, whose digits the sums would cost,
    and not on a GPU, which wants few kernels."""
    return (kernel, stride) == (3, 2) and device.type == "cpu" and dtype.itemsize >= 4 and channels >= _PAIRED_CHANNELS


def _steps(x: Tensor, kernel: int, stride: int) -> int:
    return (x.shape[0] - kernel) // stride + 1


def _every(x: Tensor, step: int, first: int, count: int, width: int = 1) -> Tensor:
    """View (count, width C) of rows (T, C): ``width`` rows each, from ``first`` on, ``step`` apart."""
    channels = x.shape[1]
    return x.as_strided((count, width * channels), (step * channels, 1), x.storage_offset() + first * channels)


class _RowConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, kernel: int, stride: int) -> Tensor:
        own, next_ = _split(x, _steps(x, kernel, stride), stride, kernel)
        cut = stride * x.shape[1]
        y = own @ taps[:cut]
        if next_ is not None:
            y.addmm_(next_, taps[cut:])
        ctx.save_for_backward(x, taps)
        ctx.stride, ctx.kernel = stride, kernel
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, taps = ctx.saved_tensors
        grad = grad.contiguous()
        cut = ctx.stride * x.shape[1]
        own, next_ = _split(x, grad.shape[0], ctx.stride, ctx.kernel)
        grad_taps = own.T @ grad if next_ is None else torch.cat((own.T @ grad, next_.T @ grad))
        if not ctx.needs_input_grad[0]:
            return None, grad_taps, None, None
        grad_x = torch.empty_like(x)
        grad_own, grad_next = _split(grad_x, grad.shape[0], ctx.stride, ctx.kernel)
        torch.mm(grad, taps[:cut].T, out=grad_own)
        grad_x[grad.shape[0] * ctx.stride :] = 0
        if grad_next is not None:
            grad_next.addmm_(grad, taps[cut:].T)
        return grad_x, grad_taps, None, None


def _split(x: Tensor, steps: int, stride: int, kernel: int) -> tuple[Tensor, Tensor | None]:
    """Views of rows (T, C): each step's first ``stride`` rows (T', sC), and the k - s rows after them or None."""
    own = _every(x, stride, 0, steps, stride)
    return own, _every(x, stride, stride, steps, kernel - stride) if kernel > stride else None


class _PairedRowConv(torch.autograd.Function):
    """Kernel 3, stride 2, an even number of outputs; the names are those of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        steps = _steps(x, 3, 2)
        x0, x2, x4 = (_every(x, 4, first, steps // 2) for first in (0, 2, 4))
        a, b, c = taps.chunk(3)
        y = _every(x, 2, 1, steps) @ b
        y0, y1 = (_every(y, 2, first, steps // 2) for first in (0, 1))
        y.unflatten(0, (-1, 2)).add_((x2 @ (a + c)).unsqueeze(1))
        y0.addmm_(x0 - x2, a)
        y1.addmm_(x4 - x2, c)
        ctx.save_for_backward(x, taps)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, taps = ctx.saved_tensors
        grad = grad.contiguous()
        steps = grad.shape[0]
        x0, x2, x4 = (_every(x, 4, first, steps // 2) for first in (0, 2, 4))
        grad0, grad1 = (_every(grad, 2, first, steps // 2) for first in (0, 1))
        both = grad0 + grad1
        grad_taps = torch.empty_like(taps)
        grad_a, grad_b, grad_c = grad_taps.chunk(3)
        shared = x2.T @ both
        torch.addmm(shared, (x0 - x2).T, grad0, out=grad_a)
        torch.mm(_every(x, 2, 1, steps).T, grad, out=grad_b)
        torch.addmm(shared, (x4 - x2).T, grad1, out=grad_c)
        if not ctx.needs_input_grad[0]:
            return None, grad_taps
        a, b, c = taps.chunk(3)
        grad_x = torch.empty_like(x)
        torch.mm(grad, b.T, out=_every(grad_x, 2, 1, steps))
        from_y0, from_y1 = grad0 @ a.T, grad1 @ c.T
        _every(grad_x, 4, 0, steps // 2).copy_(from_y0)
        torch.mm(both, (a + c).T, out=_every(grad_x, 4, 2, steps // 2)).sub_(from_y0).sub_(from_y1)
        grad_x[2 * steps :] = 0
        _every(grad_x, 4, 4, steps // 2).add_(from_y1)
        return grad_x, grad_taps
