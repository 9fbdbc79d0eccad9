"""The ``data`` section of a recipe: which speech, in what batches. Nothing here imports torch or lhotse."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.config.base import Config, Count, Name, Range, Seconds, Size, Workers
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import is_remote

HOW_TO_READ = frozenset({"num_workers", "prefetch_batches", "timeout_seconds", "shar_cache", "shar_cache_gb"})
"""The settings of data that change neither which batches there are nor what is in them."""


def require_distinct(addresses: Iterable[str], key: str) -> None:
    """Check that no manifest is there twice, under whatever spelling of its path.

    Raises:
        UserError: one is.
    """
    seen: dict[str, str] = {}
    for address in addresses:
        place = address if is_remote(address) else os.path.realpath(address)
        if place in seen:
            also = f", also as {seen[place]}," if seen[place] != address else ""
            raise UserError(f"{key}: {address}{also} is named twice, so its utterances would come twice in an epoch")
        seen[place] = address


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Cut manifests, the size of batches and how they are read.

    Each of ``cuts`` is one of

    - a Lhotse manifest of cuts (or recordings), ``.jsonl`` or ``.jsonl.gz``, read lazily;
    - a Lhotse Shar folder (``cuts.000000.jsonl.gz`` beside ``recording.000000.tar``, ...), or one of its tars;
    - a pattern of either: ``train/*.jsonl.gz``, ``shar/cuts.{000000..000999}.jsonl.gz``;
    - the same at an address that ``smart_open`` reads (``s3://``, ``gs://``, ``https://``; ``pip install smart_open``);
    - ``pipe:COMMAND``, what a shell command prints. Such a source cannot be resumed, and a recipe that has one runs the
      command: read other people's recipes first.

    Several are mixed throughout the epoch. The manifests of each come in another order in each epoch; within one of
    them, shuffling reaches as far as ``buffer_cuts`` (what ``s3prl-ekd data`` writes is shuffled already).
    """

    cuts: tuple[Name, ...]
    """Training data."""
    dev_cuts: tuple[Name, ...] = ()
    """Data of the dev loss; none: no dev loss."""
    batch_seconds: Seconds | None = None
    """Seconds of audio in a batch of one rank at most, padding included; lower it when memory is out. More devices make
    a step larger. null: 200, or what ``global_batch_seconds`` leaves."""
    global_batch_seconds: Seconds | None = None
    """Instead: seconds of a whole step, divided by devices x nodes x ``trainer.accumulate``."""
    max_batch_utterances: Count | None = None
    """Utterances of a batch at most; null: no limit."""
    num_buckets: Size = 30
    """Buckets of like duration from which batches are drawn."""
    buffer_cuts: Count = 20_000
    """Cuts that are held in memory (without their audio) to draw batches from."""
    max_crop_samples: Annotated[int, Range(at_least=SAMPLE_RATE, at_most=10**12)] | None = 250_000
    """Longer utterances are cropped to this many samples, elsewhere in each epoch (DistilHuBERT: 250000); null: no."""
    num_workers: Workers = 4
    """Processes of each rank that read and distort, besides one that plans the batches; 0: the training process does
    it all."""
    prefetch_batches: Size = 4
    """Batches that each of them prepares ahead."""
    timeout_seconds: Seconds = 1800.0
    """How long the run waits for one batch before it gives up; a worker that ends is noticed at once."""
    shar_cache: str | None = None
    """Folder for copies of tars that are not on a file system; null: a folder in the system's temporary one."""
    shar_cache_gb: Annotated[float, Range(at_least=0, at_most=1e9)] = 50.0
    """Size at which the oldest of them are removed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cuts:
            raise UserError("data.cuts: name at least one manifest of cuts; `s3prl-ekd data` makes them")
        for key in ("cuts", "dev_cuts"):
            require_distinct(getattr(self, key), f"data.{key}")
        if self.batch_seconds is not None and self.global_batch_seconds is not None:
            raise UserError("data: give batch_seconds (of each device) or global_batch_seconds (of a step), not both")
        if self.batch_seconds is None and self.global_batch_seconds is None:
            object.__setattr__(self, "batch_seconds", 200.0)
        crop = self.max_crop_samples
        if self.batch_seconds is not None and crop is not None and crop > self.batch_samples:
            raise UserError(
                f"data.batch_seconds: {self.batch_seconds} s hold no utterance of max_crop_samples {crop}"
                f" ({crop / SAMPLE_RATE:.1f} s); raise one or lower the other"
            )

    def divided(self, batches: int) -> DataConfig:
        """The same with ``batch_seconds``, where a step has so many batches.

        Raises:
            UserError: ``global_batch_seconds`` is too little for so many.
        """
        if self.global_batch_seconds is None:
            return self
        each = self.global_batch_seconds / batches
        if self.max_crop_samples is not None and self.max_crop_samples > round(each * SAMPLE_RATE):
            raise UserError(
                f"data.global_batch_seconds: {self.global_batch_seconds:g} s among {batches} batches (devices x nodes x"
                f" accumulate) are {each:g} s each and hold no utterance of max_crop_samples {self.max_crop_samples}"
                f" ({self.max_crop_samples / SAMPLE_RATE:.1f} s); raise it, or lower max_crop_samples or accumulate"
            )
        return dataclasses.replace(self, batch_seconds=each, global_batch_seconds=None)

    @property
    def given_size(self) -> tuple[str, float]:
        """Which key says how large batches are, ``batch_seconds`` or ``global_batch_seconds``, and what it says."""
        if self.global_batch_seconds is not None:
            return "global_batch_seconds", self.global_batch_seconds
        assert self.batch_seconds is not None, "where neither is given, it has a default"
        return "batch_seconds", self.batch_seconds

    @property
    def batch_samples(self) -> int:
        """``batch_seconds`` at 16 kHz; see :meth:`divided`."""
        assert self.batch_seconds is not None, "divide global_batch_seconds first"
        return round(self.batch_seconds * SAMPLE_RATE)
