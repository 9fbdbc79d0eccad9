"""The device to compute on, chosen and checked in one place. torch is imported only where it is asked for a GPU."""

from __future__ import annotations

from s3prl_ekd.errors import UserError, one_line

_KINDS = ("cpu", "cuda", "mps", "xpu")


def default_device(accelerator: str = "auto") -> str:
    """``cuda`` where torch sees a GPU and ``accelerator`` (in Lightning's words) allows one, else ``cpu``."""
    import torch

    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def check_device(device: str) -> str:
    """``device`` itself, if it can be computed on here.

    Raises:
        UserError: torch does not know it, or this machine has none such. The message calls it ``--device``.
    """
    kind, _, number = str(device).partition(":")
    if kind not in _KINDS or (number and not number.isdecimal()):
        raise UserError(f"--device {device}: unknown; expected cpu, cuda, or the number of a GPU, such as cuda:0")
    if kind == "cpu":
        return device
    import torch

    if kind == "cuda":  # no tensor is made there: it would take memory on the GPU for as long as this process lasts
        if not torch.cuda.is_available():
            raise UserError(f"--device {device}: torch sees no GPU here; leave --device out to use the CPU")
        if number and int(number) >= torch.cuda.device_count():
            raise UserError(f"--device {device}: torch sees {torch.cuda.device_count()} GPUs here, counted from 0")
        return device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without such a device asserts
        raise UserError(f"--device {device}: cannot be used ({one_line(error, 200)})") from error
    return device
