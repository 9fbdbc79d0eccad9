"""Recordings as s3prl's tasks need them, whatever they are: its tasks take rate and channels as they come."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_compat import import_hook
from s3prl_ekd.s3prl_compat.patches import AudioFileError, replaced


@contextlib.contextmanager
def read_as_speech() -> Iterator[None]:
    """While it lasts, :func:`install` is in force, here and in the processes that are started."""
    import torchaudio

    with replaced(torchaudio, load=torchaudio.load):
        install()
        import_hook.after_patches.append(_INSTALL)
        try:
            yield
        finally:
            import_hook.after_patches.remove(_INSTALL)


def install() -> None:
    """Let ``torchaudio.load(path)`` give 16 kHz mono.

    Other rates are resampled and channels averaged, which is said once; a file that is empty, truncated, not audio or
    not finite is an :class:`AudioFileError` that names it.
    """
    import torchaudio

    original = torchaudio.load

    @functools.wraps(original)
    def load(uri: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not isinstance(uri, str | Path):
            return original(uri, *args, **kwargs)
        from s3prl_ekd.audio.read import load_audio

        try:
            return load_audio(uri).unsqueeze(0), SAMPLE_RATE
        except UserError as error:
            raise AudioFileError(str(error)) from error

    torchaudio.load = load


_INSTALL = f"{__name__}:{install.__name__}"
