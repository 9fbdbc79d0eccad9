"""When the fast forms may be used: they read modules' parameters instead of calling the modules, and read lengths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def in_graph() -> bool:
    """Whether operations are being recorded: torch.compile, torch.export, torch.jit.trace, both exporters to ONNX.

    What is recorded must hold for other lengths too, so nothing may then depend on a tensor's values.
    """
    return torch.compiler.is_compiling() or is_traced()


def is_traced() -> bool:
    """Whether torch.jit.trace or an exporter that builds on it is recording."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]  # documented, but missing in torch.jit.__all__


def may_bypass(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling ``module`` does what one of ``kinds`` does with its parameters, and nothing else.

    Not so for quantized and adapted (LoRA) modules, parametrized or pruned ones, others' hooks and forwards, and
    parameters that are subclasses of tensors.
    """
    return (
        type(module) in kinds
        and "forward" not in vars(module)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and all(tensor is None or type(tensor) in (nn.Parameter, Tensor) for tensor in module._parameters.values())
    )
