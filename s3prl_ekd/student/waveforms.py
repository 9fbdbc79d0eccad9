"""Waveforms in any form that users have, to a padded batch of floats (B, S) and its lengths (B,)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.errors import UserError
from s3prl_ekd.network.bypass import in_graph, is_traced
from s3prl_ekd.network.frames import whole_lengths

# Integer PCM: the value of silence and the full scale. Of 8 bits, WAV's are unsigned, AIFF's and AU's signed.
_PCM = {
    torch.uint8: (128, 2**7),
    torch.int8: (0, 2**7),
    torch.int16: (0, 2**15),
    torch.int32: (0, 2**31),
}


def to_floats(samples: Any, like: Tensor) -> Tensor:
    """Samples as floats, in single precision at least.

    Args:
        samples: a tensor of any shape, or an array, which goes to the device of ``like``. Floats keep their values;
            integers are PCM and divided by their own full scale.
        like: a parameter of the network.

    Raises:
        UserError: neither tensor nor array, or of a type whose full scale is unknown (int64, say).
    """
    if not isinstance(samples, Tensor):
        if not hasattr(samples, "__array__"):
            raise UserError(
                f"waveforms must be tensors or arrays of samples, found {type(samples).__name__}; read files with"
                " soundfile or torchaudio first"
            )
        array = samples.__array__()
        try:
            samples = torch.as_tensor(array.copy(), device=like.device)  # a copy, since it may run backwards
        except (TypeError, ValueError) as error:  # objects, a foreign byte order
            raise UserError(
                f"waveforms: an array of {array.dtype} cannot be read as samples; give float32, or 16 or 32 bit PCM"
            ) from error
    dtype = torch.promote_types(like.dtype, torch.float32)
    if samples.is_floating_point():
        return samples.to(dtype)
    if samples.dtype not in _PCM:
        raise UserError(
            f"waveforms: samples of {samples.dtype} have no known full scale; give floats between -1 and 1, or 16 or 32"
            " bit PCM"
        )
    silence, full_scale = _PCM[samples.dtype]
    return (samples.to(dtype) - silence) / full_scale


def pad_waveforms(wavs: Sequence[Any], like: Tensor) -> tuple[Tensor, Tensor]:
    """B waveforms (S_b,), each of its own type, as a zero-padded batch (B, S) and lengths (B,).

    Args:
        wavs: tensors or arrays, see :func:`to_floats`; (1, S_b) will do.
        like: a parameter of the network.

    Raises:
        UserError: none at all, one that is empty or not mono, samples of another type.
    """
    if len(wavs) == 0:
        raise UserError("a batch of no waveforms: give one at least, (samples,)")
    floats = []
    for number, wav in enumerate(wavs):
        wav = to_floats(wav, like)
        if wav.dim() == 2 and wav.shape[0] == 1:
            wav = wav.squeeze(0)
        if wav.dim() != 1 or (not in_graph() and wav.numel() == 0):
            raise UserError(
                f"waveform {number} of the batch has the shape {tuple(wav.shape)}; a waveform must be mono, (samples,),"
                " and not empty: look at the recordings"
            )
        floats.append(wav)
    if in_graph():  # counted rather than read off the shapes, which a traced graph would keep as they were
        lengths = torch.stack([torch.ones_like(wav, dtype=torch.long).sum() for wav in floats])
    else:
        lengths = torch.tensor([len(wav) for wav in floats])
    return pad_sequence(floats, batch_first=True), lengths


def as_batch(waveforms: Any, lengths: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The input of a student as floats (B, S) and lengths (B,); see :class:`~s3prl_ekd.student.model.Student`.

    In a recorded graph (:func:`~s3prl_ekd.network.bypass.in_graph`) values are not looked at. ``lengths`` stays None
    where nothing is padded.

    Raises:
        UserError: what is wrong with it.
    """
    limits: Tensor | None = None
    if isinstance(waveforms, (list, tuple)):
        waveforms, limits = pad_waveforms(waveforms, like)
        lengths = limits if lengths is None else lengths
    else:
        waveforms = to_floats(waveforms, like)
        if waveforms.dim() == 3 and waveforms.shape[1] == 1:
            waveforms = waveforms.squeeze(1)
        if waveforms.dim() != 2:
            raise UserError(
                f"waveforms of the shape {tuple(waveforms.shape)}: a batch is (B, samples), mono; make one of a single"
                " waveform by waveforms[None]"
            )
        if not in_graph() and len(waveforms) == 0:
            raise UserError("a batch of no waveforms: give one at least, (B, samples)")
        limits = None if in_graph() else whole_lengths(waveforms)
    if lengths is not None:
        _check_lengths(waveforms, lengths, limits)
    real = limits if lengths is None else lengths
    if real is not None and waveforms.device.type == "cpu":  # elsewhere the check would wait for the device
        check_finite(waveforms, real)
    return waveforms, lengths


def _check_lengths(waveforms: Tensor, lengths: Tensor, limits: Tensor | None) -> None:
    if not isinstance(lengths, Tensor):
        raise UserError(f"lengths must be a tensor of samples, found {type(lengths).__name__}: torch.tensor(lengths)")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise UserError(
            f"lengths count samples, in integers, found {lengths.dtype}; of relative ones make"
            " (lengths * waveforms.shape[1]).round().long()"
        )
    if is_traced():  # where comparing shapes would fix them
        return
    if lengths.dim() != 1 or lengths.shape[0] != waveforms.shape[0]:
        raise UserError(
            f"lengths of the shape {tuple(lengths.shape)} for {waveforms.shape[0]} waveforms; each needs one: (B,)"
        )
    if in_graph() or limits is None:
        return
    for number, (length, limit) in enumerate(zip(lengths.tolist(), limits.tolist(), strict=True)):
        if length > limit:
            raise UserError(f"lengths: {length} samples of waveform {number}, which has {limit} only")


def check_finite(waveforms: Tensor, lengths: Tensor) -> None:
    """Refuse waveforms (B, S) with NaN or infinity among their ``lengths`` (B,) samples; nothing in a graph.

    Raises:
        UserError: which they are.
    """
    if in_graph() or torch.isfinite(waveforms.detach().sum()):
        return
    # Padding does not matter, and the sum of finite samples may be too large.
    bad = [str(b) for b, n in enumerate(lengths.tolist()) if not torch.isfinite(waveforms[b, :n]).all()]
    if bad:
        raise UserError(f"waveform {', '.join(bad[:5])} of the batch holds NaN or infinity: look at the recordings")
