"""The student as an s3prl upstream, without importing s3prl.

These functions are what s3prl's hub, ``S3PRLUpstream`` and torch.hub call; ``hubconf.py`` and
``s3prl_ekd/s3prl_hub.py`` re-export them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd import FRAME_SHIFT, assets
from s3prl_ekd.config.base import Config
from s3prl_ekd.errors import UserError
from s3prl_ekd.network.bypass import in_graph
from s3prl_ekd.network.frames import HiddenStates
from s3prl_ekd.student.folder import load_student_and_heads
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student
from s3prl_ekd.student.waveforms import check_finite, pad_waveforms


@dataclass(frozen=True, kw_only=True)
class UpstreamOptions(Config):
    """What s3prl's ``-g FILE.yaml`` (``model_config``) may say."""

    all_hidden_states: bool = False
    """Also give ``all_hidden_states``: the hidden states followed by the prediction heads' outputs."""


class EkdUpstream(nn.Module):
    """A student behind s3prl's upstream interface: a list of waveforms in, a dict of features out."""

    def __init__(self, student: Student, heads: PredictionHeads | None = None) -> None:
        super().__init__()
        self.student = student
        self.heads = heads

    def get_downsample_rates(self, key: str) -> int:
        """Samples per frame, the same for every feature."""
        return FRAME_SHIFT

    def forward(self, wavs: Sequence[Any]) -> dict[str, list[Tensor] | Tensor]:
        """Features of a batch.

        s3prl's featurizers expect up to ``ceil(S / 320)`` frames of an utterance of S samples, one or two more than the
        convolutions yield; the utterance's own last frame is repeated there, so that what they read never depends on
        its batch mates.

        Args:
            wavs: B waveforms (S_b,) at 16 kHz, tensors or arrays: floats between -1 and 1, or integer PCM, which is
                divided by its own full scale. One shorter than 400 samples is extended with silence.

        Returns:
            ``hidden_states``: the projected features and each layer's output, (B, F, D) each;
            ``last_hidden_state``: the last of them; ``all_hidden_states``, where asked for: these and each prediction
            head's output.

        Raises:
            UserError: no waveform, one that is not mono or empty, samples of an unknown type, NaN or infinity.
        """
        waveforms, lengths = pad_waveforms(wavs, self.student.like)
        check_finite(waveforms, lengths)
        frames = -(-waveforms.shape[1] // FRAME_SHIFT)
        shortest = self.student.min_samples
        missing = shortest if in_graph() else shortest - waveforms.shape[1]  # in a graph for any length, however long
        if missing > 0:
            waveforms = F.pad(waveforms, (0, missing))
        output = self.student(waveforms, lengths.clamp(min=shortest), check=False)

        last = (output.frame_lengths - 1).unsqueeze(1)  # (B, 1)
        index = torch.arange(frames, device=last.device).minimum(last).to(waveforms.device).unsqueeze(2)  # (B, F, 1)

        def repeat_last(state: Tensor) -> Tensor:
            return state.gather(1, index.expand(-1, -1, state.shape[2]))

        hidden_states = [repeat_last(state) for state in output.hidden_states]
        features: dict[str, list[Tensor] | Tensor] = {
            "hidden_states": hidden_states,
            "last_hidden_state": hidden_states[-1],
        }
        if self.heads is not None:
            tapped = hidden_states
            if self.heads.reads_layer_input:
                if not isinstance(output, HiddenStates):
                    raise UserError("predictions from the input of the student's first layer cannot be recorded")
                assert output.layer_input is not None, "a student gives it"
                tapped = [repeat_last(output.packing.unpack(output.layer_input)), *hidden_states[1:]]
            features["all_hidden_states"] = hidden_states + self.heads(tapped)
        return features


def ekd_student(
    ckpt: str | Path | None = None,
    model_config: str | Path | None = None,
    refresh: bool = False,
    *,
    all_hidden_states: bool = False,
    **kwargs: object,
) -> EkdUpstream:
    """The upstream of a distilled student.

    Args:
        ckpt: a student folder, a ``states-*.ckpt`` of run_pretrain, another project's file, or a hub id (``-k`` in
            s3prl's runner); see :func:`~s3prl_ekd.student.folder.load_student`.
        model_config: a YAML file with :class:`UpstreamOptions` (``-g`` in s3prl's runner).
        refresh: accepted for s3prl's interface; the hub's cache decides by itself what is new.
        all_hidden_states: also give the prediction heads' outputs.
        kwargs: other things that s3prl's callers pass along; ignored.

    Raises:
        UserError: no ``ckpt``, or it cannot be read as a student; predictions asked for but no heads stored.

    Example:
        >>> upstream = ekd_student(assets.folder("student_mini"))
        >>> [tuple(state.shape) for state in upstream([torch.zeros(16000), torch.zeros(8000)])["hidden_states"]]
        [(2, 50, 192), (2, 50, 192), (2, 50, 192)]
    """
    if ckpt is None:
        raise UserError(
            "ekd_student needs a student: give -k (ckpt=) a student folder, a states-*.ckpt of run_pretrain or a hub"
            " id; ekd_student_mini needs none"
        )
    if model_config is not None:
        all_hidden_states = all_hidden_states or UpstreamOptions.from_yaml(model_config).all_hidden_states
    student, heads = load_student_and_heads(ckpt)
    if all_hidden_states and heads is None:
        raise UserError(f"{ckpt}: has no prediction heads stored, so all_hidden_states cannot be given")
    return EkdUpstream(student, heads if all_hidden_states else None)


def ekd_student_mini(
    ckpt: str | Path | None = None, model_config: str | Path | None = None, refresh: bool = False, **kwargs: Any
) -> EkdUpstream:
    """The upstream of the tiny student that comes with this package; nothing has to be given or fetched.

    Raises:
        UserError: ``ckpt`` is given: somebody means another student.
    """
    if ckpt is not None:
        raise UserError(f"ekd_student_mini is the package's own student; for that of {ckpt} use -u ekd_student")
    return ekd_student(assets.folder("student_mini"), model_config, refresh, **kwargs)
