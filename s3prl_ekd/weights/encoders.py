"""Other projects' checkpoints: what they hold, as sizes and weights, for students and teachers alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.weights.from_fairseq import read_converted, read_lightning, read_released
from s3prl_ekd.weights.from_torchaudio import read_dphubert, read_weights_alone
from s3prl_ekd.weights.kinds import has_torchaudio_names
from s3prl_ekd.weights.sizes import StoredEncoder

# Entries that a checkpoint must have -> what reads it.
_READERS: tuple[tuple[frozenset[str], Callable[[Mapping[str, Any], Path], StoredEncoder | None]], ...] = (
    (frozenset({"config", "state_dict"}), read_dphubert),
    (frozenset({"pytorch-lightning_version", "state_dict"}), read_lightning),
    (frozenset({"model_cfg", "model_weight"}), read_converted),
    (frozenset({"cfg", "model"}), read_released),
    (frozenset({"args", "model"}), read_released),
)


def read_encoder(states: Any, path: Path) -> StoredEncoder | None:
    """The encoder in a checkpoint of another project; None if it is of no kind that can be read.

    Args:
        states: what was loaded from ``path``.
        path: some formats keep sizes in a file beside it.

    Raises:
        UserError: why it cannot be held, or what is damaged or missing.
    """
    if not isinstance(states, Mapping):
        return None
    try:
        if has_torchaudio_names(states):
            return read_weights_alone(states, path)
        for entries, read in _READERS:
            if entries <= states.keys() and (found := read(states, path)) is not None:
                return found
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # what is damaged in any way
        raise UserError(f"a damaged checkpoint ({type(error).__name__}: {one_line(error)})") from error
    return None
