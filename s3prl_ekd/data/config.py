"""What a run of ``s3prl-ekd distill`` hears, as a frozen dataclass. Nothing here imports torch or lhotse."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.config import Config
from s3prl_ekd.errors import UserError

_BATCH_SECONDS = 200.0


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Cut manifests, the size of batches and how they are read.

    An entry of ``cuts`` is one of

    - a Lhotse manifest of cuts (or recordings), ``.jsonl`` or ``.jsonl.gz``, read lazily;
    - a Lhotse Shar folder (``cuts.000000.jsonl.gz`` beside ``recording.000000.tar``, ...), or one of its tars;
    - a pattern of either: ``train/*.jsonl.gz``, ``shar/cuts.{000000..000999}.jsonl.gz``;
    - the same at an address that ``smart_open`` reads (``s3://``, ``gs://``, ``https://``; ``pip install smart_open``);
    - ``pipe:COMMAND``, what a shell command prints. Such a source cannot be resumed, and a recipe that has one runs the
      command: read other people's recipes first.

    Several entries are mixed throughout the epoch. The manifests of one entry come in another order in each epoch;
    within a manifest, shuffling reaches as far as ``buffer_cuts`` (what ``s3prl-ekd data`` writes is shuffled already).
    """

    cuts: tuple[str, ...]
    """Training data."""
    dev_cuts: tuple[str, ...] = ()
    """Data of the dev loss; none: no dev loss."""
    batch_seconds: float | None = None
    """Seconds of audio in a batch of one rank at most, padding included; lower it when memory is out. More devices make
    a step larger. null: 200, or what ``global_batch_seconds`` leaves."""
    global_batch_seconds: float | None = None
    """Instead: seconds of a whole step, divided by devices x nodes x ``trainer.accumulate``."""
    max_batch_utterances: int | None = None
    """Utterances of a batch at most; null: no limit."""
    num_buckets: int = 30
    """Buckets of like duration from which batches are drawn."""
    buffer_cuts: int = 20_000
    """Cuts that are held (without their audio) to draw from."""
    max_crop_samples: int | None = 250_000
    """Longer utterances are cropped to this many samples, elsewhere in each epoch (DistilHuBERT: 250000); null: no."""
    num_workers: int = 4
    """Processes of each rank that read and distort, besides one that plans the batches; 0: the training process does
    it all."""
    prefetch_batches: int = 4
    """Batches that each of them prepares ahead."""
    timeout_seconds: float = 1800.0
    """So long the run waits for one batch before it gives up; what a worker's death has cost is noticed at once."""
    shar_cache: str | None = None
    """Folder for copies of tars that are not on a file system; null: one in the system's temporary folder."""
    shar_cache_gb: float = 50.0
    """Size at which the oldest of them are removed."""

    def __post_init__(self) -> None:
        if not self.cuts:
            raise UserError("data.cuts: name at least one manifest of cuts; `s3prl-ekd data` makes them")
        least = {"max_batch_utterances": 1, "num_buckets": 1, "buffer_cuts": 1, "max_crop_samples": SAMPLE_RATE}
        for name, bound in (least | {"num_workers": 0, "prefetch_batches": 1}).items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"data.{name}: expected at least {bound}, found {value}")
        if self.batch_seconds is not None and self.global_batch_seconds is not None:
            raise UserError("data: give batch_seconds (of each device) or global_batch_seconds (of a step), not both")
        if self.batch_seconds is None and self.global_batch_seconds is None:
            object.__setattr__(self, "batch_seconds", _BATCH_SECONDS)
        for name in ("batch_seconds", "global_batch_seconds", "timeout_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"data.{name}: must be positive, found {value}")
        if self.batch_seconds is None or self.max_crop_samples is None:
            return
        if self.max_crop_samples > self.batch_samples:
            raise UserError(
                f"data.batch_seconds: {self.batch_seconds} s hold no utterance of max_crop_samples"
                f" {self.max_crop_samples} ({self.max_crop_samples / SAMPLE_RATE:.1f} s); raise one or lower the other"
            )

    def divided(self, batches: int) -> DataConfig:
        """The same with ``batch_seconds``, where a step has so many batches.

        Raises:
            UserError: ``global_batch_seconds`` is too little for so many.
        """
        if self.global_batch_seconds is None:
            return self
        return dataclasses.replace(self, batch_seconds=self.global_batch_seconds / batches, global_batch_seconds=None)

    @property
    def batch_samples(self) -> int:
        """``batch_seconds`` at 16 kHz; see :meth:`divided`."""
        return round(self.batch_seconds * SAMPLE_RATE)
