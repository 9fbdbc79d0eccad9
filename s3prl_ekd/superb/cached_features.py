"""Compute the features of each utterance once: a frozen upstream gives the same ones in every epoch.

For small corpora that are heard many times, and upstreams whose features of an utterance do not depend on its batch
mates (``ekd_student``, ``fbank``). s3prl's runner stays as it is; it gets its upstream wrapped.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.s3prl_compat.patches import replaced

KEY = "hidden_states"


class RememberedFeatures(nn.Module):
    """An upstream that computes the hidden states of a waveform the first time that it sees it.

    Args:
        upstream: a frozen s3prl upstream.
        max_bytes: what is kept at most; beyond it, features are computed and forgotten.
    """

    def __init__(self, upstream: nn.Module, max_bytes: int = 2 << 30) -> None:
        super().__init__()
        self.upstream: Any = upstream  # s3prl gives its upstreams no common type
        self._left = max_bytes
        self._known: dict[bytes, list[Tensor]] = {}

    def get_downsample_rates(self, key: str) -> int:
        """Samples per frame."""
        return self.upstream.get_downsample_rates(key)

    @torch.no_grad()
    def forward(self, wavs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Hidden states, one (B, F, D) per layer, for waveforms (S,)."""
        digests = [hashlib.blake2b(wav.cpu().numpy().tobytes(), digest_size=16).digest() for wav in wavs]
        states = {digest: self._known[digest] for digest in digests if digest in self._known}
        new = {digest: wav for digest, wav in zip(digests, wavs, strict=True) if digest not in states}
        states |= self._compute(new)
        layers = zip(*(states[digest] for digest in digests), strict=True)
        return {KEY: [pad_sequence(list(layer), batch_first=True) for layer in layers]}

    def _compute(self, wavs: dict[bytes, Tensor]) -> dict[bytes, list[Tensor]]:
        """The states (F, D) of each waveform by layer, cut to the frames that s3prl's featurizer will take."""
        if not wavs:
            return {}
        layers = self.upstream(list(wavs.values()))[KEY]
        rate = self.get_downsample_rates(KEY)
        computed = {}
        for index, (digest, wav) in enumerate(wavs.items()):
            states = [layer[index, : round(len(wav) / rate)].clone() for layer in layers]
            size = sum(state.nbytes for state in states)
            if size <= self._left:
                self._left -= size
                self._known[digest] = states
            computed[digest] = states
        return computed


@contextlib.contextmanager
def features_remembered() -> Iterator[None]:
    """Within the block, the upstreams of s3prl's downstream runner are wrapped in :class:`RememberedFeatures`."""
    from s3prl.downstream.runner import Runner

    original = Runner._get_upstream

    def wrapped(runner: Any) -> Any:
        entry = original(runner)
        if not entry.trainable:
            entry.model = RememberedFeatures(entry.model)
        return entry

    with replaced(Runner, _get_upstream=wrapped):
        yield
